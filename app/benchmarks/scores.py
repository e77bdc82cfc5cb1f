"""Scores read back: the level of each arm, its difference from another arm on the same items, both also by category."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.benchmarks.definitions import UNBOUNDED
from app.benchmarks.models import Benchmark, Score
from app.checkpoints.models import Arm
from app.runs.models import Run, RunIo
from app.stats.comparisons import Difference, holm, paired_difference
from app.stats.intervals import Interval, rate_interval


@dataclass(frozen=True)
class Scored:
    """A finished run that scored an arm on a benchmark. Where there are several, the newest counts."""

    run_id: int
    benchmark: Benchmark
    arm: Arm


@dataclass(frozen=True)
class Level:
    """One metric of one arm: a rate over prompts × samples, clustered by prompt."""

    metric: str
    interval: Interval | None  # None: nothing could be read
    n_items: int
    n: int
    n_truncated: int
    n_null: int

    @property
    def n_text(self) -> str:
        """n as a page prints it: items, and samples of each where there are several."""
        samples = self.n // self.n_items if self.n_items and self.n % self.n_items == 0 else 0
        return f"{self.n_items:,} × {samples}" if samples > 1 else f"{self.n:,}"

    def as_row(self) -> dict[str, Any]:
        """Its numbers as plain values."""
        found = self.interval
        return {
            "metric": self.metric,
            "value": found and found.value,
            "low": found and found.low,
            "high": found and found.high,
            "n": self.n,
            "n_items": self.n_items,
            "n_clusters": found and found.n_clusters,
            "n_truncated": self.n_truncated,
            "n_unreadable": self.n_null,
        }

    @property
    def truncated_share(self) -> float:
        """Share of scores whose item was cut."""
        return self.n_truncated / (self.n + self.n_null) if self.n + self.n_null else 0.0


def _made(io: Any, noun: str) -> Any:
    return sa.and_(io.run_id == col(Run.id), io.is_output, io.noun == noun)


def find_scored(session: Session, project_id: int, benchmark_id: int | None = None) -> list[Scored]:
    """The newest finished run of every (benchmark, arm) of a project; benchmarks newest first, arms by age."""
    of_arm, of_benchmark = aliased(RunIo), aliased(RunIo)
    query = (
        sa.select(col(Run.id), Benchmark, Arm)
        .join(of_benchmark, _made(of_benchmark, "benchmark"))
        .join(of_arm, _made(of_arm, "arm"))
        .join(Benchmark, col(Benchmark.id) == col(of_benchmark.ref_id))
        .join(Arm, col(Arm.id) == col(of_arm.ref_id))
        .where(col(Run.project_id) == project_id, col(Run.kind) == "benchmark", col(Run.status) == "done")
        .order_by(col(Run.id))
    )
    if benchmark_id is not None:
        query = query.where(col(Benchmark.id) == benchmark_id)
    rows = session.execute(query).all()
    newest = {(benchmark.id, arm.id): Scored(run_id, benchmark, arm) for run_id, benchmark, arm in rows}
    return sorted(newest.values(), key=lambda one: (one.benchmark.name, -one.benchmark.version, one.arm.id))


def read_levels(
    session: Session, run_ids: Iterable[int], by_category: bool = False
) -> dict[tuple[int, str, str], Level]:
    """(run, metric, category) → level; the category is "" unless asked for. One query, summed by cluster in SQL."""
    category = col(Score.category) if by_category else sa.literal("")
    groups: list[Any] = [col(Score.run_id), col(Score.metric), *([category] if by_category else [])]
    query = (
        sa.select(
            col(Score.run_id),
            col(Score.metric),
            category,
            sa.func.coalesce(sa.func.sum(Score.value), 0.0),
            sa.func.count(col(Score.value)),
            sa.func.count(),
            sa.func.count(sa.distinct(col(Score.item))),
            sa.func.sum(sa.case((col(Score.is_truncated), 1), else_=0)),
        )
        .where(col(Score.run_id).in_(list(run_ids)), col(Score.metric).not_in(UNBOUNDED))
        .group_by(*groups, col(Score.cluster))
    )
    found: dict[tuple[int, str, str], list[tuple[float, int, int, int, int]]] = {}
    for run_id, metric, name, total, n, n_rows, n_items, n_cut in session.execute(query):
        found.setdefault((run_id, metric, name), []).append((total, n, n_rows, n_items, n_cut))
    return {key: _level(key[1], clusters) for key, clusters in found.items()}


def _level(metric: str, clusters: list[tuple[float, int, int, int, int]]) -> Level:
    totals, sizes, rows, items, cut = zip(*clusters, strict=True)
    n = sum(sizes)
    # A sum of floats may pass its count by a rounding error.
    held = [min(max(total, 0.0), size) for total, size in zip(totals, sizes, strict=True)]
    interval = rate_interval(held, list(sizes)) if n else None
    return Level(metric, interval, sum(items), n, sum(cut), sum(rows) - n)


@dataclass(frozen=True)
class ItemMean:
    """An item's mean over its samples."""

    item: str
    cluster: str
    category: str
    value: float


def read_items(session: Session, run_id: int, metric: str) -> dict[str, ItemMean]:
    """item → its mean value, for items that could be read."""
    query = (
        sa.select(col(Score.item), sa.func.min(Score.cluster), sa.func.min(Score.category), sa.func.avg(Score.value))
        .where(col(Score.run_id) == run_id, col(Score.metric) == metric, col(Score.value).is_not(None))
        .group_by(col(Score.item))
    )
    return {
        item: ItemMean(item, cluster, category, float(value))
        for item, cluster, category, value in session.execute(query)
    }


def difference(mine: Mapping[str, ItemMean], other: Mapping[str, ItemMean], category: str = "") -> Difference | None:
    """mine − other over the items both have, clustered by prompt; None where they share none."""
    shared = sorted(item for item in mine.keys() & other.keys() if category in ("", mine[item].category))
    if not shared:
        return None
    return paired_difference(
        [mine[i].value for i in shared], [other[i].value for i in shared], [mine[i].cluster for i in shared]
    )


def read_differences(
    session: Session, base: int, others: Iterable[int], metric: str
) -> dict[int, tuple[Difference, float]]:
    """run → (its difference from the run `base`, p after Holm over these runs)."""
    of_base = read_items(session, base, metric)
    found = {run_id: difference(read_items(session, run_id, metric), of_base) for run_id in others}
    known = {run_id: one for run_id, one in found.items() if one is not None}
    adjusted = holm([one.p for one in known.values()])
    return {run_id: (one, p) for (run_id, one), p in zip(known.items(), adjusted, strict=True)}


def pick_base(scored: list[Scored], asked: int | None = None) -> Scored | None:
    """The arm that others are compared with: the one asked for, else one called base, else the oldest."""
    by_arm = {one.arm.id: one for one in scored}
    if asked in by_arm:
        return by_arm[asked]
    return next((one for one in scored if one.arm.method == "base"), scored[0] if scored else None)
