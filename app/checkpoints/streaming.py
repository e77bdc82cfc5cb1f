"""One call to an OpenAI-compatible endpoint whose text is told as it arrives (server-sent events, `"stream": true`)."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from app.checkpoints.chat import Body, ChatAnswer, Target, read_reply, redact
from app.db import clean_text
from app.net import NoAnswer, Reply, Transport


@dataclass
class _Heard:
    """What has arrived so far."""

    text: str = ""
    stop_reason: str = ""
    usage: dict[str, Any] | None = None
    failure: str = ""
    is_done: bool = False
    rest: bytes = field(default=b"", repr=False)  # of a line that is not whole yet

    def take(self, chunk: bytes) -> None:
        """Reads the whole lines of what has come."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read(line[5:].strip())

    def _read(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            event = json.loads(data)
            if event.get("error"):
                error = event["error"]
                self.failure = str(error.get("message", error) if isinstance(error, dict) else error)[:200]
                return
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or []:
                self.text += (choice.get("delta") or {}).get("content") or ""
                self.stop_reason = choice.get("finish_reason") or self.stop_reason
        except (ValueError, AttributeError, TypeError) as error:
            self.failure = f"garbage within the stream ({type(error).__name__})"


async def ask_streaming(
    transport: Transport, target: Target, body: Body, heard: Callable[[str], None], *, timeout_s: float
) -> ChatAnswer:
    """The call's end; `heard` gets the text so far at each piece. Asked once: who watches can ask again.

    A server that answers whole, since it knows no streaming, is read as always.
    """
    clock = asyncio.get_running_loop().time
    started, pace = clock(), target.pace
    if pace:
        await pace.wait(pace.estimate(body))
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    found, whole, last = _Heard(), b"", Reply(0, {}, b"")
    try:
        async for last in transport.stream("/chat/completions", json.dumps(sent).encode(), timeout_s):
            if last.status == 200 and "text/event-stream" in last.headers.get("Content-Type", ""):
                found.take(last.body)
                heard(clean_text(found.text))
            else:
                whole += last.body
    except NoAnswer as error:
        return ChatAnswer(clean_text(found.text), failure=redact(str(error), target.key), tries=1)
    if "text/event-stream" not in last.headers.get("Content-Type", "") or last.status != 200:
        answer, _ = read_reply(Reply(last.status, last.headers, whole), target, body)
        heard(answer.text)
    else:
        answer = _end(found, target, body)
    return replace(answer, tries=1, seconds=clock() - started, failure=redact(answer.failure, target.key))


def _end(found: _Heard, target: Target, body: Body) -> ChatAnswer:
    usage = found.usage or {}
    tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    is_counted = isinstance(tokens_in, int) and isinstance(tokens_out, int)
    n_in = int(tokens_in or 0) if is_counted else sum(len(m["content"]) for m in body["messages"]) // 4 + 1
    n_out = int(tokens_out or 0) if is_counted else len(found.text) // 4 + 1
    failure = found.failure
    if not failure and not found.is_done and not found.stop_reason:
        failure = "the stream broke off before its end"
    return ChatAnswer(
        clean_text(found.text), found.stop_reason or "stop", n_in, n_out, not is_counted, target.cost_usd(n_in, n_out),
        failure=failure, status=200, n_choices=1,
    )  # fmt: skip
