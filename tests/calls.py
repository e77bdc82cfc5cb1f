"""Calls to an endpoint by the worker's client alone, without the ledger around it."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from app.checkpoints.chat import Body, ChatAnswer, Target
from worker.endpoint import EndpointCalls

Key = TypeVar("Key", bound=Hashable)


def ask_all(
    target: Target, asked: Iterable[tuple[Key, Body]], *, concurrency: int, max_tries: int = 5, timeout_s: float = 120,
    check: Callable[[], None] = lambda: None,
) -> Iterator[list[tuple[Key, ChatAnswer]]]:  # fmt: skip
    """Lists of (key, answer) as they arrive. `asked` is read only as fast as calls leave; `check` may raise to stop."""
    left = iter(asked)
    with EndpointCalls(target, concurrency=concurrency, max_tries=max_tries, timeout_s=timeout_s) as calls:
        while True:
            check()
            batch = list(islice(left, concurrency - calls.in_flight))
            if batch:
                calls.send(batch)
            if not calls.in_flight:
                return
            arrived = calls.arrived()
            if arrived:
                yield arrived
