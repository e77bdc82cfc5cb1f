"""Pages and API of overrides: the list, one pair's whole history, and taking an override back."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.db import Db
from app.html import html
from app.projects.access import Researcher, Viewer
from app.review.answers import project_override, withdraw
from app.review.overrides import read_history
from app.review.tables import overrides_table
from app.tables import FORMATS, Format, respond

router = APIRouter()


@router.get("/p/{project}/review/overrides")
def list_overrides(request: Request, member: Viewer, session: Db) -> Response:
    """Labels that people changed: who, when, why; standing or withdrawn."""
    return respond(request, session, overrides_table(member), "html", "review/overrides.html", title="Overrides")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/review/overrides.{fmt}", name=f"download_overrides_{fmt}")
    def download_overrides(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, overrides_table(member), fmt, "review/overrides.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/review/pairs/{pair_id}")
def show_pair_history(request: Request, member: Viewer, session: Db, pair_id: int) -> Response:
    """One pair: what judges said of it, and what people made of that, in order."""
    history = read_history(session, member, pair_id)
    return html(request, "review/history.html", title=f"Pair {pair_id}", history=history)


@router.post("/p/{project}/review/overrides/{override_id}/withdraw")
def withdraw_override(member: Researcher, session: Db, override_id: int) -> Response:
    """Takes an override back: the verdict speaks again."""
    override = project_override(session, member, override_id)
    withdraw(session, override, member.account.id)
    return RedirectResponse(f"/p/{member.project.slug}/review/pairs/{override.pair_id}", status_code=303)


@router.post("/api/v1/p/{project}/overrides/{override_id}/withdraw")
def withdraw_override_api(member: Researcher, session: Db, override_id: int) -> dict[str, Any]:
    """Takes an override back."""
    override = project_override(session, member, override_id)
    withdraw(session, override, member.account.id)
    return override.model_dump(mode="json")
