"""What the processes of one run tell each other: rows, sums, and what the first alone finds out.

With one process each function is the identity, so that the code which calls them reads the same for one and for many.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from worker.several import LONGEST_WAIT_S, is_first, n_processes, rank

T = TypeVar("T")


def join_others() -> None:
    """Meets the other processes: over NCCL, or over gloo where there is no GPU. TRL's trainers do so by themselves."""
    if n_processes() > 1 and not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=LONGEST_WAIT_S))


def own_share(n_rows: int) -> slice:
    """This process's rows, of as many that divide by the processes."""
    size = n_rows // n_processes()
    return slice(rank() * size, (rank() + 1) * size)


def gather_rows(share: Tensor) -> Tensor:
    """The rows (b, …) of all processes, each of which gives its share."""
    if n_processes() == 1:
        return share
    parts = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(n_processes())]
    distributed.all_gather(parts, share.contiguous())
    return torch.cat(parts)


def gather_list(share: Sequence[T]) -> list[T]:
    """The same for things that are no tensors."""
    if n_processes() == 1:
        return list(share)
    parts: list[Any] = [None] * n_processes()
    distributed.all_gather_object(parts, list(share))
    return [one for part in parts for one in part]


def add_up(one: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if n_processes() > 1:
        distributed.all_reduce(one)
    return one


def from_first(find: Callable[[], T]) -> T:
    """What the first process finds, for all: it alone writes, and it alone pays for answers."""
    if n_processes() == 1:
        return find()
    found: list[Any] = [find() if is_first() else None]
    distributed.broadcast_object_list(found)
    return cast(T, found[0])


@contextmanager
def alone() -> Iterator[None]:
    """Within this accelerate gathers nothing: a process may fail here, or try again, and no other waits for it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    state = PartialState()
    way, state.distributed_type = state.distributed_type, DistributedType.NO
    try:
        yield
    finally:
        state.distributed_type = way
