"""Pages and API of scoring: one completion a screen, blind, then the judge's scores beside one's own."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session

from app.db import Db
from app.errors import NotFound
from app.html import FormValues, html
from app.projects.access import Grader, Member
from app.review.agreement import count_answered
from app.review.leases import claim, held_place, keep_draft
from app.review.models import Mark, Queue
from app.review.pages import named
from app.review.scoring import (
    Asked,
    asked_of,
    give_scores,
    last_marked,
    project_mark,
    read_completion,
    read_judge_scores,
    read_scores,
    take_back,
)

router = APIRouter()


def _root(member: Member) -> str:
    return f"/p/{member.project.slug}/review"


def claim_mark(session: Session, queue: Queue, account_id: int) -> Mark | None:
    """The completion this person is to score next; None when nothing is left for them."""
    return claim(session, Mark, queue, account_id)


def show_next_mark(request: Request, member: Member, session: Session, queue: Queue) -> Response:
    """The completion this person holds; nothing of the judge's scores is in the page."""
    mark = held_place(session, Mark, queue, member.account.id)
    done, total = count_answered(session, queue)
    return html(
        request, "review/score.html", **named(session, member, queue), mark=mark, done=done, total=total,
        shown=read_completion(session, mark) if mark else None, asked=asked_of(session, queue),
        last=last_marked(session, queue, member.account.id),
    )  # fmt: skip


def _own_mark(session: Session, member: Member, mark_id: int) -> tuple[Mark, Queue]:
    """A place that this member may see: their own, or any scored one for who may see the scores anyway."""
    mark, queue = project_mark(session, member, mark_id)
    if mark.account_id != member.account.id and not (mark.answered_at is not None and member.may("viewer")):
        raise NotFound(f"There is no mark {mark_id} of yours.")
    return mark, queue


@router.get("/p/{project}/review/marks/{mark_id}")
def show_mark(request: Request, member: Grader, session: Db, mark_id: int) -> Response:
    """A scored completion with the judge's scores beside; a skipped one shows none, so that it may be scored yet."""
    mark, queue = _own_mark(session, member, mark_id)
    if mark.answered_at is None:
        return RedirectResponse(f"{_root(member)}/{queue.id}/next", status_code=303)
    return html(
        request, "review/scored.html", **named(session, member, queue), mark=mark, asked=asked_of(session, queue),
        shown=read_completion(session, mark), said=read_judge_scores(session, mark, queue) if mark.scores else [],
        is_own=mark.account_id == member.account.id,
    )  # fmt: skip


def _given(asked: list[Asked], form: FormValues) -> dict[str, object]:
    """The form's scores by principle; principles are counted in the form, as their keys are free text."""
    return {one.key: form.get(f"score_{place}", "") for place, one in enumerate(asked)}


@router.post("/p/{project}/review/marks/{mark_id}")
def score_completion(member: Grader, session: Db, mark_id: int, form: FormValues) -> Response:
    """Stores the blind scores and shows the judge's; a skip goes on to the next completion."""
    mark, queue = _own_mark(session, member, mark_id)
    is_skip = form.get("choice") == "skip"
    asked = asked_of(session, queue)
    scores = None if is_skip else read_scores(asked, _given(asked, form))
    give_scores(session, mark, queue, member.account.id, scores, str(form.get("note", "")))
    if is_skip:
        claim_mark(session, queue, member.account.id)
        return RedirectResponse(f"{_root(member)}/{queue.id}/next", status_code=303)
    return RedirectResponse(f"{_root(member)}/marks/{mark.id}", status_code=303)


@router.post("/p/{project}/review/marks/{mark_id}/draft")
def draft_mark_comment(
    member: Grader, session: Db, mark_id: int, note: Annotated[str, Form(max_length=10_000)] = ""
) -> Response:
    """Keeps the comment that is being written."""
    mark, _ = _own_mark(session, member, mark_id)
    keep_draft(session, Mark, mark.id, member.account.id, note)
    return Response(status_code=204)


@router.post("/p/{project}/review/marks/{mark_id}/back")
def take_mark_back(member: Grader, session: Db, mark_id: int) -> Response:
    """Undo: a skip is open again; scores leave every estimate."""
    mark, queue = _own_mark(session, member, mark_id)
    take_back(session, mark, member.account.id)
    here = f"{queue.id}/next" if mark.answered_at is None else f"marks/{mark.id}"
    return RedirectResponse(f"{_root(member)}/{here}", status_code=303)


def next_mark_json(session: Session, member: Member, queue: Queue) -> dict[str, Any] | None:
    """The next completion as the API shows it."""
    mark = claim_mark(session, queue, member.account.id)
    return _mark_json(session, mark, queue) if mark else None


def _mark_json(session: Session, mark: Mark, queue: Queue) -> dict[str, Any]:
    shown = read_completion(session, mark)
    found: dict[str, Any] = {
        "mark": mark.id, "queue": queue.id, "messages": shown.messages, "text": shown.text,
        "principles": [{"key": one.key, "body": one.body} for one in asked_of(session, queue)],
        "scores": mark.scores, "is_skipped": mark.is_skipped, "note": mark.note, "seconds": mark.seconds,
    }  # fmt: skip
    if mark.scores:
        found["judge"] = [
            {"judge": one.judge, "principle": one.key, "score": one.value, "reason": one.reason}
            for one in read_judge_scores(session, mark, queue)
        ]
    return found


@router.post("/api/v1/p/{project}/review/marks/{mark_id}")
def score_completion_api(
    member: Grader, session: Db, mark_id: int, scores: Annotated[dict[str, Any] | None, Body()] = None,
    note: Annotated[str, Body()] = "",
) -> dict[str, Any]:  # fmt: skip
    """Stores the blind scores by principle, 1 to 10 (null skips), of a completion taken before; shows the judge's."""
    mark, queue = _own_mark(session, member, mark_id)
    given = None if scores is None else read_scores(asked_of(session, queue), scores)
    give_scores(session, mark, queue, member.account.id, given, note)
    return _mark_json(session, mark, queue)
