"""Pacing: calls to an endpoint leave no faster than its requests and tokens a minute allow."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

FIRST_TOKENS_OUT = 200  # guessed of an answer until the first one has come
BURST_S = 1.0  # what was not used for so long may leave at once


class Bucket:
    """A token bucket that promises places: each taker is told how long to wait for its own, first come first served."""

    def __init__(self, a_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.a_second, self._clock = a_minute / 60, clock
        self._free_at = clock()  # when everything promised so far has been paid off

    def take(self, amount: float) -> float:
        """Promises `amount`; how many seconds from now it may leave. More than a minute's worth leaves too, in debt."""
        now = self._clock()
        start = max(self._free_at, now - BURST_S)
        self._free_at = start + amount / self.a_second
        return max(0.0, start - now)

    def correct(self, amount: float) -> None:
        """Adds what a call used beyond its estimate, or gives back (below 0) what it did not."""
        self._free_at += amount / self.a_second


class Pace:
    """The limits of one endpoint; every try of every call takes its place here. Safe across threads and loops."""

    def __init__(
        self, requests_per_minute: int | None, tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self.tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._lock = threading.Lock()
        self._mean_out = 0.0
        self._n_out = 0

    def estimate(self, body: Mapping[str, Any]) -> float:
        """Tokens a call will use: a quarter of its characters, and an answer as long as those so far."""
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or FIRST_TOKENS_OUT
        out = self._mean_out if self._n_out else min(FIRST_TOKENS_OUT, limit)
        return sum(len(str(m["content"])) for m in body["messages"]) / 4 + out

    def take(self, n_tokens: float) -> float:
        """Promises a place to one request; how many seconds to wait for it."""
        with self._lock:
            by_requests = self.requests.take(1) if self.requests else 0.0
            by_tokens = self.tokens.take(n_tokens) if self.tokens else 0.0
        return max(by_requests, by_tokens)

    async def wait(self, n_tokens: float) -> float:
        """Waits until a request may leave; the seconds that took."""
        seconds = self.take(n_tokens)
        if seconds:
            await asyncio.sleep(seconds)
        return seconds

    def settle(self, n_tokens: float, tokens_in: int, tokens_out: int) -> None:
        """What the request used after all; nothing where it got no answer, which costs no tokens."""
        with self._lock:
            if tokens_out:
                self._n_out += 1
                self._mean_out += (tokens_out - self._mean_out) / self._n_out
            if self.tokens:
                self.tokens.correct(tokens_in + tokens_out - n_tokens)


_PACES: dict[tuple[Any, ...], Pace] = {}


def pace_of(origin: str, model: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> Pace | None:
    """The pace of an endpoint, one for all who call it from this process; None where nothing limits it."""
    if not requests_per_minute and not tokens_per_minute:
        return None
    key = (origin, model, requests_per_minute, tokens_per_minute)
    return _PACES.setdefault(key, Pace(requests_per_minute, tokens_per_minute))
