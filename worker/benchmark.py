"""Scores one checkpoint or arm on one benchmark, item by item; what is stored already is not scored again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import select

from app.benchmarks.definitions import DEFINITIONS, find_or_make_benchmark
from app.benchmarks.models import Score
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.arms import find_or_make_arm
from app.errors import AppError
from worker.job import Job

# Enough items to tell a share from an accident, where truncation is only seen while scoring.
ENOUGH = 32


class TooManyTruncated(AppError):
    """More items are cut than the recipe allows, so the score would be about something else."""

    status_code = 422


@dataclass(frozen=True)
class Row:
    """One metric of one item; becomes a Score."""

    metric: str
    item: str
    cluster: str
    value: float | None
    category: str = ""
    sample: int = 0
    is_truncated: bool = False
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """A unit of resume, fixed before the start: the (metric, item, sample) it stores, and how to score it."""

    keys: frozenset[tuple[str, str, int]]
    score: Callable[[], list[Row]]


@dataclass(frozen=True)
class Plan:
    """Everything to be scored. `settings` is what makes two scores comparable."""

    settings: dict[str, Any]
    decoding: dict[str, Any]
    batches: Sequence[Batch]
    n_truncated: int | None = None  # of n_items; None where only scoring tells
    n_items: int = 0


def run_benchmark(job: Job) -> None:
    """Plans, checks truncation, then scores batch by batch; each batch is stored as a whole."""
    recipe: BenchmarkRecipe = job.recipe
    plan = _plan(job, recipe)
    if plan.n_truncated is not None:
        check_truncated(plan.n_truncated, plan.n_items, recipe.max_truncated)
    with job.write() as session:
        benchmark = find_or_make_benchmark(session, job.project_id, recipe.benchmark, plan.settings)
        checkpoint, preamble = recipe.subject(session)
        arm = find_or_make_arm(
            session, job.project_id, checkpoint=checkpoint, few_shot=preamble, decoding=plan.decoding
        )  # fmt: skip
        benchmark_id, arm_id = benchmark.id, arm.id
        job.made(session, "benchmark", benchmark_id)
        job.made(session, "arm", arm_id, arm.sha256)
    _score(job, plan, benchmark_id, arm_id)


def _plan(job: Job, recipe: BenchmarkRecipe) -> Plan:
    kind = DEFINITIONS[recipe.benchmark].kind
    if kind == "lm_eval":
        from worker.benchmark_lm_eval import plan_lm_eval

        return plan_lm_eval(job, recipe)
    if kind == "format":
        from worker.benchmark_format import plan_format

        return plan_format(job, recipe)
    from worker.benchmark_safety import plan_safety

    return plan_safety(job, recipe)


def _score(job: Job, plan: Plan, benchmark_id: int, arm_id: int) -> None:
    with job.read() as session:
        stored = session.exec(
            select(Score.metric, Score.item, Score.sample, Score.is_truncated).where(Score.run_id == job.run_id)
        ).all()
    done = {(metric, item, sample) for metric, item, sample, _ in stored}
    n_truncated = sum(is_truncated for *_, is_truncated in stored)
    total = sum(len(batch.keys) for batch in plan.batches)
    n_done = len(done)
    if done:
        job.log(f"{n_done:,} of {total:,} scores are there already")
    for batch in plan.batches:
        if batch.keys <= done:
            continue
        job.progress(n_done, total)
        rows = batch.score()
        with job.write() as session:
            session.add_all(
                Score(
                    run_id=job.run_id, arm_id=arm_id, benchmark_id=benchmark_id, metric=row.metric, item=row.item,
                    cluster=row.cluster, category=row.category, sample=row.sample, value=row.value,
                    is_truncated=row.is_truncated, detail=row.detail,
                )
                for row in rows
            )  # fmt: skip
        n_done += len(rows)
        n_truncated += sum(row.is_truncated for row in rows)
        if n_done >= min(ENOUGH, total):
            check_truncated(n_truncated, n_done, job.recipe.max_truncated)
    job.progress(total, total)


def check_truncated(n_truncated: int, n: int, max_share: float) -> None:
    """Raises TooManyTruncated with the reason and what to do."""
    if n and n_truncated / n > max_share:
        raise TooManyTruncated(
            f"{n_truncated:,} of {n:,} items ({n_truncated / n:.0%}) exceed the model's context and would be cut "
            f"from the left; the recipe allows {max_share:.0%}. Use fewer few-shot examples or a model with a longer "
            "context, or raise “Stop when more than this share of items is truncated” to score them as they are."
        )
