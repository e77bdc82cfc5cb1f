"""Every recipe as a form and as the API's body: one page and one route launch any kind of run."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session
from starlette.datastructures import FormData, UploadFile

from app.accounts.access import SignedIn
from app.db import Db, get
from app.errors import Invalid, NotFound
from app.html import FormValues, html, read_form, recipe_form
from app.projects.access import Member, Researcher
from app.recipes import METHOD_PAGES, RECIPES, read_recipe, recipe_class
from app.runs.models import Run
from app.runs.queue import NoRow, launch, new_form_key
from app.runs.recipe import Recipe
from app.runs.routes import run_in_full
from app.training.pages import METHODS

router = APIRouter()

# Kinds for which a slice answers /p/{project}/forecast/{kind}: cost, memory, or what else is known before the start.
FORECAST = {"judge", "rate", "card", "generate", *METHODS}


@router.get("/p/{project}/new/{kind}")
def new_run(request: Request, kind: str, member: Researcher, session: Db, like: int | None = None) -> Response:
    """The form of a recipe; `like` fills it from an earlier run; any field may be given in the URL."""
    given: list[tuple[str, str | UploadFile]] = [*request.query_params.multi_items()]
    values = read_form(_recipe_or_404(kind), FormData(given))
    if like is not None:
        run = get(session, Run, like)
        if run.project_id != member.project.id or run.kind != kind:
            raise NotFound(f"There is no {kind} run {like} in this project.")
        values = run.recipe
    return _form_page(request, session, member, kind, values, {}, new_form_key())


def _form_page(
    request: Request, session: Session, member: Member, kind: str, values: dict[str, Any],
    errors: dict[str, list[str]], form_key: str,
) -> Response:  # fmt: skip
    recipe = recipe_class(kind)
    fields = recipe_form(session, recipe, member.project.id, values, errors)
    fields.sort(key=lambda one: one.name in {"name", "seed"})  # what the run reads comes first
    general = [
        message for name, messages in errors.items() if name not in {f.name for f in fields} for message in messages
    ]
    return html(
        request, "recipes/new.html", status_code=422 if errors else 200,
        title=recipe.aim or f"{recipe.verb} {kind.replace('_', ' ')}", recipe=recipe, general=general,
        fields=[one for one in fields if one.is_main], folded=[one for one in fields if not one.is_main],
        form_key=form_key, kind=kind, has_forecast=kind in FORECAST,
        method_page=METHOD_PAGES.get(kind, ""),
    )  # fmt: skip


@router.post("/p/{project}/new/{kind}")
def start_run(request: Request, kind: str, member: Researcher, session: Db, form: FormValues) -> Response:
    """Launches what the form describes, once however often it is sent, and goes to the run's page."""
    recipe = _recipe_or_404(kind)
    values = read_form(recipe, form)
    form_key = str(form.get("form_key") or new_form_key())[:64]
    try:
        runs = launch_all(session, member, read_recipe({"kind": kind, **values}), form_key)
    except (Invalid, NoRow) as error:
        return _form_page(request, session, member, kind, values, error.fields or {"": [error.message]}, form_key)
    return RedirectResponse(f"/p/{member.project.slug}/runs/{runs[0].id}{_beside(runs)}", status_code=303)


def launch_all(session: Session, member: Member, recipe: Recipe, form_key: str) -> list[Run]:
    """A run for each recipe that this one stands for, most often itself alone; once however often it is sent."""
    with session.begin_nested():  # all of them or none
        return [
            launch(session, one, project_id=member.project.id, account_id=member.account.id,
                   form_key=f"{form_key[:60]}-{place}" if place else form_key)
            for place, one in enumerate(recipe.spread())
        ]  # fmt: skip


def _beside(runs: list[Run]) -> str:
    """The first run's curves with the others' laid over them."""
    return "?" + "&".join(f"beside={run.id}" for run in runs[1:]) + "#curves" if runs[1:] else ""


def _recipe_or_404(kind: str) -> Any:
    if kind not in RECIPES:
        raise NotFound(f"There is no kind of run called “{kind[:60]}”.")
    return RECIPES[kind]


@router.post("/api/v1/p/{project}/runs", status_code=201)
def launch_run(
    member: Researcher, session: Db, recipe: dict[str, Any] = Body(...),
    form_key: Annotated[str | None, Query(max_length=64)] = None,
) -> Any:  # fmt: skip
    """Launches a run of any kind: the body is a recipe with its `kind`. The same form_key twice is the same run.

    A recipe that stands for several runs (a reward model `also_from` other starts) answers with the others in `also`.
    """
    runs = launch_all(session, member, read_recipe(recipe), form_key or new_form_key())
    first, *others = [run_in_full(session, run) for run in runs]
    return first | ({"also": others} if others else {})


@router.get("/api/v1/recipes")
def list_recipes(account: SignedIn) -> dict[str, Any]:
    """The JSON schema of every recipe, by kind."""
    return {kind: recipe.model_json_schema() for kind, recipe in RECIPES.items()}
