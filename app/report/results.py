"""An experiment's benchmark results: each arm and seed, its difference from the base, mean and spread over seeds."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from app.benchmarks.definitions import chance_of, in_order, label_of, title_of
from app.benchmarks.models import Benchmark
from app.benchmarks.scores import ItemMean, Level, difference, read_items, read_levels
from app.db import get
from app.experiments.models import Experiment
from app.report.arms import SHARED, Material, ReportArm, pick_base, read_arms, read_material
from app.report.signals import training_signals
from app.stats.comparisons import Difference


@dataclass(frozen=True)
class Cell:
    """One metric of one arm and seed."""

    run_id: int
    scored: tuple[str, int]  # what was scored, as `ReportArm.scored`
    level: Level
    difference: Difference | None  # from the base of the same seed, on the same items; None for the base itself


@dataclass(frozen=True)
class Spread:
    """A number over seeds: its mean, its standard deviation (None for one seed), lowest and highest."""

    mean: float
    sd: float | None
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class MetricResults:
    """One metric of one benchmark over all arms and seeds."""

    benchmark: Benchmark
    title: str  # the benchmark's
    metric: str
    label: str
    chance: float | None
    signal: str  # why it is the training signal; empty where it is not
    cells: dict[tuple[str, int], Cell]  # (arm, seed)

    def spread(self, arm: str, of: str = "level") -> Spread | None:
        """The level, or the difference from the base, over seeds; a checkpoint that several seeds share counts once."""
        found: dict[tuple[str, int], list[float]] = {}
        for (name, _), cell in self.cells.items():
            if name == arm and of == "level" and cell.level.interval:
                found.setdefault(cell.scored, []).append(cell.level.interval.value)
            elif name == arm and of == "difference" and cell.difference:
                found.setdefault(cell.scored, []).append(cell.difference.value)
        if not found:
            return None
        values = [statistics.fmean(same) for same in found.values()]
        sd = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))


@dataclass(frozen=True)
class BenchmarkResults:
    """One benchmark of the experiment; the first metric is its main one."""

    benchmark: Benchmark
    title: str
    metrics: list[MetricResults]
    scored: list[ReportArm]


@dataclass(frozen=True)
class ResultRow:
    """A line of the result table: one arm and seed, and what it cost."""

    arm: str
    method: str
    seed: int
    values: dict[str, Cell | None]  # column → cell
    data: str
    budget: Mapping[str, float] = field(default_factory=dict)


def read_results(
    session: Session, material: Material, arms: list[ReportArm]
) -> tuple[list[BenchmarkResults], list[ReportArm]]:
    """Results of every finished benchmark step, and what it scored that has no arm's name (reward models)."""
    known = {arm.scored: arm for arm in arms}
    scored: dict[int, list[tuple[ReportArm, int]]] = {}
    for step in material.of_kind("benchmark"):
        run, benchmark_id = material.run_of(step), material.made(step, "benchmark")
        if run is None or benchmark_id is None:
            continue
        noun = "checkpoint" if run.recipe.get("checkpoint") is not None else "arm"
        key = int(run.recipe[noun])
        same = [one for one in arms if one.scored == (noun, key)]  # several where seeds share a checkpoint
        arm = next((one for one in same if one.seed == step.seed), known.get((noun, key)))
        arm = arm or (_unnamed(session, material, key) if noun == "checkpoint" else None)
        if arm is not None:
            known.setdefault((noun, key), arm)
            scored.setdefault(benchmark_id, []).append((arm, run.id))
    signals = training_signals(session, material)
    found = [_read_one(session, get(session, Benchmark, key), rows, arms, signals) for key, rows in scored.items()]
    return found, [arm for arm in known.values() if arm not in arms]


def _unnamed(session: Session, material: Material, checkpoint_id: int) -> ReportArm | None:
    """A checkpoint that the file gave no arm's name, such as the reward model."""
    from app.checkpoints.models import Checkpoint

    for step in material.steps:
        if material.made(step, "checkpoint") == checkpoint_id:
            row = get(session, Checkpoint, checkpoint_id)
            run = material.run_of(step)
            return ReportArm(
                step.name, row.method, step.seed, row, step, run, "", "", run.cost if run else {}, None, ""
            )
    return None


def _read_one(
    session: Session, benchmark: Benchmark, rows: list[tuple[ReportArm, int]], arms: list[ReportArm],
    signals: dict[tuple[str, str], str],
) -> BenchmarkResults:  # fmt: skip
    levels = read_levels(session, [run_id for _, run_id in rows])
    run_of = {(arm.name, arm.seed): run_id for arm, run_id in rows}
    items: dict[tuple[int, str], dict[str, ItemMean]] = {}

    def read(run_id: int, metric: str) -> dict[str, ItemMean]:
        if (run_id, metric) not in items:
            items[run_id, metric] = read_items(session, run_id, metric)
        return items[run_id, metric]

    metrics = []
    for metric in in_order(benchmark, {name for _, name, _ in levels}):
        cells = {}
        for arm, run_id in rows:
            level = levels.get((run_id, metric, ""))
            if level is None:
                continue
            base = pick_base(arms, arm)
            other = run_of.get((base.name, base.seed)) if base else None
            known = other is not None and other != run_id and (other, metric, "") in levels
            found = difference(read(run_id, metric), read(other, metric)) if known and other is not None else None
            cells[arm.name, arm.seed] = Cell(run_id, arm.scored, level, found)
        label = label_of(benchmark.name, metric)
        signal = signals.get((benchmark.name, metric), "")
        metrics.append(
            MetricResults(benchmark, title_of(benchmark), metric, label, chance_of(benchmark, metric), signal, cells)
        )
    return BenchmarkResults(benchmark, title_of(benchmark), metrics, [arm for arm, _ in rows])


