"""Pages of benchmarks: every arm's levels, one benchmark with differences and categories, and its items."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import Session, col, select

from app.benchmarks.definitions import DEFINITIONS, chance_of, in_order, label_of, title_of
from app.benchmarks.items import items_table
from app.benchmarks.models import Benchmark, Score
from app.benchmarks.scores import Scored, find_scored, pick_base, read_differences, read_levels
from app.checkpoints.models import Arm
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.projects.access import Member, Viewer
from app.runs.models import Run
from app.runs.queue import outputs
from app.runs.routes import project_run
from app.tables import FORMATS, Format, respond, respond_rows

router = APIRouter()

LEVEL_COLUMNS = [
    *("benchmark", "version", "arm", "arm_id", "run", "metric", "value", "low", "high", "n", "n_items", "n_clusters"),
    *("n_truncated", "n_unreadable", "chance"),
]


def project_benchmark(session: Session, member: Member, benchmark_id: int) -> Benchmark:
    """A benchmark of this project; raises NotFound."""
    benchmark = get(session, Benchmark, benchmark_id)
    if benchmark.project_id != member.project.id:
        raise NotFound(f"There is no benchmark {benchmark_id}.")
    return benchmark


def level_rows(session: Session, scored: list[Scored]) -> list[dict[str, Any]]:
    """Every level of these arms as plain rows: what the downloads hold."""
    levels = read_levels(session, [one.run_id for one in scored])
    return [
        {
            "benchmark": one.benchmark.name,
            "version": one.benchmark.version,
            "arm": one.arm.name,
            "arm_id": one.arm.id,
            "run": one.run_id,
            **levels[one.run_id, metric, ""].as_row(),
            "chance": chance_of(one.benchmark, metric),
        }
        for one in scored
        for metric in in_order(one.benchmark, {name for run_id, name, _ in levels if run_id == one.run_id})
    ]


@router.get("/p/{project}/benchmarks")
def list_benchmarks(request: Request, member: Viewer, session: Db) -> Response:
    """Every benchmark that was run, with each arm's levels."""
    scored = find_scored(session, member.project.id)
    levels = read_levels(session, [one.run_id for one in scored])
    sections: dict[int, dict[str, Any]] = {}
    for one in scored:
        section = sections.setdefault(one.benchmark.id, {"benchmark": one.benchmark, "scored": [], "metrics": []})
        section["scored"].append(one)
        known = {metric for run_id, metric, _ in levels if run_id == one.run_id}
        section["metrics"] += [m for m in in_order(one.benchmark, known) if m not in section["metrics"]]
    live = session.exec(
        select(Run)
        .where(Run.project_id == member.project.id, Run.kind == "benchmark", col(Run.status).in_(["queued", "running"]))
        .order_by(col(Run.id))
    ).all()
    return html(request, "benchmarks/list.html", title="Benchmarks", sections=list(sections.values()), levels=levels,
                live=live, definitions=DEFINITIONS, label_of=label_of, chance_of=chance_of)  # fmt: skip


def _levels_download(fmt: Format) -> Any:
    def download_levels(member: Viewer, session: Db) -> Response:
        rows = level_rows(session, find_scored(session, member.project.id))
        return respond_rows("benchmarks", LEVEL_COLUMNS, rows, fmt)

    download_levels.__doc__ = f"Every arm's levels as {fmt}."
    return download_levels


def _one_download(fmt: Format) -> Any:
    def download_benchmark(member: Viewer, session: Db, benchmark_id: int) -> Response:
        benchmark = project_benchmark(session, member, benchmark_id)
        rows = level_rows(session, find_scored(session, member.project.id, benchmark.id))
        return respond_rows(f"{benchmark.name}-v{benchmark.version}", LEVEL_COLUMNS, rows, fmt)

    download_benchmark.__doc__ = f"One benchmark's levels as {fmt}."
    return download_benchmark


@router.get("/p/{project}/benchmarks/{benchmark_id:int}")
def show_benchmark(
    request: Request, member: Viewer, session: Db, benchmark_id: int, base: int | None = None, metric: str = ""
) -> Response:
    """One benchmark: levels, paired differences to one arm, and categories."""
    benchmark = project_benchmark(session, member, benchmark_id)
    scored = find_scored(session, member.project.id, benchmark.id)
    levels = read_levels(session, [one.run_id for one in scored])
    metrics = in_order(benchmark, {metric for _, metric, _ in levels})
    metric = metric if metric in metrics else (metrics[0] if metrics else "")
    having = [one for one in scored if (one.run_id, metric, "") in levels]
    chosen = pick_base(having, base)
    others = [one for one in having if chosen and one.run_id != chosen.run_id]
    differences = read_differences(session, chosen.run_id, [one.run_id for one in others], metric) if chosen else {}
    return html(
        request, "benchmarks/show.html", title=title_of(benchmark), benchmark=benchmark, scored=scored,
        levels=levels, metrics=metrics, metric=metric, base=chosen, others=others, differences=differences,
        level_points=[_point(one, levels[one.run_id, metric, ""]) for one in having],
        difference_points=[_difference_point(o, differences[o.run_id][0]) for o in others if o.run_id in differences],
        categories=_categories(session, scored, metric), definition=DEFINITIONS.get(benchmark.name),
        label_of=label_of, chance=chance_of(benchmark, metric), chance_of=chance_of,
    )  # fmt: skip


