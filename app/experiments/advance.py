"""Moves experiments on: launches steps whose needs are done, reuses finished runs, and ends the experiment.

A step whose run is paused is open: what needs it waits, and goes on by itself once people have resumed the run.

Called once a second by every worker's ticker. Whoever changes a step first has it (an UPDATE … WHERE status), so any
number of tickers may run at once.
"""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from app import __version__
from app.db import get, now, reading, transaction
from app.errors import AppError, Invalid
from app.experiments.models import Experiment, Step
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.files import resolve_path
from app.prompts.hub_names import read_hub_name
from app.recipes import read_recipe, recipe_class
from app.recipes.references import find_row
from app.runs.models import LIVE, SAID, Run, RunIo
from app.runs.queue import launch, outputs
from app.runs.recipe import Recipe, noun_of, sha256_of
from app.training.models import Snapshot

ENDED = {"done", "failed", "skipped"}


def advance_all() -> None:
    """One pass over every running experiment."""
    with reading() as session:
        running = session.exec(select(Experiment.id).where(Experiment.status == "running")).all()
        left = session.execute(_left_over()).all()
    for step, run in left:
        _follow(step, run)
    broken: list[Exception] = []
    for experiment_id in running:
        try:
            advance(experiment_id)
        except Exception as error:  # noqa: BLE001  one that breaks must not hold up the others; the ticker logs it
            broken.append(error)
    if broken:
        raise ExceptionGroup("experiments that could not be moved on", broken)


def _left_over() -> Any:
    """Steps of cancelled experiments whose run has ended since."""
    return (
        sa.select(Step, Run)
        .join(Run, col(Run.id) == col(Step.run_id))
        .join(Experiment, col(Experiment.id) == col(Step.experiment_id))
        .where(col(Experiment.status) == "cancelled", col(Step.status) == "launched", col(Run.status).not_in(LIVE))
    )


def advance(experiment_id: int) -> None:
    """One pass over an experiment: each change of a step is a transaction of its own."""
    with reading() as session:
        steps = list(session.exec(select(Step).where(Step.experiment_id == experiment_id).order_by(col(Step.position))))
        run_ids = [step.run_id for step in steps if step.status == "launched"]
        runs = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(run_ids)))}
    for step in steps:
        if step.status == "launched" and step.run_id in runs and not runs[step.run_id].is_paused:
            _follow(step, runs[step.run_id])
    by_key = {(step.name, step.seed): step for step in steps}
    for step in steps:
        if step.status == "waiting":
            needs = [by_key.get((name, step.seed)) or by_key[name, 0] for name in step.needs]
            _take_turn(experiment_id, step, needs)
    if all(step.status in ENDED for step in steps):
        _end(experiment_id, steps)


def _follow(step: Step, run: Run) -> None:
    """Ends a step whose run has ended. `step` is changed too, so that the rest of the pass sees it."""
    if run.status in LIVE:
        return
    status, error = "done", ""
    if run.status != "done":
        reason = (run.error or "").strip().rpartition("\n")[2]
        status, error = "failed", f"Run {run.id} {SAID[run.state]}. {reason}".strip()
    with transaction() as session:
        _set(session, step, "launched", status=status, error=error)
    step.status = status


def _take_turn(experiment_id: int, step: Step, needs: list[Step]) -> None:
    """Launches a waiting step once everything it needs is done, or skips it when that can no longer be."""
    lost = [need for need in needs if need.status in {"failed", "skipped"}]
    if lost:
        with transaction() as session:
            run = session.get(Run, lost[0].run_id) if lost[0].run_id else None
            error = f"It needs “{lost[0].name}”, which {SAID[lost[0].state(run)]}."
            _set(session, step, "waiting", status="skipped", error=error)
        step.status = "skipped"
    elif all(need.status == "done" for need in needs):
        try:
            with transaction() as session:
                _launch(session, experiment_id, step, {need.name: need for need in needs})
        except AppError as error:  # nothing was stored: the step cannot be launched as it stands
            with transaction() as session:
                _set(session, step, "waiting", status="failed", error=error.message)
            step.status = "failed"


def _set(session: Session, step: Step, before: str, **values: Any) -> bool:
    """Changes a step that still has the status `before`; whether it did."""
    change = sa.update(Step).where(col(Step.id) == step.id, col(Step.status) == before).values(**values)
    return bool(session.execute(change).rowcount == 1)  # type: ignore[attr-defined]


def _launch(session: Session, experiment_id: int, step: Step, needs: dict[str, Step]) -> None:
    # Locked: a cancel either comes first, or waits and then finds the run; so do two experiments with the same recipe.
    held = select(Experiment).where(Experiment.id == experiment_id).with_for_update(key_share=True)
    experiment = session.exec(held).one()
    if experiment.status != "running" or not _set(session, step, "waiting", status="launched"):
        return  # another ticker was first, or somebody cancelled
    session.exec(select(Project.id).where(Project.id == experiment.project_id).with_for_update(key_share=True)).one()
    recipe = resolve(session, experiment.project_id, step, needs)
    run = find_reusable(session, experiment.project_id, recipe)
    is_reused = run is not None
    if run is None:
        run = launch(session, recipe, project_id=experiment.project_id, account_id=experiment.account_id)
        run.title = f"{step.name}, seed {step.seed}" if step.seed else step.name
    _set(session, step, "launched", run_id=run.id, is_reused=is_reused)


