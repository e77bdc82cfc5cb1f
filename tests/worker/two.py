"""Two processes that train one run, forked from a test once everything is imported; they meet over gloo."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from tests.conftest import forget_settings
from worker.several import Released


def in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work` of a rank gives in each of two processes; None of one that was released, or that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    forget_settings()  # no connection to a database is shared
    children = [_fork(work, rank, port, folder) for rank in range(2)]
    for child in children:
        os.waitpid(child, 0)
    places = [folder / f"{rank}.pt" for rank in range(2)]
    return [torch.load(place, weights_only=False) if place.exists() else None for place in places]


def _fork(work: Callable[[int], Any], rank: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        given = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in given.items()})
        PartialState._reset_state()  # accelerate has found this to be one process
        AcceleratorState._reset_state()
        torch.save(work(rank), folder / f"{rank}.pt")
    except Released:
        pass
    except BaseException:  # noqa: BLE001  whatever it was, the child must not go on as a second pytest
        traceback.print_exc()
    finally:
        os._exit(0)
