"""A real HTTP endpoint that speaks the OpenAI chat protocol, judges by a stated rule, and misbehaves on demand."""

import asyncio
import json
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Request = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """How one request goes wrong: a status, a reset, a hang, garbage, or a redirect."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "as asked"}}'
    hang_s: float = 0
    is_reset: bool = False


RESET = Fault(is_reset=True)
GARBAGE = Fault(200, {"Content-Type": "text/html"}, "<html>busy</html>")
HALF_JSON = Fault(200, {}, '{"choices": [{"message": ')
NO_CHOICES = Fault(200, {}, '{"choices": []}')
HANG = Fault(hang_s=30)


def wait(seconds: float | str) -> Fault:
    """Too many requests, with a Retry-After."""
    return Fault(429, {"Retry-After": str(seconds)})


def redirect(to: str) -> Fault:
    """A redirect that keeps the method, so that a client that follows would post the prompt there."""
    return Fault(307, {"Location": to})


def asked_nonce(request: Request) -> str:
    """The nonce this call's prompt asks for, "" where the prompt is no judge's."""
    text = request["messages"][-1]["content"]
    return str((re.findall(r'"nonce": "([0-9a-f]+)"', text) or [""])[-1])


def candidates(request: Request) -> tuple[str, str]:
    """Completions A and B as this call fences them."""
    text = request["messages"][-1]["content"]
    sides = re.findall(r"<<<\w+ completion [AB] begins>>>\n(.*?)\n<<<\w+ completion [AB] ends>>>", text, re.DOTALL)
    return sides[0], sides[1]


def verdict(request: Request, letter: str, reason: str = "by the rule") -> str:
    """An answer as the prompt asks for it."""
    keys = re.findall(r'"principles": \{(.*?)\}', request["messages"][-1]["content"])
    names = re.findall(r'"([^"]+)": "A or B or tie"', keys[-1]) if keys else []
    fields = {"reason": reason, **({"principles": dict.fromkeys(names, letter)} if names else {})}
    return json.dumps({**fields, "verdict": letter, "nonce": asked_nonce(request)}, ensure_ascii=False)


def prefer_longer(request: Request) -> str:
    """The default judge: the longer completion wins, equal lengths tie."""
    a, b = candidates(request)
    return verdict(request, "tie" if len(a) == len(b) else ("A" if len(a) > len(b) else "B"))


def prefer_first(request: Request) -> str:
    """A judge that only knows positions: every pair flips."""
    return verdict(request, "A")


Answer = Callable[[Request], str | Fault]


class ChatServer:
    """Use it as a context manager; it runs in a thread. `plan` gives the fault of the n-th request, counted from 0."""

    def __init__(
        self, answer: Answer = prefer_longer, *, faults: Sequence[Fault | None] = (), fault_rate: float = 0,
        any_of: Sequence[Fault] = (), delay_s: float = 0, honours: Sequence[str] = ("response_format", "logprobs", "n"),
        refuses: Sequence[str] = (), ignores: Sequence[str] = (), has_usage: bool = True, piece_s: float = 0,
        breaks_after: int | None = None,
    ) -> None:  # fmt: skip
        self.piece_s, self.breaks_after = piece_s, breaks_after  # of a stream: between two words; words until it breaks
        self.answer = answer
        self.faults, self.fault_rate, self.any_of = list(faults), fault_rate, list(any_of)
        self.delay_s = delay_s
        self.honours, self.refuses, self.ignores, self.has_usage = honours, refuses, ignores, has_usage
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.now_in_flight = 0
        self.most_in_flight = 0
        self._random = random.Random(7)
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def origin(self) -> str:
        """The base URL to give to PrefLab."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(runner.addresses[0][1])
        self._stop = asyncio.Event()
        self._is_up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        self.requests.append(json.loads(await request.text()))
        self.headers.append(dict(request.headers))
        self.now_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.now_in_flight)
        try:
            return await self._respond(request, self.requests[number], number)
        finally:
            self.now_in_flight -= 1

    async def _respond(self, request: web.Request, asked: Request, number: int) -> web.StreamResponse:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        fault = self.faults[number] if number < len(self.faults) else None
        if fault is None and self.any_of and self._random.random() < self.fault_rate:
            fault = self._random.choice(self.any_of)
        said = fault or self._refused(asked) or self.answer(asked)
        if isinstance(said, Fault):
            await asyncio.sleep(said.hang_s)
            if said.is_reset or said.hang_s:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return web.Response(status=said.status, headers=dict(said.headers), text=said.body)
        whole = self._completion(asked, said)
        if asked.get("stream") and "stream" not in self.ignores:
            return await self._stream(request, whole)
        return web.json_response(whole)

    async def _stream(self, request: web.Request, whole: dict[str, Any]) -> web.StreamResponse:
        """The completion word by word, as OpenAI's server-sent events; cut within lines to try the reader."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text, end = whole["choices"][0]["message"]["content"], whole["choices"][0]["finish_reason"]
        deltas: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": word}}]} for word in re.findall(r"\S+\s*", text)
        ]
        events = [*deltas, {"choices": [{"delta": {}, "finish_reason": end}]},
                  {"choices": [], "usage": whole.get("usage")}]  # fmt: skip
        for number, event in enumerate(events):
            if number == self.breaks_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            line = f"data: {json.dumps(event)}\n\n".encode()
            await response.write(line[:9])
            await asyncio.sleep(self.piece_s)
            await response.write(line[9:])
        await response.write(b"data: [DONE]\n\n")
        return response

    def _refused(self, asked: Request) -> Fault | None:
        wrong = [name for name in self.refuses if name in asked]
        if not wrong:
            return None
        return Fault(400, {}, json.dumps({"error": {"message": f"Unsupported parameter: {wrong[0]}"}}))

    def _completion(self, asked: Request, text: str) -> dict[str, Any]:
        n = asked.get("n", 1) if "n" in self.honours else 1
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or 10**9
        is_limit_kept = not {"max_tokens", "max_completion_tokens"} & set(self.ignores)
        words = re.findall(r"\S+\s*", text)  # here a token is a word
        is_cut = is_limit_kept and len(words) > limit
        kept = "".join(words[:limit]) if is_cut else text
        choice: dict[str, Any] = {
            "index": 0, "message": {"role": "assistant", "content": kept},
            "finish_reason": "length" if is_cut else "stop",
        }  # fmt: skip
        if asked.get("logprobs") and "logprobs" in self.honours:
            tops = [{"token": "A", "logprob": -0.2}, {"token": "B", "logprob": -1.7}]
            choice["logprobs"] = {"content": [{"token": "A", "logprob": -0.2, "top_logprobs": tops}]}
        found: dict[str, Any] = {
            "id": "c", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice] * n,
        }  # fmt: skip
        if self.has_usage:
            n_in = sum(len(m["content"].split()) for m in asked["messages"])
            found["usage"] = {"prompt_tokens": n_in, "completion_tokens": len(words[:limit]) if is_cut else len(words)}
        return found
