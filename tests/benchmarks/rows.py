"""A project with checkpoints and prompts of its own, and benchmark runs done by the real worker function."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from app.accounts.logins import make_account
from app.benchmarks.models import Score
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import get, reading, transaction
from app.projects.models import Project
from app.projects.projects import make_project
from app.prompts.demo_corpus import list_prompts
from app.prompts.models import Prompt, PromptSet
from app.runs.models import LIVE, Run
from app.runs.queue import claim, launch
from tests.worker.tiny import write_tiny
from worker.child import work


def fresh_project() -> Project:
    """A project called demo."""
    with transaction() as session:
        return make_project(session, "demo", "Demo", make_account(session, "owner", "correct horse"))


def stored_checkpoint(
    project: Project, place: Path, name: str = "base", method: str = "base", role: str = "policy"
) -> int:
    """The id of a checkpoint that lies in a folder of its own."""
    with transaction() as session:
        row = Checkpoint(project_id=project.id, name=name, method=method, source=str(place), role=role)
        session.add(row)
        session.flush()
        return row.id


def tiny_checkpoint(project: Project, seed: int = 1, name: str = "base", method: str = "base") -> int:
    """A Llama of 30,000 weights that has seen the demo's corpus for a moment."""
    weights = write_tiny(settings().folder("tiny", seed) / "model", seed)
    return stored_checkpoint(project, Path(weights.place), name, method)


def demo_prompts(session: Session, project: Project, n: int, split: str = "test") -> PromptSet:
    """The first n of the demo's prompts of a split."""
    made = PromptSet(project_id=project.id, name=f"demo {split}", state="ready", n=n, sha256="5" * 64)
    session.add(made)
    session.flush()
    for place, row in enumerate([row for row in list_prompts() if row["split"] == split][:n]):
        text = row["messages"][0]["content"]
        session.add(
            Prompt(
                set_id=made.id, position=place, messages=row["messages"], reference=row["reference"], split=split,
                grp=row["group"], category=row["category"], sha256=hashlib.sha256(text.encode()).hexdigest(),
            )
        )  # fmt: skip
    session.flush()
    return made


def score(project: Project, **values: Any) -> Run:
    """A benchmark run from its recipe, done to its end in this process."""
    with transaction() as session:
        run_id = launch(session, BenchmarkRecipe(**values), project_id=project.id).id
    return do(run_id)


def do(run_id: int) -> Run:
    """Does a queued run."""
    with transaction() as session:
        run = claim(session, ["gpu"], "test worker", None)
        assert run is not None and run.id == run_id
    work(run.id, run.attempt)
    with reading() as session:
        found = get(session, Run, run_id)
    assert found.status not in LIVE
    return found


def scores_of(run: Run, metric: str = "") -> Sequence[Score]:
    """What a run has stored."""
    with reading() as session:
        query = select(Score).where(Score.run_id == run.id)
        return session.exec(query.where(Score.metric == metric) if metric else query).all()
