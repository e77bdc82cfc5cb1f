"""Real worker processes on a real broker: cancel, kill -9, SIGTERM, and a broker that is away."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa
from sqlmodel import select

from app import db
from app.checkpoints.models import Checkpoint
from app.experiments.models import Experiment, Step
from app.launcher import worker_command
from app.projects.models import Project
from app.runs import queue
from app.runs.models import LogLine, Run, Worker
from app.training.recipes import DemoBaseRecipe
from tests.conftest import forget_settings

LEASE_S = 2


@pytest.fixture
def start_worker(
    project: Project, redis_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], psutil.Process]]:
    """Starts a worker for the gpu queue, as often as asked; stops what is left at the end."""
    monkeypatch.setenv("PREFLAB_BROKER_URL", redis_url)
    monkeypatch.setenv("PREFLAB_LEASE_S", str(LEASE_S))
    monkeypatch.setenv("PREFLAB_WORKER_QUEUES", "gpu")
    forget_settings()
    started: list[psutil.Process] = []

    def start() -> psutil.Process:
        log = (data_dir / f"worker-{len(started)}.log").open("wb")
        process = subprocess.Popen(worker_command("gpu"), cwd=db.ROOT, stdout=log, stderr=log, env=dict(os.environ))
        started.append(psutil.Process(process.pid))
        return started[-1]

    yield start
    for process in started:
        if process.is_running():
            for one in [*process.children(recursive=True), process]:
                one.kill()
            process.wait(10)


def launch(project: Project, steps: int) -> int:
    recipe = DemoBaseRecipe(
        steps=steps, batch_size=4, hidden=16, heads=2, mlp=16, layers=1, vocabulary=300, positions=128
    )
    with db.transaction() as session:
        return queue.launch(session, recipe, project_id=project.id).id


def read(run_id: int) -> Run:
    with db.reading() as session:
        return db.get(session, Run, run_id)


def wait(what: Callable[[], bool], seconds: float = 60) -> float:
    """Waits until `what` holds and returns how long that took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def child_of(worker: psutil.Process) -> psutil.Process:
    """The process that does the worker's run."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [one for one in worker.children(recursive=True) if "worker.child" in one.cmdline()]
        return bool(found)

    wait(look, seconds=20)
    return found[0]


def test_a_killed_child_and_a_killed_worker_cost_attempts_and_store_nothing_twice(
    project: Project, start_worker: Callable[[], psutil.Process]
) -> None:
    run_id = launch(project, steps=2000)
    worker = start_worker()
    wait(lambda: read(run_id).done > 0)
    child_of(worker).kill()
    wait(lambda: read(run_id).attempt == 2)
    assert read(run_id).cost["wall_seconds"] > 0  # what was killed had held its device, too
    orphan = child_of(worker)
    worker.kill()
    worker.wait(10)
    orphan.wait(5)  # stdin's end tells it that its supervisor is gone
    start_worker()
    wait(lambda: read(run_id).attempt == 3, seconds=60)
    wait(lambda: read(run_id).status == "done", seconds=90)
    assert read(run_id).deaths == 2
    with db.reading() as session:
        assert len(session.exec(select(Checkpoint).where(Checkpoint.run_id == run_id)).all()) == 1
        assert queue.outputs(session, run_id, "checkpoint") != []
        why = [line.text for line in session.exec(select(LogLine).where(LogLine.level == "warning")).all()]
    assert "killed (signal 9)" in why[0] and "lease ran out" in why[1]


def test_cancel_stops_a_running_child_within_a_second(
    project: Project, start_worker: Callable[[], psutil.Process]
) -> None:
    run_id = launch(project, steps=6000)
    worker = start_worker()
    wait(lambda: read(run_id).done > 0)
    child = child_of(worker)
    with db.transaction() as session:
        queue.cancel(session, db.get(session, Run, run_id))
    took = wait(lambda: read(run_id).status == "cancelled", seconds=20)
    child.wait(10)
    print(f"cancelled after {took:.2f} s")
    following = launch(project, steps=1)
    wait(lambda: read(following).status == "done")  # the slot is free again


def test_a_worker_told_to_stop_gives_its_run_back_at_no_cost(
    project: Project, start_worker: Callable[[], psutil.Process]
) -> None:
    run_id = launch(project, steps=6000)
    worker = start_worker()
    wait(lambda: read(run_id).done > 0)
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    run = read(run_id)
    assert run.status == "queued" and run.deaths == 0 and run.slot is None


def test_a_machine_that_slept_goes_on_with_the_same_attempt(
    project: Project, start_worker: Callable[[], psutil.Process]
) -> None:
    run_id = launch(project, steps=6000)
    worker = start_worker()
    wait(lambda: read(run_id).done > 0)
    child = child_of(worker)
    for _ in range(3):
        for process in (worker, child):
            process.suspend()
        time.sleep(6)  # longer than the lease, and than any tick
        done = read(run_id).done
        for process in (worker, child):
            process.resume()
        wait(lambda done=done: read(run_id).done > done)  # type: ignore[misc]
    assert (read(run_id).attempt, read(run_id).deaths) == (1, 0)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)  # a file is never away
def test_a_database_that_was_away_costs_one_attempt_at_most(
    project: Project, start_worker: Callable[[], psutil.Process], database: str, request: pytest.FixtureRequest
) -> None:
    run_id = launch(project, steps=2000)
    start_worker()
    wait(lambda: read(run_id).done > 0)
    name = database.rpartition("/")[2]
    with psycopg.connect(request.getfixturevalue("postgres_server") + "postgres", autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        time.sleep(7)
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    forget_settings()
    wait(lambda: read(run_id).status == "done", seconds=120)
    assert read(run_id).deaths <= 1


def test_the_ticker_outlives_an_experiment_it_cannot_move_on(
    project: Project, start_worker: Callable[[], psutil.Process]
) -> None:
    with db.transaction() as session:
        experiment = Experiment(project_id=project.id, name="broken", file="", sha256="")
        session.add(experiment)
        session.flush()
        session.add(Step(experiment_id=experiment.id, name="x", position=0, recipe={"kind": "no_such_kind"}))
    start_worker()

    def beat_at() -> float:
        with db.reading() as session:
            return session.exec(select(Worker.beat_at)).first() or 0

    wait(lambda: beat_at() > 0)
    first = beat_at()
    wait(lambda: beat_at() > first + 3, seconds=20)


def test_a_worker_refuses_a_schema_it_does_not_know(
    project: Project, start_worker: Callable[[], psutil.Process], data_dir: Path
) -> None:
    with db.transaction() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = 'later'"))
    assert start_worker().wait(60) != 0
    assert "preflab db upgrade" in (data_dir / "worker-0.log").read_text()


def test_without_a_broker_a_launch_stands_and_is_done_once_it_is_back(
    project: Project, start_worker: Callable[[], psutil.Process], monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    monkeypatch.setenv("PREFLAB_BROKER_URL", "redis://127.0.0.1:1/0")
    forget_settings()
    start = time.monotonic()
    run_id = launch(project, steps=1)
    assert time.monotonic() - start < 10
    monkeypatch.setenv("PREFLAB_BROKER_URL", redis_url)
    forget_settings()
    start_worker()
    wait(lambda: read(run_id).status == "done")
