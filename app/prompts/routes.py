"""Pages and API of prompts: the sets, one set, importing, and the rows an import refused."""

from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlmodel import Session, col, select

from app.db import Db, get
from app.errors import AppError, Invalid, NotFound, invalid
from app.html import html, read_form, recipe_form
from app.projects.access import Member, Researcher, Viewer
from app.prompts.hygiene import warnings_of
from app.prompts.models import SPLITS, Prompt, PromptSet, RejectedRow
from app.prompts.recipes import ImportPairsRecipe, ImportPromptsRecipe
from app.prompts.sources import fetched_name
from app.prompts.uploads import Received, Sent, store_upload
from app.runs.models import Run
from app.runs.queue import launch, new_form_key
from app.runs.recipe import Recipe
from app.runs.routes import project_run, run_as_json
from app.tables import FORMATS, Column, Filter, Format, Table, read_page, respond

router = APIRouter()

IMPORTS: dict[str, type[Recipe]] = {"prompts": ImportPromptsRecipe, "pairs": ImportPairsRecipe}


def project_set(session: Session, member: Member, set_id: int) -> PromptSet:
    """A prompt set of this project; raises NotFound."""
    row = get(session, PromptSet, set_id)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no prompt set {set_id}.")
    return row


def sets_table(member: Member) -> Table:
    """The project's prompt sets."""
    root = f"/p/{member.project.slug}/prompts"
    columns = [
        Column("id", PromptSet.id, "Set", "number", is_shown=False),
        Column("name", PromptSet.name, "Name", href=lambda row: f"{root}/{row['id']}", is_sortable=True),
        Column("state", PromptSet.state, "State", "badge"),
        Column("n", PromptSet.n, "Prompts", "number", is_sortable=True),
        Column("n_merged", PromptSet.n_merged, "Merged", "number"),
        Column("n_rejected", PromptSet.n_rejected, "Refused", "number"),
        Column("counts", PromptSet.counts, is_shown=False),
        Column("source", PromptSet.source, "From", is_shown=False),
        Column("sha256", PromptSet.sha256, is_shown=False),
        Column("created_at", PromptSet.created_at, "Imported", "when", is_sortable=True),
    ]
    where = [PromptSet.project_id == member.project.id, col(PromptSet.archived_at).is_(None)]
    return Table("prompt sets", columns, PromptSet, PromptSet.id, where)


FLAG = sa.case(
    (col(Prompt.overlaps) != "", "overlap"), (col(Prompt.near_of).is_not(None), "near"), else_=""
)  # fmt: skip


def prompts_table(row: PromptSet) -> Table:
    """One set's prompts."""
    columns = [
        Column("id", Prompt.id, "Prompt", "number"),
        Column("position", Prompt.position, "No.", "number"),
        Column("messages", Prompt.messages, "Prompt"),
        Column("follow_ups", Prompt.follow_ups, is_shown=False),
        Column("reference", Prompt.reference, "Reference"),
        Column("split", Prompt.split, "Split"),
        Column("group", Prompt.grp, "Group"),
        Column("category", Prompt.category, "Category"),
        Column("source", Prompt.source, "Source"),
        Column("licence", Prompt.licence, "Licence"),
        Column("near_of", Prompt.near_of, is_shown=False),
        Column("overlaps", Prompt.overlaps, is_shown=False),
        Column("sha256", Prompt.sha256, is_shown=False),
    ]
    filters = [Filter("split", Prompt.split, "Split", SPLITS), Filter("category", Prompt.category, "Category"),
               Filter("group", Prompt.grp, "Group"), Filter("flag", FLAG, "Flagged", ("near", "overlap"))]  # fmt: skip
    return Table("prompts", columns, Prompt, Prompt.position, [Prompt.set_id == row.id], filters, is_newest_first=False)


def rejected_table(run: Run) -> Table:
    """The rows a run refused."""
    columns = [
        Column("line", RejectedRow.line, "Line", "number"),
        Column("reason", RejectedRow.reason, "Why it cannot be used"),
    ]
    return Table(
        "rejected rows", columns, RejectedRow, RejectedRow.id, [RejectedRow.run_id == run.id], is_newest_first=False
    )


@router.get("/p/{project}/prompts")
def list_prompt_sets(request: Request, member: Viewer, session: Db) -> Response:
    """The project's prompt sets, and imports that failed since the last one that did not."""
    wanted = select(Run).where(Run.project_id == member.project.id, Run.kind == "import_prompts")
    latest = session.exec(wanted.order_by(col(Run.id).desc()).limit(1)).first()
    return respond(
        request, session, sets_table(member), "html", "prompts/list.html", title="Prompts",
        latest=latest if latest and (latest.is_live or latest.status == "failed") else None, form_key=new_form_key(),
    )  # fmt: skip


