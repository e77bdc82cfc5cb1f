"""Runs: the list, one run's page with live progress and curves, cancel, resume, and its numbers as JSON."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Any

import sqlalchemy as sa
import yaml
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlmodel import Session, SQLModel, col, select

from app.db import MAX_ID, Db, db_now, get, reading
from app.errors import NotFound
from app.html import html
from app.projects.access import Member, Researcher, Viewer
from app.runs.curves import list_figures, read_curves
from app.runs.event_files import write_events
from app.runs.lineage import HEIGHT, WIDTH, read_graph, runs_like
from app.runs.models import LIVE, RUN_STATE, STATES, LogLine, Metric, Run, RunIo, RunNeed, Sampled, Worker
from app.runs.queue import cancel, resume, say_wait
from app.tables import FORMATS, Column, Filter, Format, Table, respond

router = APIRouter()

# Where the page of a noun's row lives; slices answer these addresses.
PAGES = {
    "annotation_set": "annotations",
    "prompt_set": "prompts", "pair_set": "pairs", "verdict_set": "judge", "judge": "judge/judges", "queue": "review",
    "revision_set": "revisions", "rating_set": "judge/ratings",
    "judge_card": "judge/cards",
    "snapshot": "train/snapshots", "checkpoint": "checkpoints", "endpoint": "checkpoints/endpoints",
    "constitution": "constitutions", "grading": "grade", "arm": "checkpoints/arms", "benchmark": "benchmarks",
}  # fmt: skip
DAY_S = 86_400
MOST_WORKERS = 50  # listed
MOST_STRIPS, MOST_FRAMES, FRAME_CHARS = 4, 12, 280  # of the film strip: prompts, steps, characters of each
PANELS = {
    "import_prompts", "import_pairs", "import_annotations", "peek_hub", "generate", "judge", "card", "sft", "reward",
    "dpo", "simpo", "kto", "ppo", "grpo", "rloo", "benchmark", "grading", "export",
}  # fmt: skip


# A run that never knew how much there is, such as an import, has done all of it at its end.
TOTAL = sa.case((sa.and_(col(Run.total) == 0, col(Run.status) == "done"), col(Run.done)), else_=col(Run.total))


def project_run(session: Session, member: Member, run_id: int) -> Run:
    """A run of this project; raises NotFound."""
    run = get(session, Run, run_id)
    if run.project_id != member.project.id:
        raise NotFound(f"There is no run {run_id}.")
    return run


def runs_table(member: Member) -> Table:
    """The project's runs."""
    root = f"/p/{member.project.slug}/runs"
    columns = [
        Column("id", Run.id, "Run", "number", lambda row: f"{root}/{row['id']}"),
        Column("kind", Run.kind, "Kind", "word"),
        Column("title", Run.title, "Title", href=lambda row: f"{root}/{row['id']}"),
        Column("status", RUN_STATE, "Status", "badge"),
        Column("done", Run.done, "Done", "number"),
        Column("total", TOTAL, "Of", "number"),
        Column("attempt", Run.attempt, "Attempt", "number", is_shown=False),
        Column("created_at", Run.created_at, "Created", "when", is_sortable=True),
        Column("ended_at", Run.ended_at, "Ended", "when", is_sortable=True),
        Column("recipe", Run.recipe, "Recipe", is_shown=False),
        Column("cost", Run.cost, "Cost", is_shown=False),
        Column("error", Run.error, "Error", is_shown=False),
    ]
    filters = [
        Filter("status", RUN_STATE, "Status", STATES),
        Filter("kind", Run.kind, "Kind", cast=lambda said: said.strip().lower().replace(" ", "_")),
    ]
    return Table("runs", columns, Run, Run.id, [Run.project_id == member.project.id], filters)


@router.get("/p/{project}/runs")
def list_runs(request: Request, member: Viewer, session: Db) -> Response:
    """The project's runs."""
    return respond(request, session, runs_table(member), "html", "runs/list.html", title="Runs")


