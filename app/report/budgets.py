"""What each arm's result has cost, and what several arms share."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.report.arms import ReportArm
from app.runs.models import Run
from app.training.budgets import Budget, compare_labels
from app.training.pages import METHODS


@dataclass(frozen=True, eq=False)
class ArmBudget:
    """An arm and seed with everything behind it."""

    arm: ReportArm
    budget: Budget


@dataclass(frozen=True, eq=False)
class SharedRun:
    """A run that several arms grew from: it is counted with each of them, and was paid once."""

    run: Run
    arms: list[str]


@dataclass(frozen=True, eq=False)
class Budgets:
    """The budgets of a report's arms."""

    lines: list[ArmBudget]
    shared: list[SharedRun]
    label_note: str


def read_arm_budgets(arms: Sequence[ReportArm]) -> Budgets:
    """Budgets of every arm that a run made, and what they share."""
    lines = [ArmBudget(arm, arm.budget) for arm in arms if arm.budget]
    rows: dict[int, Run] = {}
    users: dict[int, list[str]] = {}
    for line in lines:
        for one in line.budget.spent:
            rows[one.run.id] = one.run
            users.setdefault(one.run.id, []).append(line.arm.name)
    several = {key: list(dict.fromkeys(names)) for key, names in users.items()}
    shared = [SharedRun(rows[key], names) for key, names in sorted(several.items()) if len(names) > 1]
    labels: dict[str, int] = {}
    for line in lines:
        if line.arm.run and line.arm.run.kind in METHODS:
            labels[line.arm.name] = max(labels.get(line.arm.name, 0), line.budget.labels)
    return Budgets(lines, shared, compare_labels(labels))
