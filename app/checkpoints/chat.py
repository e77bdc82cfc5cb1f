"""The OpenAI chat protocol: what is sent, how an answer is read, and when a call is tried again."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from app.checkpoints.pace import Pace, pace_of
from app.db import clean_text
from app.net import NoAnswer, Reply, Transport

Body = dict[str, Any]
Messages = list[dict[str, str]]

AGAIN = {408, 409, 425, 429}  # and every 5xx
FATAL = {401, 402, 403, 404}  # the same for every call: the key, the money, the address or the model is wrong
DEADLINE_TRIES = 3  # a call with all its tries and pauses may take this many times the time of one try
SHORTEST_BEGUN = 6  # characters of a key that are taken for its beginning
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True)
class Target:
    """An endpoint as the client needs it. The key is never part of its repr."""

    origin: str
    model: str
    key: str | None = field(default=None, repr=False)
    mode: Mapping[str, Any] = field(default_factory=dict)  # what "test connection" found
    usd_per_million_in: float = 0
    usd_per_million_out: float = 0
    are_private_allowed: bool = True
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # fields that go along with every request

    @property
    def pace(self) -> Pace | None:
        """How fast its calls may leave; shared by all callers of this process."""
        return pace_of(self.origin, self.model, self.requests_per_minute, self.tokens_per_minute)

    def transport(self, connections: int) -> Transport:
        """A transport that carries the key to this origin only."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return Transport(
            self.origin, are_private_allowed=self.are_private_allowed, headers=headers, connections=connections
        )

    def cost_usd(self, tokens_in: int, tokens_out: int) -> float:
        """What these tokens cost at this endpoint's prices."""
        return (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6


@dataclass(frozen=True)
class ChatAnswer:
    """The end of one call: an answer, or why there is none."""

    text: str = ""
    stop_reason: str = ""  # stop, length, content_filter, …
    tokens_in: int = 0
    tokens_out: int = 0
    are_tokens_estimated: bool = False
    cost_usd: float = 0
    tries: int = 0
    seconds: float = 0
    failure: str = ""  # "" when there is an answer
    is_fatal: bool = False  # every other call would fail the same way
    status: int = 0  # HTTP status of the last try, 0 when none came
    choice: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the raw choice, for log-probabilities
    n_choices: int = 0


def chat_body(
    target: Target, messages: Messages, *, max_tokens: int, temperature: float | None = None, **more: Any
) -> Body:
    """A request in the fields this endpoint was found to know; `more` goes in as it is (top_p, seed, …).

    The endpoint's own extra fields come first, so that what a call says itself always stands.
    """
    body: Body = {**target.extra_body, "model": target.model, "messages": messages}
    body[str(target.mode.get("token_field") or "max_tokens")] = max_tokens
    if temperature is not None and target.mode.get("temperature") != "refused":
        body["temperature"] = temperature
    return {**body, **more}


async def ask(transport: Transport, target: Target, body: Body, *, max_tries: int, timeout_s: float) -> ChatAnswer:
    """One call with its tries: again after 408, 409, 425, 429, 5xx, reset, timeout or garbage, as Retry-After asks.

    Each try waits for its place in the endpoint's pace, and that waiting does not count against the call's deadline.
    """
    clock = asyncio.get_running_loop().time
    started = clock()
    deadline = started + DEADLINE_TRIES * timeout_s
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    answer, pace = ChatAnswer(failure="not tried"), target.pace
    for tries in range(1, max_tries + 1):
        pause: float | None = None
        n_estimated = pace.estimate(body) if pace else 0.0
        if pace:
            deadline += await pace.wait(n_estimated)
        try:
            reply = await transport.post("/chat/completions", data, min(timeout_s, deadline - clock()))
        except NoAnswer as error:
            answer, is_again = ChatAnswer(failure=str(error)), True
        else:
            answer, is_again = read_reply(reply, target, body)
            pause = read_retry_after(reply.headers)
        if pace:
            pace.settle(n_estimated, answer.tokens_in, answer.tokens_out)
        answer = replace(answer, tries=tries, seconds=clock() - started, failure=redact(answer.failure, target.key))
        if not is_again or tries == max_tries:
            return answer
        if pause is None:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1)) * random.uniform(0.5, 1)
        if clock() + pause >= deadline:
            return replace(answer, failure=f"{answer.failure}; gave up: the next try would come after the deadline")
        await asyncio.sleep(pause)
    return answer