def _download(fmt: Format) -> Any:
    def download_runs(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, runs_table(member), fmt, "runs/list.html")

    download_runs.__doc__ = f"The project's runs as {fmt}."
    return download_runs


for _fmt in FORMATS:
    router.get(f"/p/{{project}}/runs.{_fmt}", name=f"download_runs_{_fmt}")(_download(_fmt))  # type: ignore[arg-type]


def run_as_json(run: Run) -> dict[str, Any]:
    """A run as the API shows it."""
    return {
        **run.model_dump(mode="json", exclude={"project_id", "account_id", "form_key"}),
        "status": run.state,
        "cost": run.spent,
        "seconds_left": seconds_left(run),
    }


def run_in_full(session: Session, run: Run) -> dict[str, Any]:
    """The same with the rows that it read and made: noun, id, name and, where it has one, the hash."""
    return {
        **run_as_json(run), "read": list_rows(session, run, is_output=False),
        "made": list_rows(session, run, is_output=True),
    }  # fmt: skip


def rate_of(run: Run) -> float | None:
    """How much is done a second, on average since this attempt began to count."""
    n = run.done - run.counted_from
    if run.counted_at is None or n <= 0:
        return None
    return n / max(((run.ended_at or datetime.now(UTC)) - run.counted_at).total_seconds(), 1e-9)


def seconds_left(run: Run) -> float | None:
    """Time left at the average rate so far, in seconds."""
    rate = rate_of(run)
    return (run.total - run.done) / rate if rate and run.status == "running" and run.total > run.done else None


def count_refused(session: Session, run: Run) -> int:
    """The bad rows that alone stopped an import: without them it would go through. 0 for any other run."""
    if run.status != "failed" or run.recipe.get("may_reject") is not False or not 0 < run.done < run.total:
        return 0
    rejected = SQLModel.metadata.tables["rejected_row"].c
    is_stored = session.execute(sa.select(rejected.id).where(rejected.run_id == run.id).limit(1)).first()
    return run.total - run.done if is_stored else 0


def list_rows(session: Session, run: Run, *, is_output: bool) -> list[dict[str, Any]]:
    """What a run made, or what it read: noun, id and name."""
    same = select(RunIo).where(RunIo.run_id == run.id, RunIo.is_output == is_output)
    rows = []
    for row in session.exec(same.order_by(col(RunIo.id))).all():
        table = SQLModel.metadata.tables[row.noun]
        found = session.execute(table.select().where(table.c.id == row.ref_id)).mappings().one()
        name = found.get("name", f"no. {row.ref_id}")
        rows.append({"noun": row.noun, "id": row.ref_id, "name": name, "sha256": row.sha256})
    return rows


def _links(session: Session, member: Member, run: Run, *, is_output: bool) -> list[dict[str, Any]]:
    root = f"/p/{member.project.slug}"
    return [
        {**row, "noun": row["noun"].replace("_", " "), "url": f"{root}/{PAGES[row['noun']]}/{row['id']}"}
        for row in list_rows(session, run, is_output=is_output)
    ]


