"""The report of an experiment: rows → figures → one page, and the same numbers as JSON."""

from collections import Counter
from dataclasses import dataclass

from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.experiments.models import Experiment, state_of
from app.judging.models import Judge
from app.report.arms import Material, ReportArm, read_arms, read_material
from app.report.budgets import Budgets, read_arm_budgets
from app.report.examples import Example, Rewards, read_examples, read_rewards
from app.report.frontier import Fronts, read_fronts
from app.report.limits import find_limits
from app.report.lines import Drawing, read_drawings
from app.report.methods import describe
from app.report.people import AuditLine, GradingLine, read_audits, read_gradings
from app.report.results import (
    BenchmarkResults,
    MetricResults,
    ResultRow,
    read_results,
    result_rows,
    table_columns,
)
from app.report.reward_models import PeopleLine, RewardLine, read_people_lines, read_reward_lines
from app.report.rounds import ArmRounds, read_arm_rounds
from app.report.signals import training_judges
from app.report.teachers import TeacherLine, lacks_teacher, read_teacher_lines
from app.runs.models import Run, Worker
from app.training.budgets import cost_of


@dataclass(frozen=True)
class Report:
    """Everything the page prints."""

    experiment: Experiment
    state: str  # of the experiment, in a reader's words
    material: Material
    arms: list[ReportArm]
    others: list[ReportArm]  # scored checkpoints without an arm's name
    methods: list[str]
    judges: list[Judge]  # whose labels were trained on
    results: list[BenchmarkResults]
    columns: list[tuple[str, MetricResults]]
    rows: list[ResultRow]
    headline: list[MetricResults]
    teachers: list[TeacherLine]
    rounds: list[ArmRounds]
    drawings: list[Drawing]
    rewards: Rewards | None
    examples: list[Example]
    examples_from: str
    gradings: list[GradingLine]
    audits: list[AuditLine]
    reward_lines: list[RewardLine]
    people_lines: list[PeopleLine]
    budget: dict[str, float]
    budgets: Budgets
    fronts: Fronts
    versions: dict[str, list[str]]
    devices: list[str]
    limits: list[str]

    @property
    def subject(self) -> str:
        """What a difference is about: a method only where some arm was made more than once."""
        made = Counter(name for name, _ in {(arm.name, arm.scored) for arm in self.arms if not arm.is_base})
        return "this method" if any(n > 1 for n in made.values()) else "this checkpoint"

    @property
    def has_teachers(self) -> bool:
        """Whether an arm was trained by SFT on a critic's own completions."""
        return any(line.teacher for line in self.teachers)

    def called(self, checkpoint: Checkpoint) -> str:
        """What the report calls a checkpoint: its arm's name, where it is one."""
        return next((arm.name for arm in self.arms if arm.scored == ("checkpoint", checkpoint.id)), checkpoint.name)

    @property
    def is_grading_planned(self) -> bool:
        """Whether a blind grading is among the steps."""
        return any(step.recipe.get("kind") == "grading" for step in self.material.steps)

    @property
    def arm_names(self) -> list[str]:
        """Arms in the file's order."""
        return list(dict.fromkeys(arm.name for arm in self.arms))

    def has_difference(self, arm: str) -> bool:
        """Whether the arm was compared with a base."""
        return any(metric.spread(arm, "difference") for _, metric in self.columns)

    @property
    def methods_of(self) -> dict[str, str]:
        """arm → method, which is its colour."""
        return {arm.name: arm.method for arm in [*self.others, *self.arms]}


def read_report(session: Session, experiment: Experiment) -> Report:
    """Reads a report from the rows as they are now."""
    material = read_material(session, experiment)
    arms = read_arms(session, material)
    results, others = read_results(session, material, arms)
    columns, headline = table_columns(results), pick_headline(results)
    teachers = read_teacher_lines(session, material, arms, headline)
    examples, examples_from = read_examples(session, material, results, arms)
    gradings, audits = read_gradings(session, material), read_audits(session, material)
    own = [material.runs[step.run_id] for step in material.steps if step.run_id in material.runs]
    return Report(
        experiment=experiment, state=state_of(session, experiment), material=material, arms=arms,
        others=others, methods=describe(session, material),
        judges=training_judges(session, material), results=results, columns=columns, rows=result_rows(arms, columns),
        headline=headline, teachers=teachers, rounds=read_arm_rounds(session, arms),
        drawings=read_drawings(session, material),
        rewards=read_rewards(session, material, results, arms), examples=examples, examples_from=examples_from,
        gradings=gradings, audits=audits, reward_lines=read_reward_lines(session, material),
        people_lines=read_people_lines(session, material),
        budget=cost_of(session, own), budgets=read_arm_budgets(arms),
        fronts=read_fronts(session, experiment, arms),
        versions=_versions(own), devices=_devices(session, own),
        limits=[*lacks_teacher(teachers), *find_limits(session, material, arms, results, gradings, audits)],
    )  # fmt: skip


def pick_headline(results: list[BenchmarkResults]) -> list[MetricResults]:
    """The main metric of each benchmark, unless the training signal made it: such a score is never the headline."""
    return [one.metrics[0] for one in results if one.metrics and not one.metrics[0].signal]


def _versions(runs: list[Run]) -> dict[str, list[str]]:
    """package → the versions the runs had (one, if all went well)."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, version in {"PrefLab": run.code_version, **run.packages}.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in found.items()}


def _devices(session: Session, runs: list[Run]) -> list[str]:
    names = {run.worker for run in runs if run.worker}
    found = session.exec(select(Worker.device).where(col(Worker.name).in_(names)).distinct()).all()
    return sorted(device for device in found if device)
