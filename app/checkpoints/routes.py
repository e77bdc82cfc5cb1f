"""Pages and API of checkpoints, endpoints and arms."""

from typing import Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlmodel import col, select

from app.checkpoints.endpoints import change_endpoint, make_endpoint, target_of
from app.checkpoints.forms import EndpointForm, endpoint_as_json, endpoint_form_values, read_endpoint_form
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.checkpoints.pages import (
    ancestors,
    arms_table,
    checkpoints_table,
    count_rows,
    descendants,
    endpoints_table,
    project_row,
    read_by,
    uses_of,
)
from app.checkpoints.probe import probe_endpoint
from app.db import Db, get, now
from app.errors import Invalid, invalid
from app.html import FormValues, html, recipe_form
from app.projects.access import Member, Researcher, Viewer
from app.runs.routes import PAGES
from app.tables import FORMATS, Format, respond

router = APIRouter()

_ROOT = "/p/{project}/checkpoints"


@router.get(_ROOT)
def list_checkpoints(request: Request, member: Viewer, session: Db) -> Response:
    """The project's checkpoints."""
    return respond(request, session, checkpoints_table(member), "html", "checkpoints/list.html", title="Checkpoints")


@router.get(_ROOT + "/{checkpoint_id:int}")
def show_checkpoint(request: Request, member: Viewer, session: Db, checkpoint_id: int) -> Response:
    """One checkpoint: what it is, where it comes from, and what was made of it."""
    row: Checkpoint = project_row(session, member, Checkpoint, checkpoint_id)
    arms = session.exec(select(Arm).where(Arm.checkpoint_id == row.id).order_by(col(Arm.id)).limit(50)).all()
    return html(
        request, "checkpoints/show.html", title=row.name, checkpoint=row, above=ancestors(session, row),
        below=descendants(session, row), base=get(session, Checkpoint, row.base_id) if row.base_id else None, arms=arms,
        uses=uses_of(session, "checkpoint", row.id), read=read_by(session, row.run_id), pages=PAGES,
    )  # fmt: skip


@router.get(_ROOT + "/arms")
def list_arms(request: Request, member: Viewer, session: Db) -> Response:
    """The project's arms."""
    return respond(request, session, arms_table(member), "html", "checkpoints/arms.html", title="Arms")


@router.get(_ROOT + "/arms/{arm_id:int}")
def show_arm(request: Request, member: Viewer, session: Db, arm_id: int) -> Response:
    """One arm: where its text comes from, and how it is decoded."""
    arm: Arm = project_row(session, member, Arm, arm_id)
    return html(
        request, "checkpoints/arm.html", title=arm.name, arm=arm,
        n_completions=count_rows(session, "completion", arm_id=arm.id),
        n_scores=count_rows(session, "score", arm_id=arm.id),
        checkpoint=get(session, Checkpoint, arm.checkpoint_id) if arm.checkpoint_id else None,
        endpoint=get(session, Endpoint, arm.endpoint_id) if arm.endpoint_id else None,
    )  # fmt: skip


