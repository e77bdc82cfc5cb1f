"""The pipeline as the home page shows it: what each stage has, and what ran last there."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.experiments.models import Experiment
from app.grading.models import Grade, GradeItem, Grading
from app.home.rail import STAGES
from app.judging.models import VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.review.models import Queue
from app.runs.models import Run
from app.training.models import Snapshot
from app.training.pages import METHODS

TRAINED = tuple(METHODS)


@dataclass(frozen=True)
class Stage:
    """One stage of the row: a figure, a line about it, and the last run of its kinds."""

    label: str
    url: str
    count: int
    about: str
    last: Run | None


def read_stages(session: Session, project: Project) -> list[Stage]:
    """The stages from Prompts to Report."""
    figures = _figures(session, project.id)
    newest = select(sa.func.max(Run.id)).where(Run.project_id == project.id).group_by(col(Run.kind)).scalar_subquery()
    last: dict[str, Run] = {run.kind: run for run in session.exec(select(Run).where(col(Run.id).in_(newest)))}
    stages = []
    for label, below, _, kinds in STAGES:
        if label in figures:
            count, about = figures[label]
            runs = [last[kind] for kind in kinds if kind in last]
            latest = max(runs, key=lambda run: run.id) if runs else None
            stages.append(Stage(label, f"/p/{project.slug}/{below}", count, about, latest))
    return stages


def _figures(session: Session, project_id: int) -> dict[str, tuple[int, str]]:
    """label → a count and what it counts, in one query."""

    def one(value: Any, *where: Any) -> Any:
        return sa.select(sa.func.coalesce(value, 0)).where(*where).scalar_subquery()

    def ids(model: Any, *where: Any) -> Any:
        return sa.select(model.id).where(*where)

    count, total = sa.func.count(), sa.func.sum
    queues = Queue.project_id == project_id
    prompts, pairs, verdicts = (
        sa.and_(col(kind.project_id) == project_id, col(kind.archived_at).is_(None))
        for kind in (PromptSet, PairSet, VerdictSet)
    )
    gradings, runs = Grading.project_id == project_id, Run.project_id == project_id
    items = ids(GradeItem, col(GradeItem.grading_id).in_(ids(Grading, gradings)))
    labels = col(VerdictSet.n_a) + VerdictSet.n_b + VerdictSet.n_tie + VerdictSet.n_null
    row = session.execute(sa.select(
        one(total(PromptSet.n), prompts), one(count, prompts),
        one(total(PairSet.n), pairs), one(count, pairs),
        one(total(labels), verdicts),
        one(total(VerdictSet.n_null), verdicts),
        one(total(labels), verdicts, col(VerdictSet.run_id).in_(ids(Run, runs, Run.kind == "import_pairs"))),
        one(total(Queue.n_answered), queues), one(total(Queue.n), queues), one(total(PairSet.n_overridden), pairs),
        one(count, Checkpoint.project_id == project_id, col(Checkpoint.method).in_(TRAINED),
            col(Checkpoint.archived_at).is_(None)),
        one(count, Snapshot.project_id == project_id),
        one(count, runs, Run.kind == "benchmark", Run.status == "done"),
        one(sa.func.count(sa.distinct(col(Grade.item_id))), col(Grade.item_id).in_(items), Grade.choice != "skip"),
        one(total(Grading.planned_n), gradings),
        one(count, Experiment.project_id == project_id, Experiment.status == "done"),
    )).one()  # fmt: skip
    (n_prompts, n_prompt_sets, n_pairs, n_pair_sets, n_labels, n_unreadable, n_imported, n_answered, n_drawn,
     n_overridden, n_trained, n_snapshots, n_scored, n_graded, n_planned, n_finished) = map(int, row)  # fmt: skip
    return {
        "Prompts": (n_prompts, f"prompts in {_sets(n_prompt_sets)}"),
        "Pairs": (n_pairs, f"pairs in {_sets(n_pair_sets)}"),
        "Judge": (n_labels, _labels_said(n_labels, n_imported, n_unreadable)),
        "Review": (n_answered, f"of {n_drawn:,} drawn pairs answered, {n_overridden:,} overridden"),
        "Train": (n_trained, f"trained checkpoints, {n_snapshots:,} frozen snapshot{'' if n_snapshots == 1 else 's'}"),
        "Benchmarks": (n_scored, f"benchmark run{'' if n_scored == 1 else 's'} done"),
        "Grade": (n_graded, f"of {n_planned:,} items graded"),
        "Report": (n_finished, f"finished experiment{'' if n_finished == 1 else 's'}"),
    }


def _labels_said(n: int, n_imported: int, n_unreadable: int) -> str:
    """What the labels of the project are: those of a file are no judge's verdicts."""
    if n_imported and n_imported == n:
        return f"imported labels, {n_unreadable:,} of them unreadable"
    imported = f"{n_imported:,} of them imported labels, " if n_imported else ""
    return f"verdicts, {imported}{n_unreadable:,}{'' if imported else ' of them'} unreadable"


def _sets(n: int) -> str:
    return f"{n:,} set{'' if n == 1 else 's'}"
