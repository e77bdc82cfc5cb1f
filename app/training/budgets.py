"""What an arm has cost: its own training and every run it grew from, summed over lineage, each run once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.pairs.models import Completion
from app.prompts.models import Prompt
from app.runs.models import Run, RunIo
from app.training.models import Snapshot
from app.training.pages import METHODS

MEASURES = (
    "labels", "judge_calls", "generation_calls", "generated_tokens", "trained_tokens", "device_seconds", "cpu_seconds",
    "usd",
)  # fmt: skip
# An arm or a benchmark is noted by every run that meets it; neither is made of what that run was made of.
NOT_MADE = {"arm", "benchmark"}
# Fields of rows that a run reads and is not made of: what only watches it, and what its page compares it with.
ONLY_READ = {"held_out": "checkpoint", "held_out_judge": "judge", "compare_with": "verdict_set"}
# What a judge that only watches has cost is in a run's cost under both names, and in no arm's budget.
WATCHED = {"judge_calls": "recorder_calls", "usd": "recorder_usd"}


@dataclass(frozen=True)
class Spent:
    """One run behind an arm."""

    run: Run
    amounts: Mapping[str, float]
    shared_with: int = 0  # other arms that grew from it too
    labels: Mapping[int, int] = field(default_factory=dict)  # verdict set → preferences of it that the run could read
    frozen: Mapping[int, int] = field(default_factory=dict)  # the same with those that were too long for it


@dataclass(frozen=True)
class Budget:
    """Everything behind an arm, oldest first; its own training is the last."""

    spent: list[Spent]

    @property
    def labels(self) -> int:
        """Preferences that could be trained on, each counted once."""
        return count_labels(one.labels for one in self.spent)

    @property
    def frozen(self) -> int:
        """The same with those that were left out as too long."""
        return count_labels(one.frozen for one in self.spent)

    @property
    def has_left_out(self) -> bool:
        """Whether some were too long for a run behind it."""
        return self.frozen > self.labels

    @property
    def total(self) -> dict[str, float]:
        """All of it. Labels are those that could be used, not the sum over the runs that read the same ones."""
        return {**add_up(one.amounts for one in self.spent), "labels": self.labels}

    @property
    def uncounted(self) -> list[Run]:
        """Trainings behind it that did not count their gradient tokens, as early versions did not for all kinds."""
        kinds = {"demo_base", *METHODS}
        return [one.run for one in self.spent if one.run.kind in kinds and "trained_tokens" not in one.run.cost]

    @property
    def own(self) -> Mapping[str, float]:
        """Its own training alone."""
        return self.spent[-1].amounts if self.spent else {}

    @property
    def shared(self) -> dict[str, float]:
        """The part that other arms grew from too."""
        several = [one for one in self.spent if one.shared_with]
        return {**add_up(one.amounts for one in several), "labels": count_labels(one.labels for one in several)}


def amounts_of(run: Run) -> dict[str, float]:
    """What one run has cost. A run of the gpu queue holds its device, which may be a CPU, from end to end."""
    cost = run.spent
    found = {name: float(cost.get(name, 0) - cost.get(WATCHED.get(name, ""), 0)) for name in MEASURES}
    found["device_seconds"] = float(cost.get("wall_seconds", 0)) if run.queue == "gpu" else 0.0
    return found


def count_labels(labels: Iterable[Mapping[int, int]]) -> int:
    """Preferences of several runs, those of one verdict set once: of its snapshots, frozen again as labels changed, the
    largest."""
    found: dict[int, int] = {}
    for one in labels:
        for verdict_set, n in one.items():
            found[verdict_set] = max(n, found.get(verdict_set, 0))
    return sum(found.values())


def cost_of(session: Session, runs: Iterable[Run]) -> dict[str, float]:
    """What these very runs have cost together, without what they grew from; labels counted once."""
    rows = {run.id: run for run in runs}
    labels = fitting(_labels(session, set(rows)), rows)
    return {**add_up(map(amounts_of, rows.values())), "labels": count_labels(labels.values())}


def add_up(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Amounts of several runs together."""
    rows = list(amounts)
    return {name: sum(row[name] for row in rows) for name in MEASURES}


def runs_behind(session: Session, starts: Iterable[int]) -> dict[int, set[int]]:
    """Each run with every run that it grew from, itself included."""
    begun = list(starts)
    parents: dict[int, set[int]] = {}
    waiting = set(begun)
    while waiting:
        found = _parents(session, waiting)
        parents |= {one: found.get(one, set()) for one in waiting}
        waiting = {parent for many in found.values() for parent in many} - parents.keys()
    return {one: _reach(parents, one) for one in begun}


