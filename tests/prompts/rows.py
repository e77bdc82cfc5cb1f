"""Runs of any kind, done to their end in this process by the real worker function."""

from typing import Any

from app.db import get, reading, transaction
from app.recipes import read_recipe
from app.runs.models import QUEUES, Run
from app.runs.queue import claim, launch, outputs
from worker.child import work


def start(project_id: int, kind: str, **values: Any) -> Run:
    """A run that a worker has claimed and not begun."""
    with transaction() as session:
        run_id = launch(session, read_recipe({"kind": kind, **values}), project_id=project_id).id
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
    assert run is not None and run.id == run_id
    return run


def do(project_id: int, kind: str, **values: Any) -> Run:
    """The run as it ended."""
    run = start(project_id, kind, **values)
    work(run.id, run.attempt)
    return again(run.id)


def again(run_id: int) -> Run:
    """The run as it stands now."""
    with reading() as session:
        return get(session, Run, run_id)


def made(run: Run, noun: str) -> int:
    """The id of the one row called `noun` that a run made."""
    with reading() as session:
        (key,) = outputs(session, run.id, noun)
    return key
