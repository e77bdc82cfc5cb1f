"""Pages and API of judging: verdict sets, judges, test connection, try on 10 pairs, forecast, a run's panel."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlmodel import Session, col, select

from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Checkpoint, Endpoint
from app.checkpoints.probe import Probe, probe_endpoint
from app.constitutions.models import Constitution
from app.db import Db, get
from app.errors import Invalid
from app.html import FormValues, html, read_form
from app.judging.flags import flag_candidates
from app.judging.judges import endpoint_of
from app.judging.models import Judge, VerdictSet
from app.judging.pages import (
    REASONS_READ,
    judges_table,
    panel_of,
    project_row,
    read_pair_shown,
    said_of_cuts,
    unreadable_reasons,
    verdict_sets_of,
    verdict_sets_table,
    verdicts_table,
)
from app.judging.recipes import JudgeRecipe, members_of
from app.judging.reweigh import agreements_of, too_many, weights_of
from app.judging.reweigh_routes import router as reweigh_router
from app.judging.trying import compare_choices, forecast, needs_worker, trial_recipe, try_now
from app.pairs.models import PairSet
from app.projects.access import Member, Researcher, Viewer
from app.runs.queue import check_reference, launch
from app.runs.routes import project_run
from app.tables import FORMATS, Format, respond

router = APIRouter()
router.include_router(reweigh_router)


@router.get("/p/{project}/judge")
def list_verdict_sets(request: Request, member: Viewer, session: Db) -> Response:
    """Verdict sets, and who judges."""
    judges = session.exec(
        select(Judge).where(Judge.project_id == member.project.id).order_by(col(Judge.id).desc()).limit(50)
    ).all()
    has_pairs = session.exec(select(PairSet.id).where(PairSet.project_id == member.project.id)).first() is not None
    return respond(request, session, verdict_sets_table(member), "html", "judging/list.html", title="Judge",
                   judges=judges, has_pairs=has_pairs)  # fmt: skip


@router.get("/p/{project}/judge/judges")
def list_judges(request: Request, member: Viewer, session: Db) -> Response:
    """Every judge."""
    return respond(request, session, judges_table(member), "html", "judging/judges.html", title="Judges")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/judge.{fmt}", name=f"download_verdict_sets_{fmt}")
    def download_sets(request: Request, member: Viewer, session: Db) -> Response:
        """The project's verdict sets."""
        return respond(request, session, verdict_sets_table(member), fmt, "judging/list.html")

    @router.get(f"/p/{{project}}/judge/judges.{fmt}", name=f"download_judges_{fmt}")
    def download_judges(request: Request, member: Viewer, session: Db) -> Response:
        """The project's judges."""
        return respond(request, session, judges_table(member), fmt, "judging/judges.html")

    @router.get(f"/p/{{project}}/judge/{{set_id:int}}.{fmt}", name=f"download_verdicts_{fmt}")
    def download_verdicts(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        """One set's verdicts with the texts of their pairs."""
        table = verdicts_table(project_row(session, member, VerdictSet, set_id))
        return respond(request, session, table, fmt, "judging/set.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/judge/{set_id:int}")
def show_verdict_set(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """One judging of a pair set: counters, reasons, and each pair."""
    row: VerdictSet = project_row(session, member, VerdictSet, set_id)
    constitution = get(session, Constitution, row.constitution_id) if row.constitution_id else None
    return respond(
        request, session, verdicts_table(row), "html", "judging/set.html", title=row.name, verdicts=row,
        judge=get(session, Judge, row.judge_id), pairs=get(session, PairSet, row.pair_set_id),
        constitution=constitution, reasons=unreadable_reasons(session, row), n_read=min(row.n_null, REASONS_READ),
        weights=weights_of(session, row), too_many=too_many(row), is_weighted=row.protocol.get("overall") == "weighted",
        parent=get(session, VerdictSet, row.parent_id) if row.parent_id else None,
        agreements=agreements_of(session, row) if row.parent_id else [], opened=_opened(request),
        cuts=said_of_cuts(session, row),
    )  # fmt: skip


def _opened(request: Request) -> int | None:
    """The pair a link asks to be shown at once."""
    said = request.query_params.get("pair", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None


@router.get("/p/{project}/judge/{set_id:int}/pairs/{pair_id}")
def show_verdict(request: Request, member: Viewer, session: Db, set_id: int, pair_id: int) -> Response:
    """One pair opened in place: both texts, the verdict, its opinions by principle, and the raw answers."""
    row = project_row(session, member, VerdictSet, set_id)
    return html(request, "judging/_pair.html", shown=read_pair_shown(session, row, pair_id))


@router.get("/p/{project}/judge/judges/{judge_id:int}")
def show_judge(request: Request, member: Viewer, session: Db, judge_id: int) -> Response:
    """A judge: what it is, its connection, a trial, and what it has judged."""
    judge: Judge = project_row(session, member, Judge, judge_id)
    mine = PairSet.project_id == member.project.id, col(PairSet.archived_at).is_(None)
    return html(
        request, "judging/judge.html", title=judge.name, judge=judge, sets=verdict_sets_of(session, judge),
        endpoint=get(session, Endpoint, judge.endpoint_id) if judge.endpoint_id else None,
        checkpoint=get(session, Checkpoint, judge.checkpoint_id) if judge.checkpoint_id else None,
        members=list(zip(members_of(session, judge), judge.settings["members"], strict=True))
        if judge.kind == "panel" else [],
        is_tried_by_run=needs_worker(session, judge), has_questions=_has_questions(session, judge),
        pair_sets=session.exec(select(PairSet).where(*mine).order_by(col(PairSet.id).desc()).limit(200)).all(),
        constitutions=session.exec(
            select(Constitution).where(Constitution.project_id == member.project.id)
            .order_by(col(Constitution.name), col(Constitution.version).desc()).limit(200)
        ).all(),
    )  # fmt: skip


def _has_questions(session: Session, judge: Judge) -> bool:
    return any(one.kind in {"endpoint", "checkpoint"} for one in members_of(session, judge))


def _probe(session: Session, member: Member, judge_id: int) -> tuple[Endpoint, Probe]:
    judge: Judge = project_row(session, member, Judge, judge_id)
    if judge.endpoint_id is None:
        raise Invalid(f"“{judge.name}” is no endpoint: there is no connection to test.")
    endpoint_id = judge.endpoint_id
    target = target_of(endpoint_of(session, judge))
    session.rollback()  # nothing was written: a slow server must not hold the database's write lock
    probe = probe_endpoint(target)
    endpoint = get(session, Endpoint, endpoint_id)
    if probe.mode:
        endpoint.mode = probe.mode
        session.add(endpoint)
    return endpoint, probe


@router.post("/p/{project}/judge/judges/{judge_id:int}/test")
def test_connection(request: Request, member: Researcher, session: Db, judge_id: int) -> Response:
    """Finds out what the endpoint knows and ignores, and keeps it as the mode judges use."""
    endpoint, probe = _probe(session, member, judge_id)
    return html(request, "judging/_probe.html", endpoint=endpoint, probe=probe)


@router.post("/api/v1/p/{project}/judges/{judge_id:int}/test")
def test_connection_api(member: Researcher, session: Db, judge_id: int) -> dict[str, Any]:
    """Finds out what the endpoint knows and ignores, and keeps it as the mode judges use."""
    _, probe = _probe(session, member, judge_id)
    return {"is_good": probe.is_good, "mode": probe.mode, "cost_usd": probe.cost_usd,
            "findings": [vars(one) for one in probe.findings]}  # fmt: skip


def _read_recipe(session: Session, member: Member, values: dict[str, Any]) -> JudgeRecipe:
    """A judging's recipe from a form that leaves out what has a default; its rows are the project's own."""
    try:
        recipe = JudgeRecipe.model_validate(values)
    except ValidationError as error:
        names = sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]})
        raise Invalid(f"Choose or correct: {', '.join(name.replace('_', ' ') for name in names)}.") from error
    for noun, key in recipe.references():
        check_reference(session, noun, key, member.project.id)
    return recipe


