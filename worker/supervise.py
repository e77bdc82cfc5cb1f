"""Claims runs, spawns a child process for each, renews its lease, passes on cancels and SIGTERM, and notes deaths."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from functools import cache
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlmodel import col, select

from app.config import settings
from app.db import db_now, reading, transaction
from app.experiments.advance import advance_all
from app.runs.models import Run, Worker
from app.runs.queue import Fenced, claim, fence, finish, give_back, renew, runnable, send_wake_up, sweep
from worker.launch import command_of, environment_of, gpu_slots, visible_gpus

log = logging.getLogger(__name__)

POLL_S = 0.1
THREADS = 8  # runs a process for `io,cpu` watches at once; celery's concurrency is the same
BEAT_S = 0.4  # a beat also learns of a cancel
GRACE_S = 0.4  # a child asks four times a second itself; one in a long step is ended, and resumes from its last save
LONG_TICK_S = 5.0  # a busy machine alone does not take longer between two ticks


@cache
def worker_name() -> str:
    """This worker process's name."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Supervisor:
    """The children of one worker process."""

    def __init__(self, queues: list[str]) -> None:
        self.queues = queues
        self.is_stopping = threading.Event()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._ticked_at: float | None = None
        self._sweep_from = 0.0

    def room(self) -> int:
        """How many more runs this process could take now."""
        with self._lock:
            return (len(gpu_slots()) if "gpu" in self.queues else THREADS) - len(self._children)

    def may_sweep(self, clock: float) -> bool:
        """Not just after this machine slept or the database was away: who holds a lease first gets time to renew it.

        `clock` is the database's; a gap between two ticks on it tells of either.
        """
        lease_s = settings().lease_s
        if self._ticked_at is not None and clock - self._ticked_at > max(lease_s / 2, LONG_TICK_S):
            self._sweep_from = clock + lease_s
        self._ticked_at = clock
        return clock >= self._sweep_from

    def run_next(self) -> bool:
        """Claims one run and sees it through; False when there was nothing to claim."""
        if self.is_stopping.is_set():
            return False
        run = self._claim()
        if run is None:
            return False
        try:
            self._see_through(run)
        except Fenced:
            log.warning("run %s attempt %s was taken over", run.id, run.attempt)
        return True

    def _claim(self) -> Run | None:
        for slot in gpu_slots() if "gpu" in self.queues else (None,):
            try:
                with transaction() as session:
                    run = claim(session, self.queues, worker_name(), slot)
                    if run is not None:
                        return run
            except sa.exc.IntegrityError:
                continue  # the slot was taken between the look and the write
        return None

    def _see_through(self, run: Run) -> None:
        run_id, attempt = run.id, run.attempt
        environ = environment_of(run.kind, run.slot, os.environ)
        output = settings().folder("runs", run_id) / "output.log"
        began = time.monotonic()
        with output.open("ab") as sink:
            child = subprocess.Popen(
                command_of(run.kind, run_id, attempt),
                stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=environ, start_new_session=True,
            )  # fmt: skip
        with self._lock:
            self._children[run_id] = child
        try:
            self._wait(run_id, attempt, child)
        finally:
            with self._lock:
                self._children.pop(run_id, None)
            _kill(child)
        seconds = time.monotonic() - began
        while True:
            try:
                self._note_end(run_id, attempt, child.returncode, output, seconds)
                return
            except sa.exc.OperationalError:
                log.warning("run %s: the database does not answer; noting its end again", run_id)
            if self.is_stopping.wait(1.0):
                return  # its lease will run out

    def _wait(self, run_id: int, attempt: int, child: subprocess.Popen[bytes]) -> None:
        """Beats until the child ends; ends it when the run is cancelled, taken over, or this worker is going away."""
        beat, deadline = 0.0, None
        while child.poll() is None:
            time.sleep(POLL_S)
            if time.monotonic() - beat > min(settings().lease_s / 3, BEAT_S):
                beat = time.monotonic()
                try:
                    with transaction() as session:
                        is_asked = renew(session, run_id, attempt)
                except Fenced:
                    # either the child has just ended the run itself, or another attempt took it over
                    _wait_briefly(child)
                    return
                except sa.exc.OperationalError:
                    log.warning("run %s: the database does not answer; beating again", run_id)
                    continue
                if is_asked and deadline is None:
                    deadline = time.monotonic() + GRACE_S
            if self.is_stopping.is_set():
                return
            if deadline and time.monotonic() > deadline:
                log.warning("run %s did not stop within %s s of being asked: ended", run_id, GRACE_S)
                return

    def _note_end(self, run_id: int, attempt: int, code: int | None, output: Path, seconds: float) -> None:
        """A child that ended its run has nothing to note; otherwise it died, or was ended by us, and could not say for
        how many `seconds` it had held its slot."""
        with transaction() as session:
            run = session.exec(select(Run).where(Run.id == run_id)).one()
            if run.attempt != attempt or run.status != "running":
                return
            fence(session, run_id, attempt)
            session.refresh(run)
            run.cost = {**run.cost, "wall_seconds": run.cost.get("wall_seconds", 0) + seconds}
            session.flush()
            if run.is_cancel_asked:
                finish(session, run_id, attempt, "cancelled")
            elif self.is_stopping.is_set():
                give_back(session, run_id, attempt, is_death=False, why="its worker was stopped")
            else:
                give_back(session, run_id, attempt, is_death=True, why=f"{_cause(code)}\n{_tail(output)}".strip())

    def stop(self) -> None:
        """No new claims; children are ended and their runs queued again."""
        self.is_stopping.set()


def _wait_briefly(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        log.warning("process %s outlived its run: ended", child.pid)


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.stdin:
        child.stdin.close()  # every process of the run ends at this
    if child.poll() is None:
        # Those that accelerate launched have sessions of their own: the group alone would leave them.
        launched = psutil.Process(child.pid).children(recursive=True)
        os.killpg(child.pid, signal.SIGKILL)
        for one in launched:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        child.wait()


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9): often out of memory"
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}"
    return f"its process ended with code {code} without ending the run"


def _tail(path: Path, n: int = 2000) -> str:
    data = path.read_bytes() if path.exists() else b""
    return data[-n:].decode(errors="replace")


def beat(queues: list[str]) -> float:
    """Writes this worker's row; returns the time on the database's clock."""
    with transaction() as session:
        row = session.exec(select(Worker).where(Worker.name == worker_name())).first()
        row = row or Worker(name=worker_name(), queues=",".join(queues))
        row.slots = ",".join(gpu_slots()) if "gpu" in queues else ""
        n_gpus = len(visible_gpus())
        row.device = f"{n_gpus} GPU" if n_gpus else f"CPU, {os.cpu_count()} cores"
        row.beat_at = db_now(session)
        session.add(row)
    return row.beat_at


def tick(supervisor: Supervisor) -> None:
    """Once a second: beat, sweep lost leases, send again what is queued and has room here, advance experiments.

    Without the bound by room, wake-ups would pile up in the broker while every worker is busy.
    """
    queues = supervisor.queues
    if supervisor.may_sweep(beat(queues)):
        with transaction() as session:
            sweep(session)
    with reading() as session:
        ready = runnable(queues).limit(max(0, supervisor.room())).with_only_columns(col(Run.id), col(Run.queue))
        waiting = session.execute(ready).all()
    for run_id, queue in waiting:
        send_wake_up(run_id, queue)
    advance_all()
