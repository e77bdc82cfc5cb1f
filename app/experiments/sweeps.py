"""A sweep: every method gets equally many trials, each trial is measured on dev, and the best by dev is selected.

A sweep is an experiment whose file is written here: a training step a trial, and a step that measures what it made.
So it resumes, is cancelled, reuses finished runs and is reported like any other.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from app.db import MAX_ID
from app.errors import Invalid
from app.experiments.models import Experiment, Step
from app.recipes import read_recipe, recipe_class
from app.runs.models import Run
from app.runs.recipe import noun_of
from app.training.measured import Measured, read_measured
from app.training.pages import METHODS

SWEPT = tuple(kind for kind in METHODS if kind != "reward")
MOST_FIELDS = 3
MOST_TRIALS = 100  # of all methods together
NOT_SWEPT = {"name", "seed"}


class _Plain(yaml.SafeDumper):
    """YAML written out: experiment files have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class SweptMethod(BaseModel):
    """A finished run whose recipe is tried with other values."""

    model_config = ConfigDict(extra="forbid")

    run: int
    values: dict[str, list[Any]] = Field(description="Field → the values to try; every combination is a trial.")


class SweepPlan(BaseModel):
    """What the form and the API send."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("Sweep", min_length=1, max_length=120)
    methods: list[SweptMethod] = Field(min_length=1, max_length=6)
    prompt_set: int
    quality: Literal["reward", "rule"] = "reward"
    reward: int | None = None
    n_prompts: int = Field(64, ge=2, le=10_000)
    samples: int = Field(2, ge=1, le=64)
    max_new_tokens: int = Field(64, ge=1, le=32768)
    seeds: list[int] = [1]


def write_sweep(session: Session, project_id: int, plan: SweepPlan) -> str:
    """The experiment file of a sweep; raises Invalid."""
    runs = [_template(session, project_id, method, place) for place, method in enumerate(plan.methods)]
    grids = [_grid(run, method, place) for place, (run, method) in enumerate(zip(runs, plan.methods, strict=True))]
    _check_equal(plan, runs, grids)
    kinds = [run.kind for run in runs]
    steps: list[dict[str, Any]] = []
    for place, (run, grid) in enumerate(zip(runs, grids, strict=True)):
        label = run.kind if kinds.count(run.kind) == 1 else f"{run.kind} {kinds[: place + 1].count(run.kind)}"
        for number, values in enumerate(grid, 1):
            recipe = {name: value for name, value in run.recipe.items() if name not in NOT_SWEPT} | values
            _check_trial(recipe, place)
            said = ", ".join(f"{name} {value}" for name, value in values.items())
            name = f"{run.kind}_{place + 1}_{number}"
            steps.append({"name": name, "arm": f"{label}: {said}"[:80], "recipe": recipe})
            steps.append({"name": f"{name}_dev", "recipe": _measuring(plan, name, runs[0])})
    file = {
        "name": plan.name,
        "question": "Which settings are best on dev, with equally many trials a method?",
        "seeds": plan.seeds,
        "one_start": True,
        "steps": steps,
    }
    return yaml.dump(file, Dumper=_Plain, sort_keys=False, allow_unicode=True)


def _template(session: Session, project_id: int, method: SweptMethod, place: int) -> Run:
    run = session.get(Run, method.run) if 0 < method.run <= MAX_ID else None
    if run is None or run.project_id != project_id or run.kind not in SWEPT:
        message = f"Run {method.run} is no training run of a policy in this project."
        raise Invalid(message, {f"run_{place}": [message]})
    return run


def _grid(run: Run, method: SweptMethod, place: int) -> list[dict[str, Any]]:
    """Every combination of the values."""
    fields = recipe_class(run.kind).model_fields
    name = f"values_{place}"
    if not 1 <= len(method.values) <= MOST_FIELDS:
        message = f"Name one to {MOST_FIELDS} fields to try."
        raise Invalid(f"{run.kind}: {message}", {name: [message]})
    for field, values in method.values.items():
        if field not in fields or noun_of(fields[field]) or field in NOT_SWEPT:
            known = ", ".join(one for one in fields if not noun_of(fields[one]) and one not in NOT_SWEPT)
            raise Invalid(f"{run.kind} has no field “{field}” to try.", {name: [f"no “{field}”; one of: {known}"]})
        if not values or len({str(value) for value in values}) < len(values):
            raise Invalid(f"{run.kind}, {field}: give values, each once.", {name: [f"{field}: values, each once"]})
    n = math.prod(map(len, method.values.values()))  # before any is made: fields multiply
    if n > MOST_TRIALS:
        message = f"These are {n:,} trials; at most {MOST_TRIALS} of all methods together."
        raise Invalid(f"{run.kind}: {message}", {name: [message]})
    return [dict(zip(method.values, each, strict=True)) for each in itertools.product(*method.values.values())]


def _check_equal(plan: SweepPlan, runs: Sequence[Run], grids: Sequence[Sequence[Any]]) -> None:
    each = ", ".join(f"{run.kind} {len(grid)}" for run, grid in zip(runs, grids, strict=True))
    if len({len(grid) for grid in grids}) > 1:
        message = f"Give every method equally many trials: {each}."
        raise Invalid(message, {f"values_{len(grids) - 1}": [message]})
    if sum(map(len, grids)) > MOST_TRIALS:
        raise Invalid(f"These are more than {MOST_TRIALS} trials: {each}.", {"values_0": [f"at most {MOST_TRIALS}"]})
    starts = {run.recipe["start"] for run in runs}
    if len(starts) > 1:
        message = "The methods start from different checkpoints, so no KL to one reference compares them."
        raise Invalid(message, {"run_0": [message]})
    if plan.quality == "reward" and plan.reward is None:
        message = "Choose the held-out reward model that measures quality, or the rule."
        raise Invalid(message, {"reward": [message]})
    if plan.quality == "reward" and any(run.recipe.get("reward") == plan.reward for run in runs):
        message = "This reward model trains one of the methods: choose one that trains none, or the rule."
        raise Invalid(message, {"reward": [message]})


def _check_trial(recipe: Mapping[str, Any], place: int) -> None:
    try:
        read_recipe(dict(recipe))
    except Invalid as error:
        raise Invalid(error.message, {f"values_{place}": [error.message]}) from error


def _measuring(plan: SweepPlan, step: str, first: Run) -> dict[str, Any]:
    given = plan.model_dump(include={"prompt_set", "quality", "reward", "n_prompts", "samples", "max_new_tokens"})
    recipe = {"kind": "measure", "checkpoint": f"@{step}", "reference": first.recipe["start"], **given}
    if plan.quality == "rule":
        recipe["reward"] = None
    return recipe


@dataclass(frozen=True)
class Trial:
    """One setting of one method: a training step and what was measured of it on dev, one a seed."""

    step: str
    method: str  # the label that several trials share
    kind: str
    said: str  # the values that were tried
    runs: list[int | None]
    states: list[str]
    measured: list[Measured]
    n_seeds: int
    run_seeds: list[int]  # of the runs; 0: shared by all seeds
    seeds: list[int]  # of the measurements
    ending: str = ""  # why there is no measurement and will be none: failed, cancelled, paused or skipped
    is_selected: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every seed was measured."""
        return len(self.measured) == self.n_seeds and all(one.quality is not None for one in self.measured)

    @property
    def lines(self) -> list[tuple[int, int | None, str, Measured | None]]:
        """(seed, run, its state, what was measured): one a seed; what is shared stands in each."""
        own = {seed: (run, state) for seed, run, state in zip(self.run_seeds, self.runs, self.states, strict=True)}
        found = dict(zip(self.seeds, self.measured, strict=True))
        shared = own.get(0, (None, ""))
        return [
            (seed, *own.get(seed, shared), found.get(seed, found.get(0)))
            for seed in sorted({*own, *found} - {0}) or sorted({*own, *found})
        ]

    @property
    def quality(self) -> float | None:
        """Mean quality on dev over seeds; None until every seed is measured."""
        if not self.is_whole:
            return None
        return sum(one.quality.value for one in self.measured if one.quality) / self.n_seeds