@router.post("/p/{project}/judge/judges/{judge_id:int}/try")
def try_judge(request: Request, member: Researcher, session: Db, judge_id: int, form: FormValues) -> Response:
    """Ten pairs, judged now; for a judge that needs a worker, a run of ten pairs."""
    judge: Judge = project_row(session, member, Judge, judge_id)
    recipe = _read_recipe(session, member, {**read_form(JudgeRecipe, form), "judge": judge.id})
    if judge.kind == "imported":
        raise Invalid(f"“{judge.name}” came with its labels: it judges nothing.")
    recipe.check(session, member.project.id)
    if needs_worker(session, judge):
        trial = trial_recipe(session, member.project.id, judge, recipe)
        run = launch(session, trial, project_id=member.project.id, account_id=member.account.id)
        return RedirectResponse(f"/p/{member.project.slug}/runs/{run.id}", status_code=303)
    price = forecast(session, member.project.id, judge, recipe)
    tried, mode = try_now(session, judge, recipe)
    spent = sum(call.cost_usd for one in tried for call in one.calls)
    return html(request, "judging/_tried.html", tried=tried, price=price, mode=mode, spent=spent, recipe=recipe,
                flags=flag_candidates(session, recipe.pair_set))  # fmt: skip


@router.get("/p/{project}/forecast/judge")
def forecast_judging(request: Request, member: Viewer, session: Db) -> Response:
    """Calls, tokens and money before the start."""
    values = {k: v for k, v in request.query_params.items() if v != "" and k in JudgeRecipe.model_fields}
    if not {"judge", "pair_set"} <= set(values):
        return html(request, "judging/_forecast.html", price=None, recipe=None, judge=None)
    recipe = _read_recipe(session, member, values)
    judge: Judge = project_row(session, member, Judge, recipe.judge)
    price = forecast(session, member.project.id, judge, recipe)
    return html(request, "judging/_forecast.html", price=price, recipe=recipe, judge=judge,
                choices=compare_choices(session, member.project.id, judge, recipe),
                flags=flag_candidates(session, recipe.pair_set))  # fmt: skip


@router.get("/p/{project}/runs/{run_id:int}/panel/judge")
def show_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """The judging's part of a run's page: what has been decided so far, and what it cost."""
    run = project_run(session, member, run_id)
    return html(request, "judging/_panel.html", run=run, verdicts=panel_of(session, run))
