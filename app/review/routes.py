"""Pages and API of review: queues, one pair a screen, what the judge said, agreement, overrides."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Form, Request
from fastapi.responses import RedirectResponse, Response

from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.judging.models import VerdictSet
from app.projects.access import Grader, Member, Researcher, Viewer
from app.review.agreement import count_answered, read_agreement, read_agreements
from app.review.answers import (
    as_shown,
    change_answer,
    give_answer,
    is_contradiction,
    project_answer,
    project_override,
    withdraw,
)
from app.review.models import Answer, Queue
from app.review.pages import (
    answers_table,
    last_answered,
    name_for,
    overrides_table,
    queues_table,
    read_revealed,
    read_shown,
)
from app.review.queues import claim_place, held_place, project_queue
from app.tables import FORMATS, Format, read_page, respond

router = APIRouter()

Choice = Annotated[str, Form(max_length=20)]
Note = Annotated[str, Form(max_length=10_000)]


def _root(member: Member) -> str:
    return f"/p/{member.project.slug}/review"


def _named(member: Member, queue: Queue) -> dict[str, Any]:
    return {"queue": queue, "name": name_for(member, queue), "title": name_for(member, queue)}


def _see_other(url: str) -> Response:
    return RedirectResponse(url, status_code=303)


@router.get("/p/{project}/review")
def list_queues(request: Request, member: Grader, session: Db) -> Response:
    """Queues, and how well judge and people agree."""
    agreements = read_agreements(session, member.project.id) if member.may("viewer") else []
    table = queues_table(member)
    return respond(request, session, table, "html", "review/list.html", title="Review", agreements=agreements)


@router.get("/p/{project}/review/overrides")
def list_overrides(request: Request, member: Viewer, session: Db) -> Response:
    """Labels that people changed: who, when, why; standing or withdrawn."""
    return respond(request, session, overrides_table(member), "html", "review/overrides.html", title="Overrides")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/review.{fmt}", name=f"download_queues_{fmt}")
    def download_queues(request: Request, member: Grader, session: Db) -> Response:
        return respond(request, session, queues_table(member), fmt, "review/list.html")

    @router.get(f"/p/{{project}}/review/overrides.{fmt}", name=f"download_overrides_{fmt}")
    def download_overrides(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, overrides_table(member), fmt, "review/overrides.html")

    @router.get(f"/p/{{project}}/review/{{queue_id}}.{fmt}", name=f"download_answers_{fmt}")
    def download_answers(request: Request, member: Viewer, session: Db, queue_id: int) -> Response:
        table = answers_table(member, project_queue(session, member, queue_id))
        return respond(request, session, table, fmt, "review/queue.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.post("/p/{project}/review/overrides/{override_id}/withdraw")
def withdraw_override(member: Researcher, session: Db, override_id: int) -> Response:
    """Takes an override back: the verdict speaks again."""
    withdraw(session, project_override(session, member, override_id), member.account.id)
    return _see_other(f"{_root(member)}/overrides")


@router.get("/p/{project}/review/{queue_id}")
def show_queue(request: Request, member: Grader, session: Db, queue_id: int) -> Response:
    """One queue: what it is, how far it is, and for an audit what it says of the judge."""
    queue = project_queue(session, member, queue_id)
    done, total = count_answered(session, queue)
    context: dict[str, Any] = {"agreement": None, "page": None, "verdict_set": None}
    if member.may("viewer"):
        context["page"] = read_page(request, session, answers_table(member, queue))
        context["verdict_set"] = get(session, VerdictSet, queue.verdict_set_id or 0)
        if queue.kind == "audit":
            context["agreement"] = read_agreement(session, queue)
    return html(
        request,
        "review/queue.html",
        title=name_for(member, queue),
        name=name_for(member, queue),
        queue=queue,
        done=done,
        total=total,
        **context,
    )


@router.get("/p/{project}/review/{queue_id}/next")
def show_next(request: Request, member: Grader, session: Db, queue_id: int, auto: bool = False) -> Response:
    """The pair this person holds; the verdict is not in the page. Taking a pair is a POST to this address."""
    queue = project_queue(session, member, queue_id)
    answer = held_place(session, queue, member.account.id)
    last = last_answered(session, queue, member.account.id)
    done, total = count_answered(session, queue)
    return html(
        request, "review/next.html", **_named(member, queue), answer=answer, done=done, total=total,
        auto=auto, last=last, shown=read_shown(session, answer) if answer else None,
        revealed=read_revealed(session, last, queue) if last and auto else None,
        last_choice=as_shown(last.first, last.is_swapped) if last else None,
    )  # fmt: skip


@router.post("/p/{project}/review/{queue_id}/next")
def take_next(member: Grader, session: Db, queue_id: int, auto: Annotated[bool, Form()] = False) -> Response:
    """Takes the next pair for this person."""
    queue = project_queue(session, member, queue_id)
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
        request, "review/answer.html", **_named(member, queue), answer=answer, revealed=revealed,
        shown=read_shown(session, answer), first=first, later=as_shown(answer.later, answer.is_swapped),
        is_agreed=answer.first != "skip" and not is_contradiction(str(first), outcome),
        is_own=answer.account_id == member.account.id,
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
    """Takes the next pair for this person; null when nothing is left."""
    queue = project_queue(session, member, queue_id)
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


@router.post("/api/v1/p/{project}/overrides/{override_id}/withdraw")
def withdraw_override_api(member: Researcher, session: Db, override_id: int) -> dict[str, Any]:
    """Takes an override back."""
    override = project_override(session, member, override_id)
    withdraw(session, override, member.account.id)
    return override.model_dump(mode="json")