# The columns of the format study, in the order its table is read; other studies show each benchmark's main metric.
FORMAT_COLUMNS = (
    ("strict_format", "format", "format, sampled"),
    ("strict_format", "accuracy", "accuracy, sampled"),
    ("demo_facts", "acc", "4-choice"),
    ("strict_format", "format_greedy", "format, greedy"),
    ("strict_format", "accuracy_greedy", "accuracy, greedy"),
)


def table_columns(results: list[BenchmarkResults]) -> list[tuple[str, MetricResults]]:
    """(heading, metric) of the result table."""
    names = [one.benchmark.name for one in results]
    chosen, rest = [], results
    if "strict_format" in names:
        for name, wanted, heading in FORMAT_COLUMNS:
            for one in results:
                again = f", version {one.benchmark.version}" if names.count(name) > 1 else ""
                found = [metric for metric in one.metrics if one.benchmark.name == name and metric.metric == wanted]
                chosen += [(heading + again, metric) for metric in found]
        rest = [one for one in results if one.benchmark.name not in {name for name, _, _ in FORMAT_COLUMNS}]
    return chosen + [(f"{one.title}: {metric.label}", metric) for one in rest for metric in one.metrics[:1]]


def result_rows(arms: list[ReportArm], columns: list[tuple[str, MetricResults]]) -> list[ResultRow]:
    """One row an arm and seed, arms in the file's order."""
    order = list(dict.fromkeys(arm.name for arm in arms))
    return [
        ResultRow(
            arm.name, arm.method, arm.seed, {head: metric.cells.get((arm.name, arm.seed)) for head, metric in columns},
            arm.data, arm.whole_cost,
        )
        for arm in sorted(arms, key=lambda arm: (order.index(arm.name), arm.seed))
    ]  # fmt: skip


def result_table(session: Session, experiment: Experiment) -> list[ResultRow]:
    """The table that the demo ends with: every arm and seed with its levels, differences and budget."""
    material = read_material(session, experiment)
    arms = read_arms(session, material)
    results, _ = read_results(session, material, arms)
    return result_rows(arms, table_columns(results))


def result_lines(rows: list[ResultRow]) -> list[str]:
    """The table as text for a terminal. Where all arms of a column have the same n, it stands in the heading."""
    if not rows:
        return ["No arm has a checkpoint yet."]
    columns = [["arm"], ["seed"]]
    columns[0] += ["", "", *[row.arm for row in rows]]
    columns[1] += ["", "", *["all" if row.seed == SHARED else str(row.seed) for row in rows]]
    for head in rows[0].values:
        cells = [row.values[head] for row in rows]
        sizes = {cell.level.interval.n for cell in cells if cell is not None and cell.level.interval is not None}
        first, _, second = head.partition(": ")
        columns.append([first, second, f"n = {min(sizes)}" if len(sizes) == 1 else ""])
        columns[-1] += [_as_text(cell, has_n=len(sizes) > 1) for cell in cells]
    columns.append(["trained on", "", "", *[row.data for row in rows]])
    columns.append(["CPU s", "", "", *[f"{row.budget.get('cpu_seconds', 0):.0f}" for row in rows]])
    widths = [max(map(len, column)) for column in columns]
    table = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in zip(*columns, strict=True)
    ]
    lines = ["  ".join(line).rstrip() for line in table]
    return [*[line for line in lines[:3] if line], "─" * max(map(len, lines)), *lines[3:]]


def _as_text(cell: Cell | None, *, has_n: bool) -> str:
    if cell is None or cell.level.interval is None:
        return "–"
    found = cell.level.interval
    width = f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None and found.high is not None else ""
    return f"{found.value:.2f}{width}" + (f" n={found.n}" if has_n else "")


def as_number_row(row: ResultRow) -> dict[str, Any]:
    """A row as plain values, for JSON."""
    return {
        "arm": row.arm, "seed": row.seed, "trained_on": row.data, "budget": dict(row.budget),
        **{
            head: cell and {
                **cell.level.as_row(), "run": cell.run_id,
                "difference": cell.difference and {
                    "value": cell.difference.value, "low": cell.difference.low, "high": cell.difference.high,
                    "p": cell.difference.p, "n": cell.difference.n,
                },
            }
            for head, cell in row.values.items()
        },
    }  # fmt: skip
