"""Completions to read beside the numbers, chosen by a seed and not by hand; and how rewards are distributed."""

import random
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.benchmarks.models import Score
from app.checkpoints.models import Checkpoint
from app.db import get
from app.prompts.strict_format import read_strict_format
from app.report.arms import Material, ReportArm, lineage
from app.report.results import BenchmarkResults
from app.runs.models import Sampled
from app.stats.rewards import Bin, shared_bins
from app.training.budgets import is_only_read
from app.training.models import Snapshot

N_PROMPTS = 4


@dataclass(frozen=True)
class Said:
    """What one arm wrote."""

    arm: ReportArm
    text: str
    is_strict: bool | None  # None where no format is asked for


@dataclass(frozen=True)
class Example:
    """A prompt, its reference answer, and one completion of every arm."""

    prompt: str
    reference: str | None
    said: list[Said]


@dataclass(frozen=True)
class Rewards:
    """Histograms of a reward model's scores of completions on test prompts."""

    scorer: str
    bins: dict[str, list[Bin]]  # arm → bins, the same edges for all
    methods: dict[str, str]
    means: dict[str, float]
    highest: int
    is_signal: bool  # the reward model rewarded an arm, or learned from labels that an arm learned from


def read_examples(
    session: Session, material: Material, results: list[BenchmarkResults], arms: list[ReportArm]
) -> tuple[list[Example], str]:
    """Prompts drawn by the experiment's hash, of its first seed; and a line on where they come from."""
    seed = next(iter(sorted(material.experiment.seeds)), 0)
    shown = [arm for arm in arms if arm.seed in {0, seed}]
    for one in results:
        if one.benchmark.kind == "format" and one.metrics:
            cells = {arm: one.metrics[0].cells.get((arm.name, arm.seed)) for arm in shown}
            runs = {arm: cell.run_id for arm, cell in cells.items() if cell}
            found = _from_scores(session, material.experiment.sha256, runs)
            return found, f"first sample at temperature 1, test prompts, seed {seed}"
    return _from_training(session, shown), "dev prompts sampled at the end of training"


def _from_scores(session: Session, sha256: str, runs: dict[ReportArm, int]) -> list[Example]:
    of_item: dict[str, dict[int, Score]] = {}
    wanted = select(Score).where(
        col(Score.run_id).in_(runs.values()), Score.metric == "format", Score.sample == 0
    )  # fmt: skip
    for row in session.exec(wanted):
        of_item.setdefault(row.item, {})[row.run_id] = row
    shared = sorted(item for item, rows in of_item.items() if len(rows) == len(set(runs.values())))
    chosen = random.Random(f"examples {sha256}").sample(shared, min(N_PROMPTS, len(shared)))
    examples = []
    for item in chosen:
        rows = of_item[item]
        first = next(iter(rows.values())).detail
        texts = {arm: str(rows[run_id].detail["completion"]) for arm, run_id in runs.items()}
        said = [Said(arm, text, read_strict_format(text).is_strict) for arm, text in texts.items()]
        examples.append(Example(str(first["prompt"]), first.get("reference"), said))
    return examples


def _from_training(session: Session, arms: list[ReportArm]) -> list[Example]:
    """The last film strips, for prompts that all arms with one share."""
    strips: dict[ReportArm, dict[str, str]] = {}
    for arm in arms:
        if arm.run is None:
            continue
        last = sa.select(sa.func.max(Sampled.step)).where(col(Sampled.run_id) == arm.run.id).scalar_subquery()
        rows = session.exec(select(Sampled).where(Sampled.run_id == arm.run.id, col(Sampled.step) == last)).all()
        if rows:
            strips[arm] = {row.prompt: row.text for row in rows}
    shared = sorted(set.intersection(*(set(strip) for strip in strips.values()))) if strips else []
    return [
        Example(prompt, None, [Said(arm, strip[prompt], None) for arm, strip in strips.items()])
        for prompt in shared[:N_PROMPTS]
    ]


def read_rewards(
    session: Session, material: Material, results: list[BenchmarkResults], arms: list[ReportArm]
) -> Rewards | None:
    """The reward model's scores of the completions of the format study, first seed; None where none were stored."""
    seed = next(iter(sorted(material.experiment.seeds)), 0)
    for one in results:
        if one.benchmark.kind != "format" or not one.metrics:
            continue
        cells = {arm: one.metrics[0].cells.get((arm.name, arm.seed)) for arm in arms if arm.seed in {0, seed}}
        runs = {arm: cell.run_id for arm, cell in cells.items() if cell}
        scorers = {arm: material.runs[run_id].recipe.get("scorer") for arm, run_id in runs.items()}
        by = next((scorer for scorer in scorers.values() if scorer is not None), None)
        # two reward models have no scale in common: what another one than the first scored stays out
        values = {arm: _rewards_of(session, run_id) for arm, run_id in runs.items() if scorers[arm] == by}
        values = {arm: numbers for arm, numbers in values.items() if numbers}
        if not values:
            continue
        bins = shared_bins({arm.name: numbers for arm, numbers in values.items()}, 24)
        highest = max(bar.count for bars in bins.values() for bar in bars)
        means = {arm.name: float(np.mean(numbers)) for arm, numbers in values.items()}
        methods = {arm.name: arm.method for arm in values}
        is_signal = by is not None and _had_a_part(session, material, arms, by)
        return Rewards(_scorer_name(session, material, by), bins, methods, means, highest, is_signal)
    return None


def _rewards_of(session: Session, run_id: int) -> list[float]:
    wanted = select(Score.value).where(
        Score.run_id == run_id, Score.metric == "reward", col(Score.value).is_not(None)
    )  # fmt: skip
    return [float(value) for value in session.exec(wanted) if value is not None]


def _had_a_part(session: Session, material: Material, arms: list[ReportArm], key: int) -> bool:
    """Whether an arm, or what it grew from, was rewarded by this reward model or learned from the verdicts it did."""

    def labels(run_ids: set[int]) -> set[int]:
        keys = [ref for run_id in run_ids for noun, ref in material.reads.get(run_id, []) if noun == "snapshot"]
        return set(session.exec(select(Snapshot.verdict_set_id).where(col(Snapshot.id).in_(keys))))

    trained = {one for arm in arms if arm.run is not None for one in lineage(material, arm.run.id)}
    what = ("checkpoint", key)
    is_rewarding = any(
        what in material.reads.get(run_id, []) and not is_only_read(material.runs[run_id].recipe, *what)
        for run_id in trained
    )
    return is_rewarding or bool(labels({get(session, Checkpoint, key).run_id or 0}) & labels(trained))


def _scorer_name(session: Session, material: Material, key: int | None) -> str:
    """What the experiment calls the reward model: its step's name, else its own."""
    if key is None:
        return "the reward model"
    made = (step.name for step in material.steps if material.made(step, "checkpoint") == key)
    return next(made, None) or get(session, Checkpoint, key).name