@router.get("/p/{project}/runs/{run_id:int}")
def show_run(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """One run: it goes on whether or not anybody looks."""
    run = project_run(session, member, run_id)
    needs = session.exec(
        select(Run).join(RunNeed, col(RunNeed.needs_id) == col(Run.id)).where(RunNeed.run_id == run.id)
    )
    return html(
        request, "runs/show.html", title=f"Run {run.id}: {run.title}", run=run, needs=needs.all(),
        read=_links(session, member, run, is_output=False), made=_links(session, member, run, is_output=True),
        recipe=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
        has_panel=run.kind in PANELS, **_progress(session, run),
    )  # fmt: skip


def _progress(session: Session, run: Run) -> dict[str, Any]:
    lines = session.exec(
        select(LogLine).where(LogLine.run_id == run.id).order_by(col(LogLine.id).desc()).limit(30)
    ).all()
    return {
        "log_lines": list(reversed(lines)), "left": seconds_left(run), "rate": rate_of(run),
        "n_refused": count_refused(session, run),
        "wait": say_wait(session, run) if run.status == "queued" else "",
    }  # fmt: skip


@router.get("/p/{project}/runs/{run_id}/progress")
def show_progress(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """The live part of the page: while the run is live it asks for itself again; at the end the page is read anew."""
    run = project_run(session, member, run_id)
    page = html(request, "runs/_progress.html", run=run, **_progress(session, run))
    if not run.is_live:
        page.headers["HX-Refresh"] = "true"  # what it made, its panel and its film strip stand outside this part
    return page


@router.get("/p/{project}/runs/{run_id}/samples")
def show_samples(request: Request, member: Viewer, session: Db, run_id: int, step: int | None = None) -> Response:
    """The film strip: the fixed prompts over the steps, and in full at one step."""
    run = project_run(session, member, run_id)
    steps = session.exec(
        select(Sampled.step).where(Sampled.run_id == run.id).distinct().order_by(col(Sampled.step))
    ).all()
    chosen = step if step is not None else (steps[-1] if steps else None)
    rows = session.exec(
        select(Sampled).where(Sampled.run_id == run.id, Sampled.step == chosen).order_by(col(Sampled.place))
    )
    picked = {steps[place * (len(steps) - 1) // (MOST_FRAMES - 1)] for place in range(MOST_FRAMES)} if steps else set()
    frames = session.exec(
        select(Sampled.place, Sampled.step, sa.func.substr(Sampled.text, 1, FRAME_CHARS + 1), Sampled.reward)
        .where(Sampled.run_id == run.id, col(Sampled.step).in_(picked), col(Sampled.place) < MOST_STRIPS)
        .order_by(col(Sampled.place), col(Sampled.step))
    ).all()
    strips = {place: list(some) for place, some in groupby(frames, key=lambda one: one[0])}
    return html(
        request, "runs/_samples.html", run=run, steps=steps, step=chosen, rows=rows.all(), strips=strips,
        n_frames=len(picked), chars=FRAME_CHARS,
    )  # fmt: skip


@router.get("/p/{project}/lineage/{noun}/{key:int}")
def show_lineage(request: Request, member: Viewer, session: Db, noun: str, key: int) -> Response:
    """What a row or run was made of and what was made of it, drawn."""
    if noun not in {"run", *PAGES} or key > MAX_ID:
        raise NotFound(f"There is no {noun[:40]} {key}.")
    graph = read_graph(session, member.project.id, (noun, key))
    return html(
        request, "runs/lineage.html", title="Lineage", graph=graph, centre=graph.nodes[noun, key], pages=PAGES,
        width=WIDTH, height=HEIGHT, like=runs_like(session, (noun, key)),
    )  # fmt: skip


@router.get("/p/{project}/runs/{run_id}/curves")
def show_curves(
    request: Request, member: Viewer, session: Db, run_id: int, beside: Annotated[list[int] | None, Query()] = None
) -> Response:
    """The figures of a run; asks again until there is something to draw."""
    run = project_run(session, member, run_id)
    same = select(Run.id, Run.title).where(Run.project_id == run.project_id, Run.kind == run.kind, Run.id != run.id)
    others = session.exec(same.order_by(col(Run.id).desc()).limit(20)).all()
    figures = list_figures(session, run.id)
    return html(request, "runs/_curves.html", run=run, figures=figures, others=others, beside=beside or [])


@router.get("/p/{project}/runs/{run_id}/curves.json")
def curves(
    member: Viewer, session: Db, run_id: int, figure: str = "loss", points: int = 500,
    beside: Annotated[list[int] | None, Query()] = None,
) -> dict[str, Any]:  # fmt: skip
    """One figure of the run, decimated to at most `points` a curve, with other runs laid over it."""
    run = project_run(session, member, run_id)
    runs = [run, *(project_run(session, member, one) for one in (beside or [])[:20])]
    is_live = any(one.status in LIVE for one in runs)
    series = read_curves(session, runs, figure, points=points)
    return {"run": run.id, "series": series, "is_live": is_live, "y_label": figure.replace("_", " ")}


@router.get("/p/{project}/runs/{run_id}/metrics.csv")
def download_metrics(member: Viewer, session: Db, run_id: int) -> Response:
    """Every stored point as CSV."""
    run = project_run(session, member, run_id)
    headers = {"Content-Disposition": f'attachment; filename="run-{run.id}-metrics.csv"'}
    return StreamingResponse(_metric_lines(run.id), media_type="text/csv; charset=utf-8", headers=headers)


def _metric_lines(run_id: int) -> Iterator[str]:
    yield "name,step,value,at\n"
    for m in _all_points(run_id):
        yield f"{m.name},{m.step},{'' if m.value is None else repr(m.value)},{m.at.isoformat()}\n"


@router.get("/p/{project}/runs/{run_id}/tensorboard")
def download_events(member: Viewer, session: Db, run_id: int) -> Response:
    """Every stored point as a TensorBoard event file: put it into a folder and point `tensorboard --logdir` there."""
    run = project_run(session, member, run_id)
    name = f"events.out.tfevents.{int(run.created_at.timestamp())}.preflab-run-{run.id}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    points = ((m.name, m.step, m.value, m.at) for m in _all_points(run.id))
    return StreamingResponse(
        write_events(run.created_at, points), media_type="application/octet-stream", headers=headers
    )


def _all_points(run_id: int) -> Iterator[Metric]:
    """Keyset pages through short sessions: a long run has millions of points."""
    place, after = sa.tuple_(col(Metric.name), col(Metric.step)), ("", 0)
    while True:
        with reading() as session:
            page = select(Metric).where(Metric.run_id == run_id, place > sa.tuple_(*after)).limit(5000)
            points = session.exec(page.order_by(col(Metric.name), col(Metric.step))).all()
        if not points:
            return
        yield from points
        after = (points[-1].name, points[-1].step)


@router.get("/api/v1/p/{project}/runs/{run_id}")
@router.get("/p/{project}/runs/{run_id:int}.json")
def show_run_json(member: Viewer, session: Db, run_id: int) -> dict[str, Any]:
    """One run as JSON, with what it read and made."""
    return run_in_full(session, project_run(session, member, run_id))


@router.post("/p/{project}/runs/{run_id}/cancel")
def cancel_run(member: Researcher, session: Db, run_id: int) -> Response:
    """Asks the run to stop."""
    cancel(session, project_run(session, member, run_id))
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run_id}", status_code=303)


@router.post("/p/{project}/runs/{run_id}/resume")
def resume_run(member: Researcher, session: Db, run_id: int) -> Response:
    """Queues a run again that failed, was cancelled or paused."""
    resume(session, project_run(session, member, run_id))
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run_id}", status_code=303)


@router.post("/api/v1/p/{project}/runs/{run_id}/cancel")
def cancel_run_api(member: Researcher, session: Db, run_id: int) -> dict[str, Any]:
    """Asks the run to stop."""
    run = project_run(session, member, run_id)
    cancel(session, run)
    return run_in_full(session, run)


@router.post("/api/v1/p/{project}/runs/{run_id}/resume")
def resume_run_api(member: Researcher, session: Db, run_id: int) -> dict[str, Any]:
    """Queues a run again that failed, was cancelled or paused."""
    run = project_run(session, member, run_id)
    resume(session, run)
    return run_in_full(session, run)


@router.get("/p/{project}/workers")
def list_workers(request: Request, member: Viewer, session: Db) -> Response:
    """Who works, or has today: queues, slots, device, heartbeat. Who has been silent for longer is folded away."""
    clock = db_now(session)
    is_late = col(Worker.beat_at) > clock - DAY_S
    newest = select(Worker).order_by(col(Worker.beat_at).desc()).limit(MOST_WORKERS)
    n_silent = session.execute(sa.select(sa.func.count()).select_from(Worker).where(~is_late)).scalar_one()
    return html(
        request, "runs/workers.html", title="Workers", rows=session.exec(newest.where(is_late)).all(),
        silent=session.exec(newest.where(~is_late)).all(), n_silent=n_silent, clock=clock,
    )  # fmt: skip
