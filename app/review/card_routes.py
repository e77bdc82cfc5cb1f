"""Pages and API of Judge Cards: the list, one card with its lines and example probes, a judge's mark, the forecast."""

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError
from sqlmodel import Session, col, select

from app.constitutions.models import Constitution
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.judging.models import Judge, VerdictSet
from app.judging.pages import said_of_cuts
from app.judging.trying import forecast
from app.pairs.models import PairSet
from app.projects.access import Member, Viewer
from app.review.card_progress import read_progress
from app.review.card_recipes import CardRecipe
from app.review.cards import deciding_card, lines_that, state_of
from app.review.models import JudgeCard
from app.runs.models import Run
from app.runs.queue import check_reference
from app.runs.routes import project_run
from app.tables import FORMATS, Column, Filter, Format, Table, respond

router = APIRouter()

PROBES = {
    "own": "Your own pairs, as they are",
    "twin": "The same completion on both sides",
    "constant": "A constant answer",
    "attack": "A completion with an attack text after it",
    "list": "The same sentences as a list and as running text",
}


def project_card(session: Session, member: Member, card_id: int) -> JudgeCard:
    """A card of this project; raises NotFound."""
    card = get(session, JudgeCard, card_id)
    if card.project_id != member.project.id:
        raise NotFound(f"There is no Judge Card {card_id}.")
    return card


def cards_table(member: Member) -> Table:
    """The project's Judge Cards."""
    root = f"/p/{member.project.slug}"
    state = sa.case(
        (col(JudgeCard.n) == 0, "unfinished"), (col(JudgeCard.is_passed).is_(None), "undecided"),
        (col(JudgeCard.is_passed).is_(True), "passed"), else_="failed",
    )  # fmt: skip
    columns = [
        Column("id", JudgeCard.id, "Card", "number", lambda row: f"{root}/judge/cards/{row['id']}"),
        Column("judge", Judge.name, "Judge", href=lambda row: f"{root}/judge/judges/{row['judge_id']}"),
        Column("judge_id", JudgeCard.judge_id, is_shown=False),
        Column("constitution", Constitution.name, "Constitution"),
        Column("version", Constitution.version, "Version", "number"),
        Column("state", state, "Result", "badge"),
        Column("n", JudgeCard.n, "Probe pairs", "number"),
        Column("run_id", JudgeCard.run_id, "Run", "number", lambda row: f"{root}/runs/{row['run_id']}"),
        Column("created_at", JudgeCard.created_at, "Made", "when"),
        Column("limits", JudgeCard.limits, is_shown=False),
        Column("lines", JudgeCard.lines, is_shown=False),
    ]
    source = sa.join(JudgeCard, Judge, col(Judge.id) == col(JudgeCard.judge_id))
    source = source.outerjoin(Constitution, col(Constitution.id) == col(JudgeCard.constitution_id))
    filters = [
        Filter("judge_id", JudgeCard.judge_id, "Judge’s number", cast=int),
        Filter("state", state, "Result", ("passed", "failed", "undecided", "unfinished")),
    ]
    where = [JudgeCard.project_id == member.project.id, col(JudgeCard.archived_at).is_(None)]
    return Table("judge cards", columns, source, JudgeCard.id, where, filters)


@router.get("/p/{project}/judge/cards")
def list_cards(request: Request, member: Viewer, session: Db) -> Response:
    """Every Judge Card."""
    return respond(request, session, cards_table(member), "html", "review/cards.html", title="Judge Cards")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/judge/cards.{fmt}", name=f"download_cards_{fmt}")
    def download_cards(request: Request, member: Viewer, session: Db) -> Response:
        """The project's Judge Cards with their lines."""
        return respond(request, session, cards_table(member), fmt, "review/cards.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/judge/cards/{card_id:int}")
def show_card(request: Request, member: Viewer, session: Db, card_id: int) -> Response:
    """One card: each line with interval, limit and result, and what was asked and answered."""
    card = project_card(session, member, card_id)
    judge = get(session, Judge, card.judge_id)
    return html(
        request, "review/card.html", title=f"Judge Card of {judge.name}", card=card, judge=judge, state=state_of(card),
        pairs=get(session, PairSet, card.pair_set_id), run=get(session, Run, card.run_id) if card.run_id else None,
        constitution=get(session, Constitution, card.constitution_id) if card.constitution_id else None,
        kinds=PROBES, failed=lines_that(card, "failed"), undecided=lines_that(card, "undecided"),
        cuts=said_of_cuts(session, get(session, VerdictSet, card.protocol["verdict_set"])) if card.n else "",
    )  # fmt: skip


