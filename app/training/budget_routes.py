"""What a checkpoint has cost: the part of its page, and the same as JSON."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.projects.access import Member, Viewer
from app.runs.models import Run
from app.training.budgets import MEASURES, Budget, read_budgets
from app.training.pages import METHODS

router = APIRouter()
OTHERS = 100  # newest trained arms that are looked at for what is shared


def _read(session: Session, member: Member, key: int) -> tuple[Checkpoint, Budget | None]:
    row = get(session, Checkpoint, key)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no checkpoint {key}.")
    if row.run_id is None:
        return row, None
    arms = [kind for kind in METHODS if kind != "reward"]
    newest = (
        select(Run.id)
        .where(Run.project_id == member.project.id, Run.status == "done", col(Run.kind).in_(arms))
        .order_by(col(Run.id).desc())
        .limit(OTHERS)
    )
    return row, read_budgets(session, [row.run_id], session.exec(newest).all())[row.run_id]


@router.get("/p/{project}/train/checkpoints/{checkpoint_id:int}/budget")
def show_budget(request: Request, member: Viewer, session: Db, checkpoint_id: int) -> Response:
    """What a checkpoint has cost, run by run, for its page."""
    row, budget = _read(session, member, checkpoint_id)
    return html(request, "training/_budget.html", checkpoint=row, budget=budget, measures=MEASURES)


@router.get("/p/{project}/train/checkpoints/{checkpoint_id:int}/budget.json")
def show_budget_json(member: Viewer, session: Db, checkpoint_id: int) -> dict[str, Any]:
    """What a checkpoint has cost: all of it, its own training, and the part that other trained arms share."""
    _, budget = _read(session, member, checkpoint_id)
    if budget is None:
        return {"total": {}, "own": {}, "shared": {}, "runs": []}
    runs = [
        {"run": one.run.id, "kind": one.run.kind, "shared_with": one.shared_with, **one.amounts} for one in budget.spent
    ]
    return {"total": budget.total, "own": dict(budget.own), "shared": budget.shared, "runs": runs}
