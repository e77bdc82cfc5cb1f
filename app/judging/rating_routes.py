"""Pages and downloads of scores of single completions; forecasts of scoring and of writing them."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from app.checkpoints.models import Arm
from app.constitutions.models import Constitution
from app.db import Db, get
from app.html import html, read_form
from app.judging.models import Judge, RatingSet
from app.judging.pages import project_row
from app.judging.rating_forecast import forecast_rating
from app.judging.rating_pages import queues_of, rating_sets_table, ratings_table, summarise
from app.judging.rating_recipes import RateRecipe
from app.judging.writing_forecast import forecast_writing
from app.pairs.models import PairSet
from app.pairs.recipes import GenerateRecipe
from app.projects.access import Viewer
from app.prompts.models import PromptSet
from app.runs.models import Run
from app.runs.queue import check_reference
from app.tables import FORMATS, Format, respond

router = APIRouter()


@router.get("/p/{project}/judge/ratings")
def list_rating_sets(request: Request, member: Viewer, session: Db) -> Response:
    """Every scoring by a judge."""
    return respond(request, session, rating_sets_table(member), "html", "judging/ratings.html", title="Scores")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/judge/ratings.{fmt}", name=f"download_rating_sets_{fmt}")
    def download_sets(request: Request, member: Viewer, session: Db) -> Response:
        """The project's rating sets."""
        return respond(request, session, rating_sets_table(member), fmt, "judging/ratings.html")

    @router.get(f"/p/{{project}}/judge/ratings/{{set_id:int}}.{fmt}", name=f"download_ratings_{fmt}")
    def download_ratings(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        """One set's scores with their completions."""
        table = ratings_table(session, project_row(session, member, RatingSet, set_id))
        return respond(request, session, table, fmt, "judging/rating.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/judge/ratings/{set_id:int}")
def show_rating_set(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """One scoring: means with intervals, distributions, reasons for none, and each score."""
    made: RatingSet = project_row(session, member, RatingSet, set_id)
    run = session.get(Run, made.run_id) if made.run_id else None
    return respond(
        request, session, ratings_table(session, made), "html", "judging/rating.html", title=made.name, made=made,
        summary=summarise(session, made, f"/p/{member.project.slug}"), judge=get(session, Judge, made.judge_id),
        pairs=_named(session, PairSet, made.pair_set_id), prompts=_named(session, PromptSet, made.prompt_set_id),
        arm=_named(session, Arm, made.arm_id), constitution=_named(session, Constitution, made.constitution_id),
        queues=queues_of(session, made), run=run, is_over=run is None or not run.is_live,
    )  # fmt: skip


@router.get("/p/{project}/forecast/rate")
def forecast_rate(request: Request, member: Viewer, session: Db) -> Response:
    """Calls, tokens and money before the start; a sentence while the form lacks what they depend on."""
    given: list[tuple[str, str | UploadFile]] = [*request.query_params.multi_items()]
    try:
        recipe = RateRecipe.model_validate(read_form(RateRecipe, FormData(given)))
    except ValidationError:
        return html(request, "judging/_rate_forecast.html", found=None)
    for noun, key in recipe.references():
        check_reference(session, noun, key, member.project.id)
    judge = get(session, Judge, recipe.judge)
    found = forecast_rating(session, member.project.id, judge, recipe)
    return html(request, "judging/_rate_forecast.html", found=found, judge=judge, recipe=recipe)


@router.get("/p/{project}/forecast/generate")
def forecast_generate(request: Request, member: Viewer, session: Db) -> Response:
    """Calls, tokens and money at most before the start; a sentence while the form lacks what they depend on."""
    given: list[tuple[str, str | UploadFile]] = [*request.query_params.multi_items()]
    try:
        recipe = GenerateRecipe.model_validate(read_form(GenerateRecipe, FormData(given)))
    except ValidationError:
        return html(request, "judging/_writing_forecast.html", found=None)
    for noun, key in recipe.references():
        check_reference(session, noun, key, member.project.id)
    found = forecast_writing(session, member.project.id, recipe)
    return html(request, "judging/_writing_forecast.html", found=found, recipe=recipe)


def _named(session: Db, kind: Any, key: int | None) -> Any:
    return get(session, kind, key) if key is not None else None
