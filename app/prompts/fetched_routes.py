"""The page and API of what was fetched from the hub: seen with its size, deleted where no live run uses it."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.db import Db
from app.html import html
from app.projects.access import Researcher, Viewer
from app.prompts.fetched import Fetched, delete_fetched, delete_unused, list_fetched

router = APIRouter()


def as_row(one: Fetched) -> dict[str, Any]:
    """As programs read it."""
    return {
        "key": one.key, "name": one.name, "what": one.what, "runs": list(one.run_ids), "bytes": one.size,
        "fetched_at": one.fetched_at, "used_by": list(one.used_by),
    }  # fmt: skip


@router.get("/p/{project}/import/fetched")
def show_fetched(request: Request, member: Viewer, session: Db) -> Response:
    """What lies on the disk of data sets on the hub."""
    rows = list_fetched(session, member.project.id)
    return html(
        request, "prompts/fetched.html", title="Fetched from the hub", rows=rows,
        n_unused=sum(not one.used_by for one in rows), megabytes=sum(one.megabytes for one in rows),
    )  # fmt: skip


@router.post("/p/{project}/import/fetched/delete")
def delete_all_unused(member: Researcher, session: Db) -> Response:
    """Deletes all that no live run uses."""
    delete_unused(session, member.project.id)
    return RedirectResponse(f"/p/{member.project.slug}/import/fetched", status_code=303)


@router.post("/p/{project}/import/fetched/{key}/delete")
def delete_one(member: Researcher, session: Db, key: str) -> Response:
    """Deletes one file; refused while a live run uses it."""
    delete_fetched(session, key, member.project.id)
    return RedirectResponse(f"/p/{member.project.slug}/import/fetched", status_code=303)


@router.get("/api/v1/p/{project}/import/fetched")
def list_fetched_api(member: Viewer, session: Db) -> list[dict[str, Any]]:
    """What lies on the disk of data sets on the hub."""
    return [as_row(one) for one in list_fetched(session, member.project.id)]


@router.post("/api/v1/p/{project}/import/fetched/{key}/delete")
def delete_one_api(member: Researcher, session: Db, key: str) -> dict[str, Any]:
    """Deletes one file; refused while a live run uses it."""
    return as_row(delete_fetched(session, key, member.project.id))
