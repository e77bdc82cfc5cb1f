"""Pages and API of review: queues, one pair a screen, what the judge said, agreement, overrides."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Form, Request
from fastapi.responses import RedirectResponse, Response

from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.judging.models import RatingSet, VerdictSet
from app.projects.access import Grader, Member, Researcher, Viewer
from app.review import override_routes, scoring_routes
from app.review.agreement import count_answered, read_agreement, read_agreements
from app.review.answers import LATER_WHY, as_shown, change_answer, give_answer, is_contradiction, project_answer
from app.review.coverage import read_part
from app.review.leases import give_back, held_place, keep_draft
from app.review.models import Answer, Mark, Queue
from app.review.pages import last_answered, named, read_others, read_outcome, read_revealed, read_shown
from app.review.queues import RECENT, claim_place, latest_verdict_set, project_queue, read_progress, set_closed
from app.review.scoring_routes import claim_mark, next_mark_json, show_next_mark
from app.review.tables import queues_table, results_table
from app.tables import FORMATS, Format, read_page, respond

router = APIRouter()
router.include_router(override_routes.router)  # before /review/{queue_id}, which would take “overrides” for a number
router.include_router(scoring_routes.router)

Choice = Annotated[str, Form(max_length=20)]
Note = Annotated[str, Form(max_length=10_000)]


def _root(member: Member) -> str:
    return f"/p/{member.project.slug}/review"


def _see_other(url: str) -> Response:
    return RedirectResponse(url, status_code=303)


@router.get("/p/{project}/review")
def list_queues(request: Request, member: Grader, session: Db) -> Response:
    """Queues, and how well judge and people agree."""
    agreements = read_agreements(session, member.project.id) if member.may("viewer") else []
    latest = latest_verdict_set(session, member.project.id) if member.may("researcher") else None
    return respond(
        request, session, queues_table(member), "html", "review/list.html", title="Review", agreements=agreements,
        latest=latest,
    )  # fmt: skip


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/review.{fmt}", name=f"download_queues_{fmt}")
    def download_queues(request: Request, member: Grader, session: Db) -> Response:
        return respond(request, session, queues_table(member), fmt, "review/list.html")

    @router.get(f"/p/{{project}}/review/{{queue_id}}.{fmt}", name=f"download_answers_{fmt}")
    def download_answers(request: Request, member: Viewer, session: Db, queue_id: int) -> Response:
        table = results_table(member, project_queue(session, member, queue_id))
        return respond(request, session, table, fmt, "review/queue.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/review/{queue_id}")
def show_queue(request: Request, member: Grader, session: Db, queue_id: int) -> Response:
    """One queue: what it is, how far it is and by whom, and for an audit what it says of the judge."""
    queue = project_queue(session, member, queue_id)
    done, total = count_answered(session, queue)
    is_viewer = member.may("viewer")
    return html(
        request, "review/queue.html", **named(session, member, queue), done=done, total=total,
        page=read_page(request, session, results_table(member, queue)),
        progress=read_progress(session, queue, None if is_viewer else member.account.id),
        recent=RECENT,
        held=held_place(session, _kind_of(queue), queue, member.account.id),
        verdict_set=get(session, VerdictSet, queue.verdict_set_id) if is_viewer and queue.verdict_set_id else None,
        rating_set=get(session, RatingSet, queue.rating_set_id) if is_viewer and queue.rating_set_id else None,
        agreement=read_agreement(session, queue, is_page=True) if is_viewer and queue.kind == "audit" else None,
        part=read_part(session, queue),
    )  # fmt: skip


def _kind_of(queue: Queue) -> Any:
    return Mark if queue.kind == "scoring" else Answer


@router.post("/p/{project}/review/{queue_id}/close")
def close_queue(member: Researcher, session: Db, queue_id: int) -> Response:
    """Nobody takes from this queue any more; what was answered stays."""
    set_closed(session, project_queue(session, member, queue_id), True)
    return _see_other(f"{_root(member)}/{queue_id}")


@router.post("/p/{project}/review/{queue_id}/reopen")
def reopen_queue(member: Researcher, session: Db, queue_id: int) -> Response:
    """The queue goes on where it was."""
    set_closed(session, project_queue(session, member, queue_id), False)
    return _see_other(f"{_root(member)}/{queue_id}")


@router.post("/p/{project}/review/{queue_id}/release")
def release_place(member: Grader, session: Db, queue_id: int) -> Response:
    """Gives back what this person holds; a comment begun comes back with it if nobody takes it meanwhile."""
    queue = project_queue(session, member, queue_id)
    give_back(session, _kind_of(queue), queue, member.account.id)
    return _see_other(f"{_root(member)}/{queue.id}")


@router.get("/p/{project}/review/{queue_id}/next")
def show_next(request: Request, member: Grader, session: Db, queue_id: int, auto: bool = False) -> Response:
    """What this person holds; the verdict is not in the page. Taking it is a POST to this address."""
    queue = project_queue(session, member, queue_id)
    if queue.kind == "scoring":
        return show_next_mark(request, member, session, queue)
    answer = held_place(session, Answer, queue, member.account.id)
    last = last_answered(session, queue, member.account.id)
    done, total = count_answered(session, queue)
    outcome, override = read_outcome(session, last, queue) if last and auto else (None, None)
    return html(
        request, "review/next.html", **named(session, member, queue), answer=answer, done=done, total=total,
        auto=auto, last=last, shown=read_shown(session, answer) if answer else None,
        others=read_others(session, answer) if answer and queue.kind == "adjudication" else [],
        outcome=outcome, override=override, last_choice=as_shown(last.first, last.is_swapped) if last else None,
    )  # fmt: skip


@router.post("/p/{project}/review/{queue_id}/next")
def take_next(member: Grader, session: Db, queue_id: int, auto: Annotated[bool, Form()] = False) -> Response:
    """Takes the next item for this person."""
    queue = project_queue(session, member, queue_id)
    if queue.kind == "scoring":
        claim_mark(session, queue, member.account.id)
    else:
        claim_place(session, queue, member.account.id)
    return _see_other(f"{_root(member)}/{queue.id}/next{'?auto=1' if auto else ''}")


def _own_answer(session: Db, member: Member, answer_id: int) -> tuple[Answer, Queue]:
    """An answer that this member may see: their own, or any for who may see the verdicts anyway."""
    answer, queue = project_answer(session, member, answer_id)
    if answer.account_id != member.account.id and not (answer.first is not None and member.may("viewer")):
        raise NotFound(f"There is no answer {answer_id} of yours.")
    return answer, queue


@router.get("/p/{project}/review/answers/{answer_id}")
def show_answer(request: Request, member: Grader, session: Db, answer_id: int) -> Response:
    """An answered pair with what the judge said and why."""
    answer, queue = _own_answer(session, member, answer_id)
    if answer.first is None:
        return _see_other(f"{_root(member)}/{queue.id}/next")
    revealed = read_revealed(session, answer, queue)
    outcome = None if revealed.choice is None else revealed.choice
    first = as_shown(answer.first, answer.is_swapped)
    return html(
        request, "review/answer.html", **named(session, member, queue), answer=answer, revealed=revealed,
        shown=read_shown(session, answer), first=first, later=as_shown(answer.later, answer.is_swapped),
        is_agreed=answer.first != "skip" and not is_contradiction(str(first), outcome),
        is_own=answer.account_id == member.account.id, later_why=LATER_WHY,
    )  # fmt: skip


@router.post("/p/{project}/review/answers/{answer_id}")
def answer_pair(
    member: Grader, session: Db, answer_id: int, choice: Choice, note: Note = "",
    auto: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Stores the blind answer; then the verdict is shown, or, by choice and after a skip, the next pair."""
    answer, queue = _own_answer(session, member, answer_id)
    give_answer(session, answer, queue, member.account.id, choice, note)
    if auto or choice == "skip":
        claim_place(session, queue, member.account.id)
        return _see_other(f"{_root(member)}/{queue.id}/next{'?auto=1' if auto else ''}")
    return _see_other(f"{_root(member)}/answers/{answer.id}")


