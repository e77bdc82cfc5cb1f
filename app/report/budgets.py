"""What each arm's result has cost, and what several arms share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from app.report.arms import ReportArm
from app.runs.models import Run
from app.training.budgets import Budget, amounts_of, compare_labels, read_budgets
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
    device_seconds: float  # of all steps of the experiment


def read_arm_budgets(session: Session, arms: Sequence[ReportArm], steps: Iterable[Run] = ()) -> Budgets:
    """Budgets of every arm that a run made; `steps`: the runs of the experiment."""
    found = read_budgets(session, {arm.run.id for arm in arms if arm.run})
    lines = [ArmBudget(arm, found[arm.run.id]) for arm in arms if arm.run]
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
    return Budgets(lines, shared, compare_labels(labels), sum(amounts_of(run)["device_seconds"] for run in steps))
