"""Pages of rounds: a checkpoint's rounds with the forms of the next one, and the line on the checkpoint's page."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import Session

from app.checkpoints.models import Checkpoint
from app.db import Db, get
from app.errors import Invalid, NotFound
from app.html import html
from app.projects.access import Member, Viewer
from app.training.rounds import read_next_round, read_rounds, round_as_json

router = APIRouter()


def _project_checkpoint(session: Session, member: Member, key: int) -> Checkpoint:
    row = get(session, Checkpoint, key)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no checkpoint {key}.")
    return row


@router.get("/p/{project}/train/checkpoints/{checkpoint_id:int}/rounds")
def show_rounds(request: Request, member: Viewer, session: Db, checkpoint_id: int) -> Response:
    """The rounds behind a policy, and what the next one takes."""
    row = _project_checkpoint(session, member, checkpoint_id)
    if row.role != "policy":
        raise Invalid("A reward model writes nothing, so no round starts from it: choose a policy.")
    rounds = read_rounds(session, row)
    return html(
        request, "training/rounds.html", title=f"Rounds of {row.name}", checkpoint=row, rounds=rounds,
        steps=read_next_round(session, row, rounds),
    )  # fmt: skip


@router.get("/p/{project}/train/checkpoints/{checkpoint_id:int}/rounds/line")
def show_round_line(request: Request, member: Viewer, session: Db, checkpoint_id: int) -> Response:
    """Which round a policy is of, for its page."""
    row = _project_checkpoint(session, member, checkpoint_id)
    return html(request, "training/_round.html", checkpoint=row, rounds=read_rounds(session, row))


@router.get("/p/{project}/train/checkpoints/{checkpoint_id:int}/rounds.json")
def show_rounds_json(member: Viewer, session: Db, checkpoint_id: int) -> dict[str, Any]:
    """The rounds behind a policy."""
    return {
        "rounds": [
            round_as_json(one) for one in read_rounds(session, _project_checkpoint(session, member, checkpoint_id))
        ]
    }
