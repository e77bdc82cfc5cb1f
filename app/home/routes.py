"""The project's home: the pipeline as a row of stages and the one sensible next step; the API's description."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import col, select

from app.accounts.access import SignedIn
from app.db import Db
from app.experiments.models import EXPERIMENT_STATE, Experiment
from app.home.next_step import find_next_steps
from app.home.openapi import describe_api
from app.home.pipeline import read_stages
from app.html import html
from app.projects.access import Viewer

router = APIRouter()


@router.get("/p/{project}")
def show_home(request: Request, member: Viewer, session: Db) -> Response:
    """The pipeline."""
    mine = select(Experiment, EXPERIMENT_STATE).where(Experiment.project_id == member.project.id)
    recent = mine.order_by(col(Experiment.id).desc())
    return html(
        request, "home/home.html", title=member.project.name, stages=read_stages(session, member.project),
        steps=find_next_steps(session, member.project), experiments=session.exec(recent.limit(5)).all(),
    )  # fmt: skip


@router.get("/api/v1/openapi.json")
def show_openapi(request: Request, account: SignedIn) -> dict[str, Any]:
    """What the API can do: tables as .json, .csv and .jsonl, and writes below /api/v1. Bearer tokens."""
    return describe_api(request.app)