def read_reply(reply: Reply, target: Target, body: Body) -> tuple[ChatAnswer, bool]:
    """An answer from an HTTP reply, and whether the call should be tried again."""
    if 300 <= reply.status < 400:
        where = reply.headers.get("Location", "nowhere")[:120]
        said = f"HTTP {reply.status}: redirects are not followed (to {where}); give the final base URL"
        return ChatAnswer(failure=said, is_fatal=True, status=reply.status), False
    if reply.status != 200:
        said = f"HTTP {reply.status}: {_error_text(reply.body)}"
        is_again = reply.status in AGAIN or reply.status >= 500
        return ChatAnswer(failure=said, is_fatal=reply.status in FATAL, status=reply.status), is_again
    try:
        found = json.loads(reply.body)
        choices = found["choices"]
        message = choices[0]["message"]
        text = message.get("content") or message.get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        said = f"garbage instead of a chat completion ({type(error).__name__}): {_shown(reply.body)}"
        return ChatAnswer(failure=said, status=200), True
    tokens_in, tokens_out, is_estimated = _usage(found, body, text)
    return ChatAnswer(
        text=clean_text(text), stop_reason=str(choices[0].get("finish_reason") or "stop"), tokens_in=tokens_in,
        tokens_out=tokens_out, are_tokens_estimated=is_estimated, cost_usd=target.cost_usd(tokens_in, tokens_out),
        status=200, choice=choices[0], n_choices=len(choices),
    ), False  # fmt: skip


def _usage(found: Mapping[str, Any], body: Body, text: str) -> tuple[int, int, bool]:
    """Tokens in and out as the endpoint counts them; where it does not, a quarter of the characters."""
    usage = found.get("usage")
    if isinstance(usage, dict):
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if all(isinstance(n, int) and 0 <= n < 2**31 for n in counts):
            return int(counts[0] or 0), int(counts[1] or 0), False
    return sum(len(m["content"]) for m in body["messages"]) // 4 + 1, len(text) // 4 + 1, True


def _error_text(body: bytes) -> str:
    """What the endpoint says of an error, in one line."""
    try:
        found = json.loads(body)
    except ValueError:
        return _shown(body)
    error = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
    return _shown(str(error.get("message", error) if isinstance(error, dict) else error).encode("utf-8", "replace"))


def _shown(body: bytes) -> str:
    return clean_text(" ".join(body[:400].decode("utf-8", "replace").split()))[:200]


def redact(text: str, key: str | None) -> str:
    """A message without the key in it, should a server echo it; nor its beginning, where the message was cut there."""
    if not key:
        return text
    text = text.replace(key, "[key]")
    begun = next((n for n in range(min(len(key) - 1, len(text)), SHORTEST_BEGUN - 1, -1) if text.endswith(key[:n])), 0)
    return text[:-begun] + "[key]" if begun else text


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: a number, or a date; None when it says nothing readable."""
    said = headers.get("Retry-After", "").strip()
    if not said:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


async def ask_each(
    target: Target, bodies: Sequence[Body], *, concurrency: int, max_tries: int, timeout_s: float
) -> list[ChatAnswer]:
    """Answers to a few calls, in order (for pages; the worker's way is worker/endpoint.py)."""
    free = asyncio.Semaphore(concurrency)

    async def one(transport: Transport, body: Body) -> ChatAnswer:
        async with free:
            return await ask(transport, target, body, max_tries=max_tries, timeout_s=timeout_s)

    async with target.transport(concurrency) as transport:
        return list(await asyncio.gather(*(one(transport, body) for body in bodies)))