@router.post("/p/{project}/review/answers/{answer_id}/draft")
def draft_comment(member: Grader, session: Db, answer_id: int, note: Note = "") -> Response:
    """Keeps the comment that is being written, so that it survives a reload or a closed tab."""
    answer, _ = _own_answer(session, member, answer_id)
    keep_draft(session, Answer, answer.id, member.account.id, note)
    return Response(status_code=204)


@router.post("/p/{project}/review/answers/{answer_id}/later")
def change_label(member: Grader, session: Db, answer_id: int, choice: Choice, note: Note = "") -> Response:
    """What the person says after the reveal: it moves the override, never the first answer."""
    answer, queue = _own_answer(session, member, answer_id)
    change_answer(session, answer, queue, member.account.id, choice, note)
    return _see_other(f"{_root(member)}/answers/{answer.id}")


def _answer_json(session: Db, answer: Answer, queue: Queue) -> dict[str, Any]:
    """A place as the API shows it: the pair, and the verdict only once it is answered."""
    shown = read_shown(session, answer)
    found = {
        "answer": answer.id, "queue": queue.id, "messages": shown.messages, "left": shown.left, "right": shown.right,
        "first": as_shown(answer.first, answer.is_swapped), "later": as_shown(answer.later, answer.is_swapped),
        "note": answer.note, "seconds": answer.seconds,
    }  # fmt: skip
    if answer.first is not None:
        revealed = read_revealed(session, answer, queue)
        found |= {"verdict": revealed.choice, "reason": revealed.reason, "override": revealed.override_choice}
    return found


@router.post("/api/v1/p/{project}/review/{queue_id}/next")
def take_next_api(member: Grader, session: Db, queue_id: int) -> dict[str, Any] | None:
    """Takes the next pair (or completion) for this person; null when nothing is left."""
    queue = project_queue(session, member, queue_id)
    if queue.kind == "scoring":
        return next_mark_json(session, member, queue)
    answer = claim_place(session, queue, member.account.id)
    return _answer_json(session, answer, queue) if answer else None


@router.post("/api/v1/p/{project}/review/{queue_id}/answers")
def answer_pair_api(
    member: Grader, session: Db, queue_id: int, answer: Annotated[int, Body()], choice: Annotated[str, Body()],
    note: Annotated[str, Body()] = "",
) -> dict[str, Any]:  # fmt: skip
    """Stores the blind answer (left, right, tie, both_bad or skip) of a place taken before; shows the verdict."""
    row, queue = _own_answer(session, member, answer)
    if queue.id != queue_id:
        raise NotFound(f"Queue {queue_id} has no answer {answer}.")
    give_answer(session, row, queue, member.account.id, choice, note)
    return _answer_json(session, row, queue)


@router.post("/api/v1/p/{project}/review/answers/{answer_id}/later")
def change_label_api(
    member: Grader, session: Db, answer_id: int, choice: Annotated[str, Body()], note: Annotated[str, Body()] = ""
) -> dict[str, Any]:
    """Changes what the label becomes; the first answer stays."""
    answer, queue = _own_answer(session, member, answer_id)
    change_answer(session, answer, queue, member.account.id, choice, note)
    return _answer_json(session, answer, queue)
