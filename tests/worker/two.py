"""Two processes that train one run, forked from a test once everything is imported; they meet over gloo."""

import faulthandler
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

from app.runs.models import Run
from tests.conftest import forget_settings
from tests.judging.rows import read
from worker import child
from worker.several import Released

OTHERS_MAY_GO_ON_S = 2.0  # after one has failed; then, as a launcher does, the test ends them


def in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work` of a rank gives in each of two processes; None of one that was released, or that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    forget_settings()  # no connection to a database is shared
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet, as a launcher has one
    children = {_fork(work, rank, store.port, folder) for rank in range(2)}
    deadline = None
    while children:
        for pid in [*children]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.remove(pid)
                if status and deadline is None:
                    deadline = time.monotonic() + OTHERS_MAY_GO_ON_S
            elif deadline and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    places = [folder / f"{rank}.pt" for rank in range(2)]
    return [torch.load(place, weights_only=False) if place.exists() else None for place in places]


def _fork(work: Callable[[int], Any], rank: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    faulthandler.dump_traceback_later(120, exit=True)  # one that hangs fails the test
    try:
        given = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        elastic = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        os.environ.update({name: str(value) for name, value in (given | elastic).items()})
        PartialState._reset_state()  # accelerate has found this to be one process
        AcceleratorState._reset_state()
        torch.save(work(rank), folder / f"{rank}.pt")
        code = 0
    except Released:
        code = 0
    except BaseException:  # noqa: BLE001  whatever it was, the child must not go on as a second pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def in_both(run: Run, folder: Path, **faults: Any) -> Run:
    """A run done by the worker's child in two processes; `faults` replace names of worker.child in the second."""

    def work(rank: int) -> None:
        for name, value in faults.items():
            setattr(child, name, value if rank == 1 else getattr(child, name))
        child.FIRST_SPEAKS_S, child.OTHERS_END_US_S = 0.5, 3.0
        if rank == 0:
            child.work(run.id, run.attempt)
        elif child.follow(run.id, run.attempt):
            raise RuntimeError("the second process failed")

    in_two(work, folder)
    found: Run = read(Run, run.id)
    return found
