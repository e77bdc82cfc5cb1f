"""Several processes train one run (`accelerate launch`): the first writes everything, the others only train along.

Each takes its share of every step's rows; gradients are averaged between them. The rank comes from the environment that
the launcher sets, so that it is known before torch is imported.
"""

import os
from collections.abc import Sequence
from typing import NoReturn

from app.errors import AppError
from worker.job import Job, SampledText

# A gloo or NCCL wait gives up after this; a process that died is noticed by the launcher long before.
LONGEST_WAIT_S = 24 * 3600
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "NCCL timeout")


class Released(Exception):
    """A process that trained along has nothing more to do."""


def n_processes() -> int:
    """How many processes train this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def take_own_gpu() -> None:
    """Each of several processes computes on a GPU of its own: what is put on "cuda" goes there."""
    if n_processes() > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def share_rows(batch_size: int, parts: int) -> int:
    """Rows that each process reads at once, so that a step has as many rows as the recipe says."""
    size, rest = divmod(batch_size, parts * n_processes())
    if rest or not size:
        raise AppError(
            f"{batch_size} rows per step do not divide into {parts} parts on {n_processes()} processes each: choose a "
            f"multiple of {parts * n_processes()} rows per step."
        )
    return size


def is_of_another(error: BaseException) -> bool:
    """Whether an error says only that another process has gone, as gloo and NCCL put it: not what went wrong."""
    return any(words in str(error) for words in LOST)


class Follower(Job):
    """The run as every process but the first sees it: it reads, asks for a cancel, and stores nothing."""

    def write(self) -> NoReturn:
        """Never: that is the first process's."""
        raise RuntimeError(f"process {rank()} of run {self.run_id} tried to write")

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.check()

    def log(self, text: str, level: str = "info") -> None: ...
    def metric(self, step: int, **values: float) -> None: ...
    def resumed_at(self, step: int) -> None: ...
    def sampled(self, step: int, rows: Sequence[SampledText]) -> None: ...
    def spend(self, **amounts: float) -> None: ...
