"""An experiment made of runs that were started one by one, so that a report can be read of them.

Its steps are the runs behind the chosen checkpoints, and those that measured them. Nothing runs: each step is done
already. The file says the same as recipes that refer to each other, so that the study can be run anew.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
import yaml
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.db import MAX_ID, now
from app.errors import Invalid
from app.experiments.files import MAX_STEPS, read_experiment
from app.experiments.models import Experiment, Step
from app.experiments.start import find_by_form
from app.recipes import read_recipe, recipe_class
from app.runs.models import Run, RunIo
from app.runs.recipe import noun_of, sha256_of

MEASURES = ("benchmark", "measure", "grading", "audit", "card")  # kinds that say something of what was made
OFFERED = 100
Row = tuple[str, int]  # noun, id


def trained_checkpoints(session: Session, project_id: int, wanted: Sequence[int] | None = None) -> list[Checkpoint]:
    """What a report can be made of: the policies that trainings made, newest first; of those wanted, else the last."""
    trained = (
        select(Checkpoint)
        .join(Run, col(Run.id) == col(Checkpoint.run_id))
        .where(Checkpoint.project_id == project_id, Checkpoint.role == "policy", col(Checkpoint.parent_id).is_not(None))
        .where(col(Checkpoint.archived_at).is_(None), Run.status == "done")
    )
    if wanted is None:
        trained = trained.order_by(col(Checkpoint.id).desc()).limit(OFFERED)
    else:
        trained = trained.where(col(Checkpoint.id).in_([key for key in wanted if 0 < key <= MAX_ID]))
    return list(session.exec(trained))


def collect_experiment(
    session: Session, project_id: int, checkpoints: Sequence[int], *, name: str, question: str = "",
    account_id: int | None = None, form_key: str | None = None,
) -> Experiment:  # fmt: skip
    """Stores the experiment, done; the same form_key twice is the same one. Raises Invalid."""
    if form_key and (same := find_by_form(session, project_id, form_key)):
        return same
    chosen = _chosen(session, project_id, checkpoints)
    base = _common_root(session, chosen)
    runs = _lineage(session, {one.run_id or 0 for one in [*chosen, *base]})
    runs += _measuring(session, [*chosen, *base], runs)
    if len(runs) > MAX_STEPS:
        raise Invalid(f"{len(runs):,} runs stand behind these; a report reads at most {MAX_STEPS}: choose fewer.",
                      {"checkpoints": ["too many runs behind them"]})  # fmt: skip
    arms = {one.run_id: "base" for one in base} | _arm_names(chosen)
    steps = _steps(session, runs, arms)
    text = yaml.safe_dump(
        {"name": name, "question": question, "seeds": [1], "one_start": False, "steps": steps}, sort_keys=False,
        allow_unicode=True, width=120,
    )  # fmt: skip
    _, planned = read_experiment(text, file="the collected file")
    experiment = Experiment(
        project_id=project_id, name=name, question=question, file=text, sha256=sha256_of(text), scale="full", seeds=[1],
        variables={}, account_id=account_id, form_key=form_key,
        status="done", ended_at=now(),
    )  # fmt: skip
    session.add(experiment)
    session.flush()
    for place, (step, run) in enumerate(zip(planned, runs, strict=True)):
        session.add(Step(
            experiment_id=experiment.id, name=step.name, position=place, arm=step.arm, recipe=run.recipe,
            needs=step.needs, run_id=run.id, is_reused=True, status="done",
        ))  # fmt: skip
    session.flush()
    return experiment


def _chosen(session: Session, project_id: int, wanted: Sequence[int]) -> list[Checkpoint]:
    known = {one.id: one for one in trained_checkpoints(session, project_id, wanted)}
    strange = [key for key in wanted if key not in known]
    if strange or not wanted:
        what = f"checkpoint {strange[0]} is none" if strange else "choose at least one"
        raise Invalid(f"A report is made of checkpoints that a finished training of this project made: {what}.",
                      {"checkpoints": [what]})  # fmt: skip
    return [known[key] for key in sorted(set(wanted))]


def _common_root(session: Session, chosen: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The one checkpoint that all began with, which the others are compared with; none when they began differently."""
    roots = {}
    for one in chosen:
        row: Checkpoint | None = one
        while row is not None and row.parent_id is not None:
            row = session.get(Checkpoint, row.parent_id)
        if row is not None:
            roots[row.id] = row
    return list(roots.values()) if len(roots) == 1 and next(iter(roots.values())).run_id else []


