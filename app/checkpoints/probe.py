"""“Test connection”: finds out, by asking, which request fields an endpoint knows; a field it ignores is an error."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.checkpoints.chat import Body, ChatAnswer, Target, ask_each, chat_body
from app.db import now

TRY_S = 15.0  # for one try of one call
ALL_S = 75.0  # for the whole test
LIMIT = 8  # tokens asked for where the limit itself is tested
SLACK = 4  # tokens an endpoint may count beyond it (an end token, a template's)
LONG = "Count from one to one hundred in words, separated by commas."
RANDOM = "Write one invented word of twelve letters and nothing else."
SENTENCE = "Write one sentence about the sea, in plain words."
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["colour", "mark"],
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "mark": {"type": "integer"}},
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What became of one request field."""

    field: str
    result: str  # works, refused, ignored, failed
    said: str


@dataclass(frozen=True)
class Probe:
    """All findings, the mode they add up to, and what finding out cost."""

    findings: list[Finding]
    mode: dict[str, Any]  # empty when nothing answered
    cost_usd: float
    n_calls: int

    @property
    def is_good(self) -> bool:
        """Whether the endpoint answers and ignores nothing."""
        return bool(self.mode) and not self.mode["ignored"]


def probe_endpoint(target: Target) -> Probe:
    """Asks the endpoint about a dozen small questions, within a bounded time."""
    try:
        return asyncio.run(asyncio.wait_for(_Prober(target).run(), ALL_S))
    except TimeoutError:
        found = Finding("answer", "failed", f"the endpoint did not answer a dozen small calls within {ALL_S:.0f} s")
        return Probe([found], {}, 0, 0)


class _Prober:
    def __init__(self, target: Target) -> None:
        self.target = replace(target, mode={})
        self.findings: list[Finding] = []
        self.cost_usd = 0.0
        self.n_calls = 0

    async def ask(self, *bodies: Body) -> list[ChatAnswer]:
        """Sends bodies at once; two tries each, so that a hiccup is no finding."""
        answers = await ask_each(self.target, bodies, concurrency=4, max_tries=2, timeout_s=TRY_S)
        self.cost_usd += sum(one.cost_usd for one in answers)
        self.n_calls += len(bodies)
        return answers

    def body(self, text: str, max_tokens: int, temperature: float | None = None, **more: Any) -> Body:
        return chat_body(
            self.target, [{"role": "user", "content": text}], max_tokens=max_tokens, temperature=temperature, **more
        )

    def find(self, field: str, result: str, said: str) -> str:
        self.findings.append(Finding(field, result, said))
        return result

    async def run(self) -> Probe:
        token_field = await self.probe_token_limit()
        if not token_field:
            return Probe(self.findings, {}, self.cost_usd, self.n_calls)
        self.target = replace(self.target, mode={"token_field": token_field})
        structured = await self.probe_structured()
        log_probs = await self.probe_log_probs()
        n = await self.probe_n()
        temperature = await self.probe_temperature()
        mode = {
            "token_field": token_field, "structured": structured, "logprobs": log_probs == "works", "n": n == "works",
            "temperature": temperature, "tested_at": now().isoformat(),
            "ignored": [one.field for one in self.findings if one.result == "ignored"],
        }  # fmt: skip
        return Probe(self.findings, mode, self.cost_usd, self.n_calls)

    async def probe_token_limit(self) -> str:
        """The name of the field that limits an answer's tokens; "" when no call is answered at all."""
        for name in ("max_tokens", "max_completion_tokens"):
            self.target = replace(self.target, mode={"token_field": name})
            (answer,) = await self.ask(self.body(LONG, LIMIT))
            if not answer.failure:
                break
            if answer.status not in {400, 422}:
                self.find("answer", "failed", answer.failure)
                return ""
            self.find(name, "refused", answer.failure)
        else:
            self.find("answer", "failed", "neither token-limit field is accepted; see above")
            return ""
        shown = f"“{answer.text[:60]}”" if answer.text else "an empty text"
        self.find("answer", "works", f"{shown}, {answer.tokens_out} tokens")
        is_kept = answer.stop_reason == "length" or answer.tokens_out <= LIMIT + SLACK
        said = f"asked for at most {LIMIT} tokens and got {answer.tokens_out}"
        # An ignored limit goes by the name judges know it by, so that check_mode finds it.
        self.find(name if is_kept else "token_field", "works" if is_kept else "ignored", said)
        return name

    async def probe_structured(self) -> str:
        schema = {"type": "json_schema", "json_schema": {"name": "probe", "strict": True, "schema": SCHEMA}}
        (answer,) = await self.ask(self.body(SENTENCE, 300, response_format=schema))
        if not answer.failure:
            if _fits_schema(answer.text):
                self.find("response_format: json_schema", "works", "a question for prose was answered by the schema")
                return "json_schema"
            self.find("response_format: json_schema", "ignored", f"the schema was not kept: “{answer.text[:60]}”")
            return "none"
        self.find("response_format: json_schema", "refused", answer.failure)
        (answer,) = await self.ask(self.body(f"{SENTENCE} As JSON.", 300, response_format={"type": "json_object"}))
        if answer.failure:
            self.find("response_format: json_object", "refused", answer.failure)
            return "none"
        is_json = isinstance(_json(answer.text), dict)
        said = "one JSON object" if is_json else f"no JSON object: “{answer.text[:60]}”"
        self.find("response_format: json_object", "works" if is_json else "ignored", said)
        return "json_object" if is_json else "none"

    async def probe_log_probs(self) -> str:
        (answer,) = await self.ask(self.body("Answer A or B.", LIMIT, logprobs=True, top_logprobs=5))
        if answer.failure:
            return self.find("logprobs", "refused", answer.failure)
        content = (answer.choice.get("logprobs") or {}).get("content") or []
        if content and content[0].get("top_logprobs"):
            return self.find("logprobs", "works", f"{len(content[0]['top_logprobs'])} alternatives for a token")
        return self.find("logprobs", "ignored", "asked for log-probabilities and got none")

    async def probe_n(self) -> str:
        (answer,) = await self.ask(self.body(RANDOM, LIMIT, 1.0, n=2))
        if answer.failure:
            return self.find("n", "refused", answer.failure)
        result = "works" if answer.n_choices == 2 else "ignored"
        return self.find("n", result, f"asked for 2 answers and got {answer.n_choices}")

    async def probe_temperature(self) -> str:
        cold = await self.ask(*[self.body(RANDOM, 16, 0.0)] * 4)
        hot = await self.ask(*[self.body(RANDOM, 16, 1.0)] * 4)
        failed = [one for one in [*cold, *hot] if one.failure]
        if failed:
            return self.find("temperature", "refused", failed[0].failure)
        n_cold, n_hot = _different(cold), _different(hot)
        said = f"4 answers at temperature 0: {n_cold} different; 4 at temperature 1: {n_hot} different"
        is_ignored = n_hot == 1 or n_cold == 4
        return self.find("temperature", "ignored" if is_ignored else "works", said)


def _different(answers: Sequence[ChatAnswer]) -> int:
    return len({one.text for one in answers})


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _fits_schema(text: str) -> bool:
    found = _json(text)
    return isinstance(found, dict) and set(found) == {"colour", "mark"} and found["colour"] in {"red", "blue"}