@router.get("/p/{project}/prompts/{set_id:int}")
def show_prompt_set(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """One set: its splits and its prompts."""
    row = project_set(session, member, set_id)
    return respond(
        request,
        session,
        prompts_table(row),
        "html",
        "prompts/show.html",
        title=row.name,
        prompts=row,
        warnings=warnings_of(row),
    )


@router.get("/p/{project}/prompts/{set_id:int}/{prompt_id:int}")
def show_prompt(request: Request, member: Viewer, session: Db, set_id: int, prompt_id: int) -> Response:
    """One prompt, whole: opened in place, or a page of its own."""
    row, prompt = project_set(session, member, set_id), get(session, Prompt, prompt_id)
    if prompt.set_id != row.id:
        raise NotFound(f"There is no prompt {prompt_id} in this set.")
    template = "prompts/_prompt.html" if request.headers.get("hx-request") else "prompts/prompt.html"
    return html(request, template, title=f"Prompt {prompt.position + 1} of {row.name}", prompts=row, prompt=prompt)


@router.get("/p/{project}/prompts/rejected/{run_id:int}")
def list_rejected(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """The rows an import refused, with the reason of each."""
    run = project_run(session, member, run_id)
    return respond(
        request, session, rejected_table(run), "html", "prompts/rejected.html", title="Refused rows", run=run
    )


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/prompts.{fmt}", name=f"download_prompt_sets_{fmt}")
    def download_sets(request: Request, member: Viewer, session: Db) -> Response:
        """The project's prompt sets."""
        return respond(request, session, sets_table(member), fmt, "prompts/list.html")

    @router.get(f"/p/{{project}}/prompts/{{set_id:int}}.{fmt}", name=f"download_prompts_{fmt}")
    def download_prompts(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        """One set's prompts, in a form that can be imported again."""
        return respond(request, session, prompts_table(project_set(session, member, set_id)), fmt, "prompts/show.html")

    @router.get(f"/p/{{project}}/prompts/rejected/{{run_id:int}}.{fmt}", name=f"download_rejected_{fmt}")
    def download_rejected(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
        """The rows an import refused."""
        return respond(
            request, session, rejected_table(project_run(session, member, run_id)), fmt, "prompts/rejected.html"
        )


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- importing


def import_page(
    request: Request, session: Session, member: Member, what: str, values: dict[str, Any],
    errors: dict[str, list[str]], text: str = "", form_key: str = "", target: str = "",
) -> Response:  # fmt: skip
    """The form: a file, pasted text or a path, and what the recipe leaves open. Another target is only looked at."""
    recipe, called = IMPORTS[what], target or ("preferences" if what == "pairs" else what)
    fields = [
        replace(f, required=f.required and f.name != "path")  # here a file or pasted text may stand for the path
        for f in recipe_form(session, recipe, member.project.id, values, errors)
        if f.name not in {"shipped", "seed"}
    ]
    known = {f.name for f in fields} | {"file", "text"}
    return html(
        request, "prompts/import.html", 422 if errors else 200, title=f"Import {called}", what=what,
        target=target or what, fields=fields, errors=errors,
        general=[m for name, ms in errors.items() if name not in known for m in ms], text=text,
        form_key=form_key or new_form_key(),
    )  # fmt: skip


def launch_import(session: Session, member: Member, what: str, form: Any) -> Run:
    """Stores what was sent and launches its import; raises Invalid, and then keeps no file."""
    recipe = IMPORTS[what]
    form_key = str(form.get("form_key") or new_form_key())[:64]
    sent: Sent = store_upload(form, read_form(recipe, form))
    try:
        read = recipe.model_validate(sent.values)
    except ValidationError as error:
        sent.drop()
        raise invalid(error) from error
    try:
        run = launch(session, read, project_id=member.project.id, account_id=member.account.id, form_key=form_key)
    except AppError:
        sent.drop()
        raise
    if run.recipe.get("path") != sent.values.get("path"):  # a second click: the first one's file is imported
        sent.drop()
    return run


@router.get("/p/{project}/prompts/import")
def new_import(request: Request, member: Researcher, session: Db) -> Response:
    """The form of an import of prompts."""
    target = "annotations" if request.query_params.get("target") == "annotations" else ""
    return import_page(request, session, member, "prompts", dict(request.query_params), {}, target=target)


@router.post("/p/{project}/prompts/import")
def import_prompts(request: Request, form: Received, member: Researcher, session: Db) -> Response:
    """Imports what was uploaded or pasted."""
    return import_from_page(request, session, member, "prompts", form)


def import_from_page(request: Request, session: Session, member: Member, what: str, form: Any) -> Response:
    """Launches an import and goes to its run; a refused form comes back as it was typed."""
    try:
        run = launch_import(session, member, what, form)
    except Invalid as error:
        typed = form.get("text")
        return import_page(
            request, session, member, what, read_form(IMPORTS[what], form), error.fields or {"": [error.message]},
            typed if isinstance(typed, str) else "", str(form.get("form_key") or ""),
        )  # fmt: skip
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run.id}", status_code=303)


@router.post("/api/v1/p/{project}/prompts/import", status_code=201)
def import_prompts_api(form: Received, member: Researcher, session: Db) -> dict[str, Any]:
    """Imports prompts: multipart with `file` (or `text`, or `path`) and the recipe's fields."""
    return run_as_json(launch_import(session, member, "prompts", form))


def _panel(kind: str) -> None:
    @router.get(f"/p/{{project}}/runs/{{run_id:int}}/panel/{kind}", name=f"show_{kind}_panel")
    def show_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
        """On an import's page: what it stored, and the rows it refused."""
        run = project_run(session, member, run_id)
        made = session.exec(select(PromptSet).where(PromptSet.run_id == run.id)).first()
        page = read_page(request, session, rejected_table(run))
        return html(request, "prompts/_panel.html", run=run, kind=kind, prompts=made, page=page)


_panel("import_prompts")
_panel("import_pairs")


@router.get("/p/{project}/runs/{run_id:int}/panel/peek_hub")
def show_hub_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """On the page of a run that fetched the first rows of a data set on the hub: where to look at them."""
    run = project_run(session, member, run_id)
    name = fetched_name(run.id) if run.kind == "peek_hub" and run.status == "done" else ""
    return html(request, "prompts/_hub_panel.html", run=run, name=name)
