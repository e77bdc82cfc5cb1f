"""The mock endpoint of bench.judge: a process that takes its time, fails at times and counts what it holds."""

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from aiohttp import web

from tests.chat_server import GARBAGE, HALF_JSON, NO_CHOICES, RESET, Fault, wait

FAULT_RATE = 0.02
SIGMA = 0.5  # of the wait's logarithm; the median is chosen so that the mean is one second
MEDIAN_S = 1 / 2.718281828 ** (SIGMA**2 / 2)
NONCE = re.compile(rb'nonce\\": \\"([0-9a-f]+)')


@dataclass(frozen=True)
class Steady:
    """What the server saw between the arrival of one request and of another."""

    held: float  # requests at once, on average
    a_second: float
    since: float
    until: float
    n_requests: int
    n_seen: int  # in the whole run


class Held:
    """How many requests the server holds, as an integral over time."""

    def __init__(self) -> None:
        self.now, self.seen, self.marks = 0, 0, list[tuple[int, float, float]]()
        self._area, self._at = 0.0, time.monotonic()

    def change(self, by: int) -> None:
        """A request came or ended."""
        at = time.monotonic()
        self._area += self.now * (at - self._at)
        self.now, self._at = self.now + by, at
        if by > 0:
            self.seen += 1
            self.marks.append((self.seen, at, self._area))

    def steady(self, first: int, last: int) -> Steady:
        """What held between the arrival of one request and of another."""
        (_, start, area), (_, end, area_end) = self.marks[first - 1], self.marks[last - 1]
        n = last - first
        return Steady((area_end - area) / (end - start), n / (end - start), start, end, n, self.seen)


def faults(hang_s: float | None) -> list[Fault]:
    """A quick refusal, or the ten kinds of tests/judging/test_chaos.py."""
    quick = Fault(503)
    if hang_s is None:
        return [quick]
    return [Fault(408), Fault(409), wait(0), Fault(500), quick, RESET, GARBAGE, HALF_JSON, NO_CHOICES,
            Fault(hang_s=hang_s)]  # fmt: skip


def serve(pipe: Connection, hang_s: float | None) -> None:
    """Sends its port, then for each message (the concurrency) what held in the steady state."""
    rng, held, kinds = random.Random(1), Held(), faults(hang_s)

    async def answer(request: web.Request) -> web.Response:
        mine = held
        mine.change(1)
        try:
            found = NONCE.findall(await request.read())
            await asyncio.sleep(rng.lognormvariate(0, SIGMA) * MEDIAN_S)
            if rng.random() < FAULT_RATE:
                return await _go_wrong(request, rng.choice(kinds))
            said = json.dumps({"reason": "by the rule", "verdict": "A", "nonce": found[-1].decode() if found else ""})
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 600, "completion_tokens": 30, "total_tokens": 630}
            return web.json_response({"id": "x", "object": "chat.completion", "created": 0, "model": "mock",
                                      "choices": [choice], "usage": usage})  # fmt: skip
        finally:
            mine.change(-1)

    async def run() -> None:
        nonlocal held
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)  # who has gone is not held
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pipe.send(runner.addresses[0][1])
        while True:
            await asyncio.sleep(0.01)
            if pipe.poll():
                in_flight = pipe.recv()
                pipe.send(held.steady(max(1, held.seen // 10, in_flight), max(2, held.seen - in_flight)))
                held = Held()

    asyncio.run(run())


async def _go_wrong(request: web.Request, fault: Fault) -> web.Response:
    await asyncio.sleep(fault.hang_s)
    if fault.is_reset or fault.hang_s:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    return web.Response(status=fault.status, headers=dict(fault.headers), text=fault.body)