def _downloads(fmt: Format) -> None:
    @router.get(f"{_ROOT}.{fmt}", name=f"download_checkpoints_{fmt}")
    def download_checkpoints(request: Request, member: Viewer, session: Db) -> Response:
        """The project's checkpoints."""
        return respond(request, session, checkpoints_table(member), fmt, "checkpoints/list.html")

    @router.get(f"{_ROOT}/endpoints.{fmt}", name=f"download_endpoints_{fmt}")
    def download_endpoints(request: Request, member: Viewer, session: Db) -> Response:
        """The project's endpoints, without their keys."""
        return respond(request, session, endpoints_table(member), fmt, "checkpoints/endpoints.html")

    @router.get(f"{_ROOT}/arms.{fmt}", name=f"download_arms_{fmt}")
    def download_arms(request: Request, member: Viewer, session: Db) -> Response:
        """The project's arms."""
        return respond(request, session, arms_table(member), fmt, "checkpoints/arms.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get(_ROOT + "/{checkpoint_id:int}.json")
def show_checkpoint_json(member: Viewer, session: Db, checkpoint_id: int) -> dict[str, Any]:
    """One checkpoint with the ids of what it came from and what came of it."""
    row: Checkpoint = project_row(session, member, Checkpoint, checkpoint_id)
    return {
        **row.model_dump(mode="json", exclude={"project_id"}),
        "ancestors": [one.row.id for one in ancestors(session, row)],
        "descendants": [one.row.id for one in descendants(session, row)],
        "used_by_runs": [run.id for run in uses_of(session, "checkpoint", row.id)],
    }


# --------------------------------------------------------------------------------------------------------- endpoints


@router.get(_ROOT + "/endpoints")
def list_endpoints(request: Request, member: Viewer, session: Db) -> Response:
    """The project's endpoints."""
    return respond(request, session, endpoints_table(member), "html", "checkpoints/endpoints.html", title="Endpoints")


def _form_page(
    request: Request, session: Any, member: Member, values: dict[str, Any], errors: dict[str, list[str]],
    endpoint: Endpoint | None = None,
) -> Response:  # fmt: skip
    fields = recipe_form(session, EndpointForm, member.project.id, values, errors)
    names = {field.name for field in fields}
    return html(
        request, "checkpoints/endpoint_form.html", 422 if errors else 200, fields=fields, endpoint=endpoint,
        title=f"Change {endpoint.name}" if endpoint else "Add an endpoint", key_errors=errors.get("key", []),
        general=[said for name, many in errors.items() if name not in names | {"key"} for said in many],
    )  # fmt: skip


@router.get(_ROOT + "/endpoints/new")
def new_endpoint(request: Request, member: Researcher, session: Db) -> Response:
    """The form of a new endpoint."""
    return _form_page(request, session, member, dict(request.query_params), {})


@router.post(_ROOT + "/endpoints/new")
def add_endpoint(request: Request, member: Researcher, session: Db, form: FormValues) -> Response:
    """Stores an endpoint; its key is encrypted before it is stored and never shown again."""
    try:
        values = read_endpoint_form(form)
        row = make_endpoint(session, member.project.id, **values.model_dump(), key=str(form.get("key") or "").strip())
    except Invalid as error:
        typed = {name: value for name, value in form.items() if name != "key"}
        return _form_page(request, session, member, typed, error.fields or {"": [error.message]})
    return RedirectResponse(f"/p/{member.project.slug}/checkpoints/endpoints/{row.id}", status_code=303)


@router.get(_ROOT + "/endpoints/{endpoint_id:int}")
def show_endpoint(request: Request, member: Viewer, session: Db, endpoint_id: int) -> Response:
    """One endpoint: what it is, what the last test found, and what used it."""
    row: Endpoint = project_row(session, member, Endpoint, endpoint_id)
    arms = session.exec(select(Arm).where(Arm.endpoint_id == row.id).order_by(col(Arm.id)).limit(50)).all()
    return html(request, "checkpoints/endpoint.html", title=row.name, endpoint=row, arms=arms,
                uses=uses_of(session, "endpoint", row.id))  # fmt: skip


@router.get(_ROOT + "/endpoints/{endpoint_id:int}/edit")
def edit_endpoint(request: Request, member: Researcher, session: Db, endpoint_id: int) -> Response:
    """The form that changes an endpoint; its key is not in it."""
    row: Endpoint = project_row(session, member, Endpoint, endpoint_id)
    return _form_page(request, session, member, endpoint_form_values(row), {}, row)


@router.post(_ROOT + "/endpoints/{endpoint_id:int}/edit")
def save_endpoint(request: Request, member: Researcher, session: Db, endpoint_id: int, form: FormValues) -> Response:
    """Changes an endpoint. Its key goes when its base URL does, unless a new one is given."""
    row: Endpoint = project_row(session, member, Endpoint, endpoint_id)
    try:
        values = read_endpoint_form(form)
        change_endpoint(
            session, row, **values.model_dump(), key=str(form.get("key") or "").strip(),
            is_key_dropped=form.get("is_key_dropped") == "true",
        )  # fmt: skip
    except Invalid as error:
        typed = {name: value for name, value in form.items() if name != "key"}
        return _form_page(request, session, member, typed, error.fields or {"": [error.message]}, row)
    return RedirectResponse(f"/p/{member.project.slug}/checkpoints/endpoints/{row.id}", status_code=303)


@router.post(_ROOT + "/endpoints/{endpoint_id:int}/archive")
def archive_endpoint(member: Researcher, session: Db, endpoint_id: int) -> Response:
    """Takes an endpoint off the lists and forgets its key; what used it keeps its row."""
    row: Endpoint = project_row(session, member, Endpoint, endpoint_id)
    row.archived_at, row.key_ciphertext, row.key_last4 = now(), None, ""
    return RedirectResponse(f"/p/{member.project.slug}/checkpoints/endpoints", status_code=303)


@router.post(_ROOT + "/endpoints/{endpoint_id:int}/test")
def test_endpoint(request: Request, member: Researcher, session: Db, endpoint_id: int) -> Response:
    """Asks the endpoint what it knows, and keeps that as the mode its calls use."""
    target = target_of(project_row(session, member, Endpoint, endpoint_id))
    session.rollback()  # the questions take seconds: nobody's write waits for them
    probe = probe_endpoint(target)
    row = get(session, Endpoint, endpoint_id)
    if probe.mode:
        row.mode = probe.mode
        session.add(row)
    return html(request, "judging/_probe.html", endpoint=row, probe=probe)


@router.post("/api/v1/p/{project}/endpoints", status_code=201)
def add_endpoint_api(member: Researcher, session: Db, endpoint: dict[str, Any] = Body(...)) -> dict[str, Any]:
    """Adds an endpoint: the form's fields, and `key`, which is stored encrypted and never sent back."""
    values = dict(endpoint)
    key = str(values.pop("key", "") or "")
    try:
        read = EndpointForm.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error
    return endpoint_as_json(make_endpoint(session, member.project.id, **read.model_dump(), key=key))