def _reach(parents: Mapping[int, set[int]], start: int) -> set[int]:
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += parents[one]
    return seen


def is_only_read(recipe: Mapping[str, Any], noun: str, key: int) -> bool:
    """Whether a run read a row without being made of it: a watcher teaches nothing."""
    return any(noun == of and recipe.get(field) == key for field, of in ONLY_READ.items())


def _parents(session: Session, runs: set[int]) -> dict[int, set[int]]:
    """run → the runs that made what it was made of."""
    read, made = aliased(RunIo), aliased(RunIo)
    same = sa.and_(col(made.noun) == col(read.noun), col(made.ref_id) == col(read.ref_id), col(made.is_output))
    query = (
        sa.select(col(read.run_id), col(made.run_id), col(read.noun), col(read.ref_id))
        .join(made, same)
        .where(col(read.run_id).in_(runs), ~col(read.is_output), col(read.noun).not_in(NOT_MADE))
        .where(col(made.run_id) != col(read.run_id))
    )
    found: dict[int, set[int]] = {}
    recipes = dict(session.exec(select(Run.id, Run.recipe).where(col(Run.id).in_(runs))).all())
    for run, parent, noun, key in session.execute(query):
        if not is_only_read(recipes[run], noun, key):
            found.setdefault(run, set()).add(parent)
    for run, recipe in recipes.items():
        if recipe.get("kind") == "sft" and recipe.get("arm") is not None:  # copied completions: whoever wrote them
            found.setdefault(run, set()).update(_writers(session, recipe["arm"], recipe["prompt_set"]))
    return found


def _writers(session: Session, arm: int, prompt_set: int) -> set[int]:
    written = (
        sa.select(col(Completion.run_id))
        .join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
        .where(col(Completion.arm_id) == arm, col(Prompt.set_id) == prompt_set, col(Completion.run_id).is_not(None))
        .distinct()
    )
    return {int(key) for key in session.execute(written).scalars()}


def read_budgets(session: Session, runs: Iterable[int], others: Iterable[int] = ()) -> dict[int, Budget]:
    """The budget of each run. What is shared is told by looking at the others asked for, and at `others`."""
    asked = list(runs)
    lineages = runs_behind(session, {*asked, *others})
    behind = {one: lineages[one] for one in asked}
    ids = {one for many in behind.values() for one in many}
    rows = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids)))}
    frozen = _labels(session, ids)
    labels = fitting(frozen, rows)
    budgets = {}
    for start, many in behind.items():
        before = sorted(many - {start})
        spent = [
            Spent(rows[one], amounts_of(rows[one]),
                  sum(one in many for key, many in lineages.items() if key != start), labels.get(one, {}),
                  frozen.get(one, {}))
            for one in [*before, start]
            if one in rows
        ]  # fmt: skip
        budgets[start] = Budget(spent)
    return budgets


def _labels(session: Session, runs: set[int]) -> dict[int, dict[int, int]]:
    """run → the verdict sets whose snapshots it read, with the most preferences of each on the train split."""
    query = (
        sa.select(col(RunIo.run_id), col(Snapshot.verdict_set_id), sa.func.max(col(Snapshot.n_train)))
        .join(Snapshot, sa.and_(col(RunIo.noun) == "snapshot", col(RunIo.ref_id) == col(Snapshot.id)))
        .where(col(RunIo.run_id).in_(runs), ~col(RunIo.is_output))
        .group_by(col(RunIo.run_id), col(Snapshot.verdict_set_id))
    )
    found: dict[int, dict[int, int]] = {}
    for run, verdict_set, n in session.execute(query):
        found.setdefault(run, {})[verdict_set] = n
    return found


def fitting(frozen: Mapping[int, Mapping[int, int]], runs: Mapping[int, Run]) -> dict[int, dict[int, int]]:
    """The same without the preferences that were too long for a run (worker/fitting.py counts them)."""
    return {
        key: {one: max(0, n - int(runs[key].cost.get("left_out_rows", 0))) for one, n in many.items()}
        for key, many in frozen.items()
        if key in runs
    }


def compare_labels(labels: Mapping[str, int]) -> str:
    """Whether the arms could learn from equally many labels, in a sentence; empty without an arm that used any."""
    used = {name: n for name, n in labels.items() if n}
    if not used:
        return ""
    if len(set(labels.values())) == 1:
        n = next(iter(labels.values()))
        return f"Labels are equal: each trained arm could learn from {n:,}." if len(labels) > 1 else ""
    each = ", ".join(f"{name} {n:,}" if n else f"{name} none" for name, n in labels.items())
    return f"Labels are not equal: {each}. A difference between these arms is also one of labels."