def _point(one: Scored, level: Any) -> dict[str, Any]:
    found = level.interval
    return {
        "label": one.arm.name, "method": one.arm.method, "value": found and found.value, "low": found and found.low,
        "high": found and found.high, "n": level.n_text,
    }  # fmt: skip


def _difference_point(one: Scored, found: Any) -> dict[str, Any]:
    return {
        "label": one.arm.name, "method": one.arm.method, "value": found.value, "low": found.low, "high": found.high,
        "n": found.n,
    }  # fmt: skip


def _categories(session: Session, scored: list[Scored], metric: str) -> dict[str, dict[int, Any]]:
    """category → run → level; empty where there is only one category."""
    levels = read_levels(session, [one.run_id for one in scored], by_category=True)
    found: dict[str, dict[int, Any]] = {}
    for (run_id, name, category), level in sorted(levels.items(), key=lambda pair: pair[0][2]):
        if name == metric and category:
            found.setdefault(category, {})[run_id] = level
    return found if len(found) > 1 else {}


@router.get("/p/{project}/benchmarks/{benchmark_id:int}/items")
def list_items(
    request: Request, member: Viewer, session: Db, benchmark_id: int, arm: int | None = None, base: int | None = None,
    metric: str = "",
) -> Response:  # fmt: skip
    """The items, with what two arms scored on each."""
    benchmark = project_benchmark(session, member, benchmark_id)
    table, said = items_table(session, f"/p/{member.project.slug}", benchmark, arm, base, metric)
    return respond(request, session, table, "html", "benchmarks/items.html", title=f"{title_of(benchmark)}: items",
                   label_of=label_of, **said)  # fmt: skip


def _items_download(fmt: Format) -> Any:
    def download_items(
        request: Request,
        member: Viewer,
        session: Db,
        benchmark_id: int,
        arm: int | None = None,
        base: int | None = None,
        metric: str = "",
    ) -> Response:
        benchmark = project_benchmark(session, member, benchmark_id)
        table, _ = items_table(session, f"/p/{member.project.slug}", benchmark, arm, base, metric)
        return respond(request, session, table, fmt, "benchmarks/items.html")

    download_items.__doc__ = f"The items as {fmt}."
    return download_items


_BELOW = "/p/{project}/benchmarks"
for _fmt in FORMATS:
    router.get(f"{_BELOW}.{_fmt}", name=f"download_levels_{_fmt}")(_levels_download(_fmt))  # type: ignore[arg-type]
    router.get(f"{_BELOW}/{{benchmark_id:int}}.{_fmt}", name=f"download_benchmark_{_fmt}")(_one_download(_fmt))  # type: ignore[arg-type]
    router.get(f"{_BELOW}/{{benchmark_id:int}}/items.{_fmt}", name=f"download_items_{_fmt}")(_items_download(_fmt))  # type: ignore[arg-type]


@router.get("/p/{project}/benchmarks/{benchmark_id:int}/items/{score_id:int}")
def show_item(request: Request, member: Viewer, session: Db, benchmark_id: int, score_id: int) -> Response:
    """One item: the prompt, the choices, and what every arm made of it."""
    benchmark = project_benchmark(session, member, benchmark_id)
    score = get(session, Score, score_id)
    if score.benchmark_id != benchmark.id:
        raise NotFound(f"There is no item {score_id} in this benchmark.")
    scored = find_scored(session, member.project.id, benchmark.id)
    found = session.exec(
        select(Score)
        .where(col(Score.run_id).in_([one.run_id for one in scored]), Score.item == score.item)
        .where(col(Score.arm_id).in_([one.arm.id for one in scored]))
        .order_by(col(Score.metric), col(Score.sample))
    ).all()
    of_run: dict[int, dict[str, list[Score]]] = {}
    for row in found:
        of_run.setdefault(row.run_id, {}).setdefault(row.metric, []).append(row)
    words: dict[str, Any] = next((row.detail for row in found if "prompt" in row.detail), {})
    return html(
        request, "benchmarks/item.html", title=f"{title_of(benchmark)}: item {score.item}", benchmark=benchmark,
        item=score, scored=[one for one in scored if one.run_id in of_run], of_run=of_run, label_of=label_of,
        prompt=words.get("prompt", ""), reference=words.get("reference"),
    )  # fmt: skip


@router.get("/p/{project}/runs/{run_id}/panel/benchmark")
def show_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """The run's own levels, as far as it has come."""
    run = project_run(session, member, run_id)
    made = outputs(session, run.id, "benchmark")
    benchmark = get(session, Benchmark, made[0]) if made else None
    arms = outputs(session, run.id, "arm")
    levels = read_levels(session, [run.id]) if made else {}
    metrics = in_order(benchmark, {metric for _, metric, _ in levels}) if benchmark else []
    return html(request, "benchmarks/_panel.html", run=run, benchmark=benchmark, levels=levels, metrics=metrics,
                arm=get(session, Arm, arms[0]) if arms else None, label_of=label_of, chance_of=chance_of,
                title_of=title_of)  # fmt: skip
