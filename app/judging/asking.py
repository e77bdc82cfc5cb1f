"""One endpoint judge as requests and readings: the worker and "try on 10 pairs" ask in the very same way."""

from collections.abc import Mapping
from typing import Any

from app.checkpoints.chat import Body, ChatAnswer, Target, chat_body
from app.judging.judges import check_mode
from app.judging.letters import ASKED_FOR, find_letter, read_letter
from app.judging.prompt import (
    Guide,
    PairText,
    Secrets,
    fresh_secrets,
    render_prompt,
    request_sha256,
    verdict_schema,
)
from app.judging.reading import read_verdict
from app.judging.verdicts import OpinionValue, in_pair_frame


class Asking:
    """What is sent to an endpoint for a pair, and what its answer says. Raises Invalid where the endpoint cannot."""

    def __init__(
        self, target: Target, guide: Guide, *, with_reason: bool, temperature: float, max_tokens: int,
        is_by_log_probs: bool = False,
    ) -> None:  # fmt: skip
        check_mode(dict(target.mode), temperature)
        self.target, self.guide, self.with_reason = target, guide, with_reason
        self.is_by_log_probs = is_by_log_probs
        more: dict[str, Any] = dict(ASKED_FOR) if is_by_log_probs else {}
        if target.mode.get("structured") == "json_schema":
            more["response_format"] = verdict_schema(guide, with_reason)
        elif target.mode.get("structured") == "json_object":
            more["response_format"] = {"type": "json_object"}
        body = chat_body(target, [], max_tokens=max_tokens, temperature=temperature, **more)
        self._settings: Body = {name: value for name, value in body.items() if name not in {"messages", "model"}}

    @property
    def mode(self) -> str:
        """How the verdict is asked for, in words."""
        structured = self.target.mode.get("structured")
        if structured == "json_schema":
            return "structured output: the endpoint holds the answer to a JSON schema"
        if structured == "json_object":
            return "JSON mode: the endpoint writes one JSON object"
        tested = "" if self.target.mode else " (the connection was never tested)"
        return f"JSON asked for in plain text{tested}"

    def sha256(self, pair: PairText, is_swapped: bool) -> str:
        """The key under which this call's answer is kept."""
        return request_sha256(
            origin=self.target.origin, model=self.target.model, guide=self.guide, pair=pair, is_swapped=is_swapped,
            settings={**self._settings, "with_reason": self.with_reason},
        )  # fmt: skip

    def request(self, pair: PairText, is_swapped: bool) -> tuple[Secrets, Body]:
        """What is sent: fence and nonce are new for each call."""
        known = fresh_secrets(pair.prompt, pair.a, pair.b, self.guide.text)
        messages = render_prompt(self.guide, pair, is_swapped, known, self.with_reason)
        return known, {"model": self.target.model, "messages": messages, **self._settings}

    def kept(self, answer: ChatAnswer) -> dict[str, Any]:
        """What of an answer is kept beside its text, because the reading needs it."""
        return {"letter": find_letter(answer.choice)} if self.is_by_log_probs else {}

    def read(self, raw: str, request: Mapping[str, Any], is_swapped: bool) -> OpinionValue:
        """An answer as an opinion in the pair's own frame. `request`: what was kept with the call."""
        reading = read_verdict(raw, request["nonce"], self.guide.keys, stop_reason=request["stop_reason"])
        by_principle = {key: in_pair_frame(said, is_swapped) or "" for key, said in reading.by_principle.items()}
        reason = reading.failure or reading.reason
        if not self.is_by_log_probs or reading.choice is None:
            return OpinionValue(is_swapped, in_pair_frame(reading.choice, is_swapped), None, by_principle, reason)
        found = read_letter(request.get("letter") or [])
        if found is None:
            return OpinionValue(is_swapped, None, None, by_principle, "no log-probabilities of the verdict's letter")
        letter, p_first = found
        p_a = 1 - p_first if is_swapped else p_first
        return OpinionValue(is_swapped, in_pair_frame(letter, is_swapped), p_a, by_principle, reason)
