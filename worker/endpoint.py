"""Calls to an OpenAI-compatible endpoint: an event loop in a thread of its own, plain sync code on this side.

    with EndpointCalls(target, concurrency=32, max_tries=5, timeout_s=120) as calls:
        calls.send([(key, chat_body(target, messages, max_tokens=64)), …])
        for key, answer in calls.arrived(): …

A run asks through the call ledger (worker/ledger.py), which stores each call before it leaves.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Hashable, Iterable
from typing import Any, Self

from app.checkpoints.chat import Body, ChatAnswer, Target, ask

# Answers that come close together are handed over together. To wait for more leaves places empty, so it may take only
# this share of what a call takes: at 32 in flight another one comes in 1/32 of that time on average.
LINGER_SHARE, LONGEST_LINGER_S = 0.05, 0.25


class EndpointCalls:
    """At most `concurrency` calls in flight. Answers are handed over in lists, in the order they arrive."""

    def __init__(self, target: Target, *, concurrency: int, max_tries: int, timeout_s: float) -> None:
        self.target = target
        self.concurrency, self.max_tries, self.timeout_s = concurrency, max_tries, timeout_s
        self.usual_s = 1.0  # about how long a call takes: what took long ago is forgotten
        self.in_flight = 0  # sent and not yet handed over; touched by the caller's thread only
        self._arrived: queue.SimpleQueue[tuple[Any, ChatAnswer | Exception]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._transport = target.transport(concurrency)  # raises Invalid for an origin that may not be called
        self._free: asyncio.Semaphore | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="endpoint calls", daemon=True)
        self._is_up = threading.Event()
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: Any) -> None:
        """Drops what is still in flight."""
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)

    def send(self, asked: Iterable[tuple[Hashable, Body]]) -> None:
        """Starts calls; those beyond `concurrency` wait for their turn."""
        batch = list(asked)
        self.in_flight += len(batch)
        self._loop.call_soon_threadsafe(self._begin, batch)

    def arrived(self, wait_s: float = 0.25, at_least: int = 1) -> list[tuple[Any, ChatAnswer]]:
        """Everything that has arrived since the last look. Waits `wait_s` at most for the first answer, and then for a
        moment until there are `at_least` of them."""
        found: list[tuple[Any, ChatAnswer]] = []
        until = time.monotonic() + wait_s
        while True:
            try:
                item = self._arrived.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(item[1], Exception):
                raise item[1]
            found.append((item[0], item[1]))
            if len(found) == 1:
                until = time.monotonic() + min(LONGEST_LINGER_S, LINGER_SHARE * self.usual_s)
            if len(found) >= at_least:
                until = 0.0  # only what is there already
        self.in_flight -= len(found)
        for _, answer in found:
            if answer.tries == 1 and not answer.failure:
                self.usual_s += 0.05 * (answer.seconds - self.usual_s)
        return found

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._free = asyncio.Semaphore(self.concurrency)
        async with self._transport:
            self._is_up.set()
            await self._stop.wait()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, batch: list[tuple[Hashable, Body]]) -> None:
        for key, body in batch:
            task = self._loop.create_task(self._one(key, body))
            self._tasks.add(task)
            task.add_done_callback(self._end)

    async def _one(self, key: Hashable, body: Body) -> None:
        assert self._free is not None
        async with self._free:
            answer = await ask(self._transport, self.target, body, max_tries=self.max_tries, timeout_s=self.timeout_s)
        self._arrived.put((key, answer))

    def _end(self, task: asyncio.Task[None]) -> None:
        """A call that broke by a mistake of ours breaks the caller, who would wait for it for ever."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._arrived.put((None, error))
