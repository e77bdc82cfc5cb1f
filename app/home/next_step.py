"""What to do next in a project: the first step is the button, the ones after it stand beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.db import table_of
from app.experiments.models import Experiment, Step, state_of
from app.grading.models import Grade, GradeItem, Grading
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.review.models import Queue
from app.review.pages import labels_called
from app.runs.models import LIVE, Run, RunIo
from app.training.models import Snapshot


@dataclass(frozen=True)
class NextStep:
    """Something sensible to do now."""

    text: str
    label: str
    url: str


def find_next_steps(session: Session, project: Project) -> list[NextStep]:
    """The next sensible step and the two after it; whoever presses only the first comes to the report."""
    return list(islice(_steps(session, project), 3))


def _steps(session: Session, project: Project) -> Iterator[NextStep]:
    root = f"/p/{project.slug}"
    yield from _going_on(session, project, root)
    yield from _labels(session, project, root)
    yield from _training(session, project, root)
    yield from _people(session, project, root)
    newest = _newest(session, Experiment, project)
    url = f"{root}/report/{newest.id}" if newest is not None else f"{root}/report"
    yield NextStep("Everything here is measured: what helped, by how much, and how sure it is.", "Open the report", url)


def _newest(session: Session, model: type[Any], project: Project, *where: Any) -> Any:
    table = table_of(model)
    query = select(model).where(model.project_id == project.id, *where).order_by(model.id.desc())
    if "archived_at" in table.c:
        query = query.where(model.archived_at.is_(None))
    return session.exec(query.limit(1)).first()


def _new(root: str, kind: str, **fields: Any) -> str:
    return f"{root}/new/{kind}?{urlencode(fields)}"


def _going_on(session: Session, project: Project, root: str) -> Iterator[NextStep]:
    """What runs now, and what has failed."""
    experiment = _newest(session, Experiment, project)
    if experiment is not None and state_of(session, experiment) == "paused":
        text = f"“{experiment.name}” is paused: a run waits for people to look at it, and to resume it."
        yield NextStep(text, "See which", f"{root}/experiments/{experiment.id}")
    elif experiment is not None and experiment.status == "running":
        states = session.exec(select(Step.status).where(Step.experiment_id == experiment.id)).all()
        text = f"“{experiment.name}” is running: {states.count('done')} of {len(states)} steps are done."
        yield NextStep(text, "Watch it", f"{root}/experiments/{experiment.id}")
    elif experiment is not None and experiment.status == "failed":
        text = f"“{experiment.name}” ended with failed steps. See why, and try them again."
        yield NextStep(text, "See what failed", f"{root}/experiments/{experiment.id}")
    else:
        live = _newest(session, Run, project, col(Run.status).in_(LIVE))
        newest = _newest(session, Run, project)
        if live is None and newest is not None and newest.is_paused:
            text = f"Run {newest.id} ({newest.title}) is paused: look at what it hands over, then resume it."
            yield NextStep(text, "See why", f"{root}/runs/{newest.id}")
        if live is not None:
            yield NextStep(f"Run {live.id} ({live.title}) is {live.status}.", "Watch it", f"{root}/runs/{live.id}")


def _labels(session: Session, project: Project, root: str) -> Iterator[NextStep]:
    """From nothing to verdicts."""
    prompts = _newest(session, PromptSet, project, PromptSet.state == "ready")
    base = _newest(session, Checkpoint, project, col(Checkpoint.method).in_(["base", "imported"]))
    pairs, verdicts = _newest(session, PairSet, project), _newest(session, VerdictSet, project)
    if prompts is None and pairs is None:
        demo = f"{root}/experiments/new?file=demo"
        text = "Nothing is here yet. The demo runs the whole study on a tiny model in minutes."
        yield NextStep(text, "Start the demo", demo)
        yield NextStep("Or bring prompts of your own.", "Import prompts", f"{root}/prompts/import")
    elif base is None:
        text = "There is no base model yet: a Hugging Face id or a folder on this server."
        yield NextStep(text, "Import a checkpoint", _new(root, "import_checkpoint"))
    elif pairs is None:
        text = f"{prompts.n:,} prompts have no completions yet: sample pairs from {base.name or 'the base model'}."
        url = _new(root, "generate", prompt_set=prompts.id, checkpoint=base.id)
        yield NextStep(text, "Generate pairs", url)
    elif verdicts is None:
        judge = _newest(session, Judge, project, Judge.kind != "imported")
        if judge is None:
            text = f"{pairs.n:,} pairs have no verdict, and there is no judge yet."
            yield NextStep(text, "Add a judge", _new(root, "new_judge", judge_kind="rule"))
        else:
            url = _new(root, "judge", pair_set=pairs.id, judge=judge.id)
            yield NextStep(f"{pairs.n:,} pairs have no verdict.", "Judge them", url)


def _training(session: Session, project: Project, root: str) -> Iterator[NextStep]:
    """From verdicts to scored checkpoints."""
    verdicts = _newest(session, VerdictSet, project)
    if verdicts is None:
        return
    pairs = session.get(PairSet, verdicts.pair_set_id)
    snapshot = _newest(session, Snapshot, project, Snapshot.verdict_set_id == verdicts.id)
    freeze = _new(root, "snapshot", verdict_set=verdicts.id)
    if snapshot is None:
        text = f"{verdicts.n:,} {labels_called(session, verdicts)} can be trained on once they are frozen."
        yield NextStep(text, "Freeze preferences", freeze)
        return
    if pairs is not None and snapshot.labels_version != pairs.labels_version:
        text = "People have changed labels since the preferences were frozen: what was trained on them is stale."
        yield NextStep(text, "Freeze them again", freeze)
        return
    base = _newest(session, Checkpoint, project, col(Checkpoint.method).in_(["base", "imported"]))
    for kind, fields in (("sft", ["start"]), ("dpo", ["start", "reference"])):
        if base is not None and _trained_on(session, snapshot, kind) is None:
            url = _new(root, kind, snapshot=snapshot.id, **dict.fromkeys(fields, base.id))
            text = f"Nothing has been trained by {kind.upper()} on the newest preferences."
            yield NextStep(text, f"Train {kind.upper()}", url)
    unscored = _unscored(session, project)
    if unscored is not None:
        prompts = _newest(session, PromptSet, project, PromptSet.state == "ready")
        fields_ = {"checkpoint": unscored.id, "benchmark": "strict_format", "prompt_set": prompts.id if prompts else ""}
        text = f"{unscored.name or f'Checkpoint {unscored.id}'} has not been measured."
        yield NextStep(text, "Benchmark it", _new(root, "benchmark", **fields_))


def _trained_on(session: Session, snapshot: Snapshot, kind: str) -> int | None:
    """A run of this kind that read the snapshot."""
    query = (
        sa.select(col(Run.id)).join(RunIo, col(RunIo.run_id) == col(Run.id))
        .where(col(Run.kind) == kind, col(RunIo.noun) == "snapshot", col(RunIo.ref_id) == snapshot.id)
        .where(~col(RunIo.is_output))
    )  # fmt: skip
    return session.execute(query.limit(1)).scalar()


def _unscored(session: Session, project: Project) -> Checkpoint | None:
    """The oldest policy that no benchmark has read."""
    read = (
        sa.select(col(RunIo.ref_id)).join(Run, col(Run.id) == col(RunIo.run_id))
        .where(col(Run.project_id) == project.id, col(Run.kind) == "benchmark")
        .where(col(RunIo.noun) == "checkpoint", ~col(RunIo.is_output))
    )  # fmt: skip
    query = select(Checkpoint).where(col(Checkpoint.project_id) == project.id, col(Checkpoint.role) == "policy")
    query = query.where(col(Checkpoint.archived_at).is_(None), col(Checkpoint.id).not_in(read))
    return session.exec(query.order_by(col(Checkpoint.id)).limit(1)).first()


def _people(session: Session, project: Project, root: str) -> Iterator[NextStep]:
    """What waits for people. It never blocks anything, so it comes after the machine's work."""
    verdicts = _newest(session, VerdictSet, project)
    queue = _newest(session, Queue, project, Queue.kind == "audit")
    if verdicts is not None and queue is None:
        labels = labels_called(session, verdicts)
        text = f"Nobody has looked at the {labels}: draw twenty at random for a person to answer."
        yield NextStep(text, "Draw an audit", _new(root, "audit", verdict_set=verdicts.id))
    if queue is not None and queue.closed_at is None and queue.n_answered < queue.n * queue.overlap:
        places = queue.n * queue.overlap
        text = f"{queue.n_answered} of {places} audit answers are given: a few minutes of a person's time."
        yield NextStep(text, "Answer the audit", f"{root}/review/{queue.id}")
    grading = _newest(session, Grading, project)
    policies = select(sa.func.count(col(Checkpoint.id))).where(
        Checkpoint.project_id == project.id, Checkpoint.role == "policy"
    )
    if grading is None and session.exec(policies).one() > 1:
        text = "Nobody has compared the checkpoints blind, side by side."
        yield NextStep(text, "Prepare a grading", _new(root, "grading"))
    if grading is not None and grading.closed_at is None:
        graded = (
            select(sa.func.count(sa.distinct(col(Grade.item_id))))
            .join(GradeItem, col(GradeItem.id) == col(Grade.item_id))
            .where(GradeItem.grading_id == grading.id)
        )
        done = session.exec(graded).one()
        if done < grading.planned_n:
            text = f"{done} of {grading.planned_n} items are graded, blind and side by side."
            yield NextStep(text, "Grade", f"{root}/grade/{grading.id}")
