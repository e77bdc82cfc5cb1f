"""The project's home: the pipeline as a row of stages and the one sensible next step."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.db import Db
from app.html import html
from app.projects.access import Viewer

router = APIRouter()


@router.get("/p/{project}")
def show_home(request: Request, member: Viewer, session: Db) -> Response:
    """The pipeline."""
    return html(request, "home/home.html", title=member.project.name)