def _lineage(session: Session, wanted: set[int]) -> list[Run]:
    """These runs and all they grew from, oldest first."""
    seen: set[int] = set()
    while wanted:
        seen |= wanted
        read = sa.select(col(RunIo.noun), col(RunIo.ref_id)).where(col(RunIo.run_id).in_(wanted), ~col(RunIo.is_output))
        wanted = set(_makers(session, _rows(session, read)).values()) - seen
    return _runs(session, seen)


def _rows(session: Session, query: Any) -> list[Row]:
    return [(noun, key) for noun, key in session.execute(query)]


def _runs(session: Session, keys: set[int]) -> list[Run]:
    return list(session.exec(select(Run).where(col(Run.id).in_(keys)).order_by(col(Run.id))))


def _makers(session: Session, rows: Sequence[Row]) -> dict[Row, int]:
    """The run that made each row: the last one that had it as its newest of the kind."""
    made = (
        sa.select(col(RunIo.noun), col(RunIo.ref_id), col(RunIo.run_id))
        .where(col(RunIo.is_output), sa.tuple_(col(RunIo.noun), col(RunIo.ref_id)).in_(list(set(rows))))
        .order_by(col(RunIo.run_id))
    )
    return {(noun, key): run for noun, key, run in session.execute(made)} if rows else {}


def _measuring(session: Session, chosen: Sequence[Checkpoint], runs: Sequence[Run]) -> list[Run]:
    """Finished runs that scored or graded what was chosen, or looked at the labels behind it, with what they needed."""
    # the judges and verdicts behind it, whether a run made them or a form
    used = sa.select(col(RunIo.noun), col(RunIo.ref_id)).where(
        col(RunIo.run_id).in_([run.id for run in runs]), col(RunIo.noun).in_(["judge", "verdict_set"])
    )
    of = {*_rows(session, used), *(("checkpoint", one.id) for one in chosen)}
    query = (
        select(Run.id)
        .join(RunIo, col(RunIo.run_id) == col(Run.id))
        .where(col(Run.kind).in_(MEASURES), Run.status == "done", ~col(RunIo.is_output))
        .where(sa.tuple_(col(RunIo.noun), col(RunIo.ref_id)).in_(list(of)))
    )
    known = {run.id for run in runs}
    return [run for run in _lineage(session, set(session.exec(query)) - known) if run.id not in known]


def _arm_names(chosen: Sequence[Checkpoint]) -> dict[int | None, str]:
    names: dict[int | None, str] = {}
    for one in chosen:
        name = one.name[:60]
        is_taken = name in names.values() or name.casefold() == "base"
        names[one.run_id] = f"{name} (run {one.run_id})" if is_taken else name
    return names


def _steps(session: Session, runs: list[Run], arms: dict[int | None, str]) -> list[dict[str, Any]]:
    """The runs as a file's steps, in an order in which each stands after what it refers to."""
    runs.sort(key=lambda run: run.id)
    names = {run.id: f"{run.kind}_{run.id}" for run in runs}
    steps = []
    for run in runs:
        recipe = {"kind": run.kind, **read_recipe(run.recipe).model_dump(mode="json", exclude_defaults=True)}
        fields = {name: noun for name, one in recipe_class(run.kind).model_fields.items() if (noun := noun_of(one))}
        wanted = [(noun, key) for name, noun in fields.items() for key in _keys(recipe.get(name))]
        made = {row: names[by] for row, by in _makers(session, wanted).items() if by in names and by < run.id}
        for name, noun in fields.items():
            value = recipe.get(name)
            said = [f"@{made[noun, key]}" if (noun, key) in made else key for key in _keys(value)]
            if said:
                recipe[name] = said if isinstance(value, list) else said[0]
        arm = {"arm": arms[run.id]} if run.id in arms else {}
        steps.append({"name": names[run.id], **arm, "shared": True, "recipe": recipe})
    return steps


def _keys(value: Any) -> list[int]:
    given = value if isinstance(value, list) else [value]
    return [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