_AMONG = {"failed": "failed", "cancelled": "cancelled", "paused": "paused", "skipped": "not begun"}


@dataclass(frozen=True)
class Sweep:
    """The trials of an experiment, each method with its selected one."""

    trials: list[Trial]

    @property
    def methods(self) -> list[str]:
        """Methods in the file's order."""
        return list(dict.fromkeys(trial.method for trial in self.trials))

    def of(self, method: str) -> list[Trial]:
        """A method's trials."""
        return [trial for trial in self.trials if trial.method == method]

    def selected(self, method: str) -> Trial | None:
        """A method's best by dev."""
        return next((trial for trial in self.of(method) if trial.is_selected), None)

    @property
    def is_equal(self) -> bool:
        """Whether every method had equally many trials that came to a measurement."""
        return len({sum(trial.is_whole for trial in self.of(method)) for method in self.methods}) <= 1

    @property
    def sentences(self) -> list[str]:
        """What was selected from how many trials."""
        said = []
        for method in self.methods:
            whole, best = [trial for trial in self.of(method) if trial.is_whole], self.selected(method)
            lost = Counter(trial.ending for trial in self.of(method) if not trial.is_whole)
            ends = ", ".join(f"{n} {_AMONG.get(state, 'not ended')}" for state, n in lost.items())
            if best is None:
                said.append(f"{method}: none of {len(self.of(method))} trials has been measured yet ({ends}).")
            else:
                without = f" (besides: {ends})" if lost else ""
                said.append(f"{method}: {best.said} is the best of {len(whole)} trials by dev{without}.")
        if not self.is_equal:
            said.append("The methods had unequally many trials: more trials alone make a better best.")
        return said


