"""Starting an experiment, and doing again what failed."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.db import get, now
from app.errors import Conflict, Invalid
from app.experiments.files import check_seeds, read_experiment, read_outline
from app.experiments.models import Experiment, Step
from app.runs.models import Run
from app.runs.queue import cancel, resume
from app.runs.recipe import sha256_of


def start_experiment(
    session: Session, project_id: int, text: str, *, seeds: Sequence[int] = (), scale: str = "",
    variables: Mapping[str, str] | None = None, account_id: int | None = None, file: str = "experiment",
    form_key: str | None = None,
) -> Experiment:  # fmt: skip
    """Freezes the file and stores its steps; the workers' ticker launches them. Raises Invalid.

    Without seeds or a scale, those that the file names are used. The same form_key twice is the same experiment.
    """
    if form_key and (same := find_by_form(session, project_id, form_key)):
        return same
    given = {name: value for name, value in (variables or {}).items() if value}
    read, steps = read_experiment(text, file=file, scale=scale, variables=given)
    try:
        wanted = check_seeds(list(seeds)) if seeds else read.seeds
    except ValueError as error:
        raise Invalid(f"{error}.", {"seeds": [str(error)]}) from error
    experiment = Experiment(
        project_id=project_id, name=read.name, question=read.question, file=text, sha256=sha256_of(text),
        scale=scale or read.scale, seeds=wanted, variables=given, account_id=account_id, form_key=form_key,
    )  # fmt: skip
    session.add(experiment)
    session.flush()
    for place, step in enumerate(steps):
        for seed in [0] if step.is_shared else wanted:
            session.add(Step(
                experiment_id=experiment.id, name=step.name, position=place, arm=step.arm, seed=seed,
                recipe=step.recipe, needs=step.needs,
            ))  # fmt: skip
    session.flush()
    return experiment


def find_by_form(session: Session, project_id: int, form_key: str) -> Experiment | None:
    """The experiment that this very form made before; raises Conflict where that was another project's."""
    same = session.exec(select(Experiment).where(Experiment.form_key == form_key)).first()
    if same is not None and same.project_id != project_id:
        raise Conflict("This form was already sent for another project: reload the page.")
    return same


def find_same(
    session: Session, project_id: int, text: str, *, seeds: Sequence[int], scale: str = "",
    variables: Mapping[str, str] | None = None,
) -> Experiment | None:  # fmt: skip
    """The project's newest experiment with this file, scale, seeds and variables."""
    scale = scale or read_outline(text, "experiment").scale
    same = (
        select(Experiment)
        .where(Experiment.project_id == project_id, Experiment.sha256 == sha256_of(text), Experiment.scale == scale)
        .order_by(col(Experiment.id).desc())
    )
    for row in session.exec(same):
        if row.seeds == list(seeds) and row.variables == dict(variables or {}):
            return row
    return None


def retry_experiment(session: Session, experiment: Experiment) -> None:
    """Resumes the runs of steps that came to no end and puts what was skipped back in line; raises Conflict."""
    steps = session.exec(select(Step).where(Step.experiment_id == experiment.id, Step.status != "done")).all()
    if experiment.status == "running" or not steps:
        raise Conflict("Nothing here has failed or was cancelled: there is nothing to try again.")
    for step in steps:
        run = session.get(Run, step.run_id) if step.run_id else None
        if run is not None and run.is_cancel_asked and run.is_live:
            raise Conflict(f"Run {run.id} is still being cancelled: try again in a moment.")
        if run is not None and run.status in {"failed", "cancelled"}:
            resume(session, run)
        step.status = "launched" if run is not None else "waiting"
        step.error = ""
    experiment.status, experiment.ended_at = "running", None


def cancel_experiment(session: Session, experiment: Experiment) -> None:
    """Stops the experiment's own runs and launches no more; what is done stays. Raises Conflict."""
    changed = session.execute(
        sa.update(Experiment)
        .where(col(Experiment.id) == experiment.id, col(Experiment.status) == "running")
        .values(status="cancelled", ended_at=now())
    )
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict(f"This experiment is already {experiment.status}.")
    session.refresh(experiment)
    for step in session.exec(select(Step).where(Step.experiment_id == experiment.id)).all():
        if step.status == "waiting":
            step.status, step.error = "skipped", "The experiment was cancelled before this step began."
        elif step.status == "launched" and step.is_reused:
            step.status, step.error = "skipped", "The experiment was cancelled; the run goes on for whoever started it."
        elif step.status == "launched":
            run = get(session, Run, step.run_id or 0)
            if run.is_live:
                cancel(session, run)
            if not run.is_live and run.status != "done":  # the ticker follows what is still stopping
                step.status, step.error = "failed", "The experiment was cancelled."
