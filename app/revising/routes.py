"""Pages and API of revisions: sets, one revision a screen, and an arm that follows a constitution in context."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Body, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session, col

from app.checkpoints.models import Arm
from app.constitutions.models import Constitution
from app.db import Db, get
from app.errors import Forbidden, Invalid
from app.html import FormValues, html
from app.pairs.models import PairSet
from app.projects.access import Grader, Member, Researcher, Viewer
from app.prompts.models import PromptSet
from app.revising.decisions import (
    claim_revision,
    decide,
    held_revision,
    last_decided,
    next_revision,
    project_set,
    set_revision,
    take_back,
)
from app.revising.in_context import make_in_context_arm, read_in_context
from app.revising.models import Revision, RevisionSet
from app.revising.pages import name_for, read_shown, revisions_table, sets_table, summarise
from app.runs.models import Run
from app.runs.queue import new_form_key
from app.tables import FORMATS, Format, respond

router = APIRouter()

State = Annotated[str, Form(max_length=20)]
Note = Annotated[str, Form(max_length=10_000)]
Text = Annotated[str, Form(max_length=1_000_000)]


def _see_other(url: str) -> Response:
    return RedirectResponse(url, status_code=303)


@router.get("/p/{project}/revisions")
def list_revision_sets(request: Request, member: Grader, session: Db) -> Response:
    """The project's revision sets."""
    return respond(request, session, sets_table(member), "html", "revising/list.html", title="Revisions")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/revisions.{fmt}", name=f"download_revision_sets_{fmt}")
    def download_sets(request: Request, member: Grader, session: Db) -> Response:
        """The project's revision sets."""
        return respond(request, session, sets_table(member), fmt, "revising/list.html")

    @router.get(f"/p/{{project}}/revisions/{{set_id:int}}.{fmt}", name=f"download_revisions_{fmt}")
    def download_revisions(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        """One set's revisions with their texts and steps."""
        table = revisions_table(project_set(session, member, set_id))
        return respond(request, session, table, fmt, "revising/show.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/revisions/{set_id:int}")
def show_revision_set(request: Request, member: Grader, session: Db, set_id: int) -> Response:
    """One set: how many, how many were accepted, and every revision; for a grader only the way to the review."""
    made = project_set(session, member, set_id)
    if not member.may("viewer"):
        return _see_other(f"/p/{member.project.slug}/revisions/{made.id}/next")
    return respond(
        request, session, revisions_table(made), "html", "revising/show.html", title=made.name, made=made,
        summary=summarise(session, made), prompts=get(session, PromptSet, made.prompt_set_id),
        constitution=get(session, Constitution, made.constitution_id),
        arm=get(session, Arm, made.original_arm_id) if made.original_arm_id else None,
        pairs=get(session, PairSet, made.pair_set_id) if made.pair_set_id else None,
        run=get(session, Run, made.run_id) if made.run_id else None, form_key=new_form_key(),
    )  # fmt: skip


@router.get("/p/{project}/revisions/{set_id:int}/{revision_id:int}")
def show_revision(request: Request, member: Viewer, session: Db, set_id: int, revision_id: int) -> Response:
    """One revision, whole: opened in place, or a page of its own."""
    made = project_set(session, member, set_id)
    revision = set_revision(session, made, revision_id)
    template = "revising/_revision.html" if request.headers.get("hx-request") else "revising/revision.html"
    title = f"Revision {revision.position + 1} of {made.name}"
    return html(request, template, title=title, made=made, shown=read_shown(session, revision))


@router.get("/p/{project}/revisions/{set_id:int}/next")
def show_next(request: Request, member: Grader, session: Db, set_id: int) -> Response:
    """The revision this person holds. Taking one is a POST to this address."""
    made = project_set(session, member, set_id)
    revision = held_revision(session, made, member.account.id)
    last = last_decided(session, made, member.account.id)
    return html(
        request, "revising/next.html", title=name_for(member, made), name=name_for(member, made), made=made, last=last,
        shown=read_shown(session, revision) if revision else None, n_none=_count_none(session, made),
    )  # fmt: skip


@router.post("/p/{project}/revisions/{set_id:int}/next")
def take_next(member: Grader, session: Db, set_id: int, start: Annotated[int | None, Form()] = None) -> Response:
    """Takes the next revision that nobody has decided about; `start` skips what this person holds."""
    made = project_set(session, member, set_id)
    claim_revision(session, made, member.account.id, start)
    return _see_other(f"/p/{member.project.slug}/revisions/{made.id}/next")


def _count_none(session: Session, made: RevisionSet) -> int:
    query = sa.select(sa.func.count()).where(
        col(Revision.set_id) == made.id, col(Revision.revised_id).is_(None), col(Revision.state) == "proposed"
    )
    return int(session.execute(query).scalar_one())


@router.post("/p/{project}/revisions/{set_id:int}/{revision_id:int}")
def decide_revision(
    member: Grader, session: Db, set_id: int, revision_id: int, state: State, note: Note = "", text: Text = "",
) -> Response:  # fmt: skip
    """Accepts or rejects a revision, or accepts what the person wrote instead, and goes on to the next."""
    made = project_set(session, member, set_id)
    revision = set_revision(session, made, revision_id)
    decide(session, made, revision, member.account.id, state, note, _plain(text))
    if held_revision(session, made, member.account.id) is None:
        claim_revision(session, made, member.account.id, revision.position + 1)
    return _see_other(f"/p/{member.project.slug}/revisions/{made.id}/next")


def _plain(text: str) -> str:
    """A text as it was before a browser sent it: forms end lines with two characters."""
    return text.replace("\r\n", "\n")


@router.post("/p/{project}/revisions/{set_id:int}/{revision_id:int}/undo")
def undo_decision(member: Grader, session: Db, set_id: int, revision_id: int) -> Response:
    """Opens a decision of one's own again (a researcher: anybody's) and shows the revision."""
    made, revision = _own(session, member, set_id, revision_id)
    take_back(session, made, revision, member.account.id)
    return _see_other(f"/p/{member.project.slug}/revisions/{made.id}/next")


def _own(session: Session, member: Member, set_id: int, revision_id: int) -> tuple[RevisionSet, Revision]:
    made = project_set(session, member, set_id)
    revision = set_revision(session, made, revision_id)
    if revision.account_id not in {None, member.account.id} and not member.may("researcher"):
        raise Forbidden("Somebody else decided this: only they, or a researcher, can take it back.")
    return made, revision


def as_json(session: Session, revision: Revision) -> dict[str, Any]:
    """A revision as the API shows it."""
    shown = read_shown(session, revision)
    known = revision.model_dump(mode="json", include={"id", "set_id", "position", "state", "reason", "note", "steps"})
    return {
        **known, "messages": shown.messages, "original": shown.original, "revised": shown.revised,
        "decided_by": shown.decided_by, "edited_by": shown.edited_by,
    }  # fmt: skip


@router.get("/api/v1/p/{project}/revisions/{set_id:int}/next")
def show_next_api(member: Grader, session: Db, set_id: int, start: int = 0) -> dict[str, Any] | None:
    """The next revision that nobody has decided about, not taken; null when none is left."""
    revision = next_revision(session, project_set(session, member, set_id), start)
    return as_json(session, revision) if revision else None


@router.post("/api/v1/p/{project}/revisions/{set_id:int}/next")
def take_next_api(member: Grader, session: Db, set_id: int, start: int | None = None) -> dict[str, Any] | None:
    """Takes the next revision for this person, for a quarter of an hour; null when nothing is left for them."""
    revision = claim_revision(session, project_set(session, member, set_id), member.account.id, start)
    return as_json(session, revision) if revision else None


@router.post("/api/v1/p/{project}/revisions/{set_id:int}/{revision_id:int}")
def decide_revision_api(
    member: Grader, session: Db, set_id: int, revision_id: int, state: Annotated[str, Body()],
    note: Annotated[str, Body()] = "", text: Annotated[str, Body()] = "",
) -> dict[str, Any]:  # fmt: skip
    """Accepts (accepted) or rejects (rejected) a revision, accepts `text` in its stead, or reopens it (proposed)."""
    if state == "proposed":
        made, revision = _own(session, member, set_id, revision_id)
        take_back(session, made, revision)
    else:
        made = project_set(session, member, set_id)
        revision = set_revision(session, made, revision_id)
        decide(session, made, revision, member.account.id, state, note, text)
    return as_json(session, revision)


# ---------------------------------------------------------------------------------------------- alignment in context


@router.get("/p/{project}/constitutions/{key:int}/in-context")
def show_in_context(request: Request, member: Researcher, session: Db, key: int) -> Response:
    """The constitution as a system message, and the form of an arm that trains nothing."""
    found = read_in_context(session, member.project.id, key, request.query_params)
    return html(request, "revising/in_context.html", title=f"In context: {found.constitution.name}", found=found)


@router.post("/p/{project}/constitutions/{key:int}/in-context")
def make_in_context(request: Request, member: Researcher, session: Db, key: int, form: FormValues) -> Response:
    """Makes the arm, or finds the same one, and shows it; a wrong field sends the form back."""
    try:
        arm = make_in_context_arm(session, member.project.id, key, form)
    except Invalid as error:
        found = read_in_context(session, member.project.id, key, form, error.fields or {"": [error.message]})
        return html(
            request, "revising/in_context.html", 422, title=f"In context: {found.constitution.name}", found=found
        )
    return _see_other(f"/p/{member.project.slug}/checkpoints/arms/{arm.id}")