def read_sweep(session: Session, experiment: Experiment) -> Sweep | None:
    """The trials of an experiment that measures several settings of a method; None where it does not.

    Reads measure runs alone, whose prompts are dev prompts: no score on test can choose a trial.
    """
    query = select(Step).where(Step.experiment_id == experiment.id).order_by(col(Step.position), col(Step.seed))
    steps = list(session.exec(query))
    of = {str(step.recipe.get("checkpoint", ""))[1:]: step.name for step in steps if step.recipe["kind"] == "measure"}
    by_name: dict[str, list[Step]] = {}
    for step in steps:
        by_name.setdefault(step.name, []).append(step)
    names = [name for name in by_name if name in of and ": " in by_name[name][0].arm]
    if not names:
        return None
    ids = [step.run_id for name in names for step in by_name[of[name]] + by_name[name] if step.run_id is not None]
    runs = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids)))}
    found = read_measured(session, [run for run in runs.values() if run.kind == "measure"])
    trials = []
    for name in names:
        first = by_name[name][0]
        method, _, said = first.arm.partition(": ")
        measured = [found[step.run_id] for step in by_name[of[name]] if step.run_id in found]
        states = [step.state(runs.get(step.run_id or 0)) for step in by_name[name]]
        after = [step.state(runs.get(step.run_id or 0)) for step in by_name[of[name]]]
        ending = next((state for state in [*states, *after] if state in _AMONG), "")
        trials.append(
            Trial(
                name, method, str(first.recipe["kind"]), said, [step.run_id for step in by_name[name]], states,
                measured, len(by_name[of[name]]), [step.seed for step in by_name[name]],
                [step.seed for step in by_name[of[name]] if step.run_id in found], ending,
            )
        )  # fmt: skip
    return Sweep(select_best(trials))


def select_best(trials: Sequence[Trial]) -> list[Trial]:
    """Marks each method's trial of the highest quality on dev; of equals, the first."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.quality is not None:
            held = best.get(trial.method)
            if held is None or held.quality is None or trial.quality > held.quality:
                best[trial.method] = trial
    chosen = {trial.step for trial in best.values()}
    return [Trial(**{**vars(trial), "is_selected": trial.step in chosen}) for trial in trials]