def resolve(session: Session, project_id: int, step: Step, needs: dict[str, Step]) -> Recipe:
    """The step's recipe with the ids of rows in place of references, and the step's seed unless it is fixed."""
    values = dict(step.recipe)
    if step.seed:
        values.setdefault("seed", step.seed)
    for name, field in recipe_class(str(values["kind"])).model_fields.items():
        noun, value = noun_of(field), values.get(name)
        if noun and value is not None:
            given = value if isinstance(value, list) else [value]
            rows = [_resolve_one(session, project_id, noun, name, one, needs) for one in given]
            values[name] = rows if isinstance(value, list) else rows[0]
    return read_recipe(values)


def _resolve_one(session: Session, project_id: int, noun: str, field: str, given: Any, needs: dict[str, Step]) -> int:
    if isinstance(given, int):
        return given
    left, _, name = str(given).removeprefix("@").partition(":")
    if name:
        return find_row(session, project_id, noun, field, str(given))
    made = outputs(session, needs[left].run_id or 0, noun)
    if not made:
        raise Invalid(f"{field}: step “{left}” made no {noun.replace('_', ' ')}.")
    return made[-1]


def find_reusable(session: Session, project_id: int, recipe: Recipe) -> Run | None:
    """The project's newest run of this very recipe that is done and still good, or is under way."""
    same = (
        select(Run)
        .where(Run.project_id == project_id, Run.recipe_sha256 == sha256_of(recipe.stored()))
        .where(col(Run.status).in_(["done", *LIVE]), Run.code_version == __version__)
        .where(col(Run.is_cancel_asked).is_(False))
        .order_by(col(Run.id).desc())
    )
    return next((run for run in session.exec(same) if run.is_live or _is_still_good(session, recipe, run)), None)


def _is_still_good(session: Session, recipe: Recipe, run: Run) -> bool:
    """Whether what a done run made is all there, and what it was made from has not changed since."""
    made = session.exec(select(RunIo).where(RunIo.run_id == run.id, RunIo.is_output)).all()
    for one in made:
        table = SQLModel.metadata.tables[one.noun]
        row = session.execute(sa.select(table).where(table.c.id == one.ref_id)).mappings().first()
        if row is None or row.get("archived_at") is not None:
            return False
        if one.noun == "snapshot" and _is_stale(session, one.ref_id):
            return False
    return not _has_changed(recipe, run)


def _is_stale(session: Session, snapshot_id: int) -> bool:
    """Whether people have changed labels since the snapshot was frozen."""
    snapshot = get(session, Snapshot, snapshot_id)
    return snapshot.labels_version != get(session, PairSet, snapshot.pair_set_id).labels_version


def _has_changed(recipe: Recipe, run: Run) -> bool:
    """Whether a file that the recipe reads is gone, unreadable or newer than the run. Its change of status counts, too:
    a file that was moved or copied into its place may bring an old time of writing with it."""
    if getattr(recipe, "format", "") == "hub":
        return not read_hub_name(str(getattr(recipe, "path", ""))).is_pinned  # what a branch holds may have changed
    given = [getattr(recipe, name, None) for name in ("path", "source", "data")]
    paths = [resolve_path(value) for value in given if value]
    try:
        # A source may also be a Hugging Face id, and data the hub's: then nothing stands on this machine.
        folders = [path for path in paths if path.exists() or hasattr(recipe, "path")]
        files = [file for path in folders for file in ([path, *path.rglob("*")] if path.is_dir() else [path])]
        looks = [file.stat() for file in files]
        newest = max((max(look.st_mtime, look.st_ctime) for look in looks), default=0.0)
    except OSError:
        return True
    return run.started_at is None or newest > run.started_at.timestamp()


def _end(experiment_id: int, steps: list[Step]) -> None:
    with transaction() as session:
        session.exec(select(Experiment.id).where(Experiment.id == experiment_id).with_for_update(key_share=True)).one()
        lost = [step for step in steps if step.status == "failed"]
        states = {step.state(session.get(Run, step.run_id) if step.run_id else None) for step in lost}
        status = "failed" if "failed" in states else "cancelled" if states else "done"
        # Read again under the lock: a retry may have put a step back meanwhile.
        now_at = set(session.exec(select(Step.status).where(Step.experiment_id == experiment_id)).all())
        if now_at <= ENDED:
            session.execute(
                sa.update(Experiment)
                .where(col(Experiment.id) == experiment_id, col(Experiment.status) == "running")
                .values(status=status, ended_at=now())
            )