@router.get("/p/{project}/runs/{run_id:int}/panel/card")
def show_card_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """The card's part of its run's page: how far the probes are, then its lines."""
    run = project_run(session, member, run_id)
    card = session.exec(select(JudgeCard).where(JudgeCard.run_id == run.id)).first()
    return html(
        request, "review/_card_panel.html", run=run, card=card, state=state_of(card) if card else "", kinds=PROBES,
        progress=read_progress(session, card) if card and not card.lines else [],
    )  # fmt: skip


@router.get("/api/v1/p/{project}/judge/cards/{card_id:int}")
def read_card(member: Viewer, session: Db, card_id: int) -> dict[str, Any]:
    """One card as JSON."""
    card = project_card(session, member, card_id)
    return {**card.model_dump(mode="json"), "state": state_of(card)}


@router.get("/p/{project}/judge/judges/{judge_id:int}/card")
def show_judge_mark(
    request: Request, member: Viewer, session: Db, judge_id: int, constitution: int | None = None,
    pair_set: int | None = None,
) -> Response:  # fmt: skip
    """The fragment that says what the judge's card found: on a verdict set's page (which names its pairs) under the
    same constitution, on the judge's own page the newest under whatever constitution."""
    judge = _judge(session, member, judge_id)
    cards = _finished(session, judge)
    card = deciding_card(session, judge.id, constitution) if pair_set else next(iter(cards), None)
    under = get(session, Constitution, card.constitution_id) if card and card.constitution_id else None
    return html(
        request, "review/_card_mark.html", judge=judge, card=card, state=state_of(card) if card else "", under=under,
        constitution_id=constitution, pair_set_id=pair_set, n_cards=len(cards),
        said=lines_that(card, state_of(card)) if card and not card.is_passed else [],
    )  # fmt: skip


def _judge(session: Session, member: Member, judge_id: int) -> Judge:
    judge = get(session, Judge, judge_id)
    if judge.project_id != member.project.id:
        raise NotFound(f"There is no judge {judge_id}.")
    return judge


def _finished(session: Session, judge: Judge) -> list[JudgeCard]:
    """This judge's finished cards under whatever constitution, newest first."""
    query = select(JudgeCard).where(JudgeCard.judge_id == judge.id, JudgeCard.n > 0)
    return list(session.exec(query.where(col(JudgeCard.archived_at).is_(None)).order_by(col(JudgeCard.id).desc())))


@router.get("/p/{project}/forecast/card")
def forecast_card(request: Request, member: Viewer, session: Db) -> Response:
    """Calls and money before the probes are judged."""
    given = {k: v for k, v in request.query_params.items() if v != "" and k in CardRecipe.model_fields}
    try:
        recipe = CardRecipe.model_validate(given)
    except ValidationError:
        return html(request, "review/_card_forecast.html", price=None)
    for noun, key in recipe.references():
        check_reference(session, noun, key, member.project.id)
    judge = _judge(session, member, recipe.judge)
    if judge.kind == "imported":
        return html(request, "review/_card_forecast.html", price=None)
    n_own = min(recipe.n_own, get(session, PairSet, recipe.pair_set).n)
    n = min(recipe.n, n_own)
    judging = recipe.judging(recipe.pair_set).model_copy(update={"limit": n_own})
    own = forecast(session, member.project.id, judge, judging)
    orders = (own.n_calls + own.n_known) // max(own.n_pairs, 1)
    n_probes = n * (3 * orders + max(1, orders // 2))  # twins are the same question in both orders
    each = own.usd / own.n_calls if own.usd is not None and own.n_calls else None
    return html(
        request, "review/_card_forecast.html", price=own, judge=judge, recipe=recipe, n_own=n_own, n_probes=n_probes,
        usd=own.usd + n_probes * each if own.usd is not None and each is not None else None,
    )  # fmt: skip
