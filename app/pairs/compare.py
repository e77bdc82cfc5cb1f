"""Compare: one prompt, and what the chosen arms have written for it, side by side."""

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlmodel import Session, col, select

from app.checkpoints.models import Arm
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.pairs.models import Completion
from app.pairs.pages import probing_runs
from app.projects.access import Member, Viewer
from app.prompts.models import Prompt, PromptSet

router = APIRouter()

SHOWN = 8  # completions an arm
MOST_ARMS = 12


@router.get("/p/{project}/checkpoints/compare")
def compare(
    request: Request, member: Viewer, session: Db, prompt: int | None = None, arm: list[int] | None = Query(None)
) -> Response:
    """One prompt's stored completions, arm by arm."""
    chosen = _find_prompt(session, member, prompt, arm or [])
    if chosen is None:
        return html(
            request, "pairs/compare.html", title="Compare", prompt=None, arms=[], shown=[], before=None, after=None
        )
    is_written = col(Completion.run_id).not_in(probing_runs(member))
    written = select(Completion.arm_id).where(Completion.prompt_id == chosen.id, is_written).distinct()
    arms = session.exec(
        select(Arm).where(Arm.project_id == member.project.id, col(Arm.id).in_(written)).order_by(col(Arm.id))
    ).all()
    wanted = [one for one in arms if not arm or one.id in arm][:MOST_ARMS]
    shown = [(one, _read_completions(session, chosen, one)) for one in wanted]
    return html(
        request, "pairs/compare.html", title="Compare", prompt=chosen, arms=arms, shown=shown,
        before=_neighbour(session, chosen, -1), after=_neighbour(session, chosen, 1),
    )  # fmt: skip


def _find_prompt(session: Session, member: Member, prompt_id: int | None, arms: list[int]) -> Prompt | None:
    """The prompt asked for, else the one written for last (by one of these arms, should some be named)."""
    if prompt_id is not None:
        found = get(session, Prompt, prompt_id)
        if get(session, PromptSet, found.set_id).project_id != member.project.id:
            raise NotFound(f"There is no prompt {prompt_id}.")
        return found
    last = select(Completion.prompt_id).join(Arm, col(Arm.id) == col(Completion.arm_id))
    last = last.where(Arm.project_id == member.project.id, col(Completion.run_id).not_in(probing_runs(member)))
    if arms:
        last = last.where(col(Arm.id).in_(arms))
    key = session.exec(last.order_by(col(Completion.id).desc()).limit(1)).first()
    return get(session, Prompt, key) if key else None


def _read_completions(session: Session, prompt: Prompt, arm: Arm) -> list[Completion]:
    """The newest run's first completions."""
    mine = select(Completion).where(Completion.prompt_id == prompt.id, Completion.arm_id == arm.id)
    newest = session.exec(mine.order_by(col(Completion.run_id).desc()).limit(1)).first()
    if newest is None:
        return []
    return list(
        session.exec(mine.where(Completion.run_id == newest.run_id).order_by(col(Completion.sample)).limit(SHOWN))
    )


def _neighbour(session: Session, prompt: Prompt, step: int) -> int | None:
    """The next prompt of the set in this direction that anybody has written for."""
    written = select(Completion.id).where(Completion.prompt_id == Prompt.id).exists()
    place = col(Prompt.position)
    query = select(Prompt.id).where(Prompt.set_id == prompt.set_id, written)
    if step > 0:
        query = query.where(place > prompt.position).order_by(place)
    else:
        query = query.where(place < prompt.position).order_by(place.desc())
    return session.exec(query.limit(1)).first()
