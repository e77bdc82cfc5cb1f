"""Pages and API of grading: blind items under random tokens, the guess at the end, results once it is closed."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session, select
from starlette.datastructures import FormData

from app.db import Db
from app.errors import Invalid, NotFound
from app.grading.guesses import CHANCE, end_part, is_asked, read_questions, store_guesses
from app.grading.items import (
    Marks,
    close_grading,
    count_graded,
    find_item,
    give_grade,
    has_ended,
    last_graded,
    next_item,
    own_grade,
    project_grading,
    read_item,
)
from app.grading.models import GradeItem, Grading
from app.grading.pages import grades_table, gradings_table, name_for
from app.grading.results import detectable_of, read_results
from app.html import FormValues, html
from app.projects.access import Grader, Member, Researcher, Viewer
from app.runs.routes import project_run
from app.tables import FORMATS, Format, read_page, respond

router = APIRouter()


def _root(member: Member) -> str:
    return f"/p/{member.project.slug}/grade"


def _see_other(url: str) -> Response:
    return RedirectResponse(url, status_code=303)


@router.get("/p/{project}/grade")
def list_gradings(request: Request, member: Grader, session: Db) -> Response:
    """The project's gradings."""
    return respond(request, session, gradings_table(member), "html", "grading/list.html", title="Grade")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/grade.{fmt}", name=f"download_gradings_{fmt}")
    def download_gradings(request: Request, member: Grader, session: Db) -> Response:
        return respond(request, session, gradings_table(member), fmt, "grading/list.html")

    @router.get(f"/p/{{project}}/grade/{{grading_id}}.{fmt}", name=f"download_grades_{fmt}")
    def download_grades(request: Request, member: Viewer, session: Db, grading_id: int) -> Response:
        grading = project_grading(session, member, grading_id)
        read_results(session, grading)  # refuses while it is sealed
        return respond(request, session, grades_table(grading), fmt, "grading/show.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/grade/{grading_id}")
def show_grading(request: Request, member: Grader, session: Db, grading_id: int) -> Response:
    """How far a grading is; once it is closed, its results, for those who may see models."""
    grading = project_grading(session, member, grading_id)
    is_open_to_all = grading.closed_at is not None and member.may("viewer")
    n_prompts, detectable = detectable_of(session, grading)
    return html(
        request, "grading/show.html", title=name_for(member, grading), name=name_for(member, grading), grading=grading,
        n_graded=count_graded(session, grading), n_mine=count_graded(session, grading, member.account.id),
        is_done=has_ended(session, grading, member.account.id), n_prompts=n_prompts, detectable=detectable,
        results=read_results(session, grading) if is_open_to_all else None, chance=CHANCE,
        page=read_page(request, session, grades_table(grading)) if is_open_to_all else None,
    )  # fmt: skip


@router.get("/p/{project}/grade/{grading_id}/results.json")
def show_results_json(member: Viewer, session: Db, grading_id: int) -> dict[str, Any]:
    """The results of a closed grading."""
    found = read_results(session, project_grading(session, member, grading_id))
    return {
        "grading": found.grading.id, "planned_n": found.grading.planned_n, "n_graded": found.n_graded,
        "n_people": found.n_people, "is_simulated": found.is_simulated, "n_identical": found.grading.n_identical,
        "compared": [
            {"arm": one.arm.id, "against": one.against.id, "n_identical": one.n_identical,
             "n_identical_planned": one.n_identical_planned, "detectable": one.detectable, **vars(one.wins)}
            for one in found.compared
        ],
        "graded": [
            {"arm": one.arm.id, "alignment": one.alignment and vars(one.alignment),
             "correct": one.correct and vars(one.correct)}
            for one in found.graded
        ],
        "guess": found.guess and {**vars(found.guess), "chance": CHANCE},
    }  # fmt: skip


@router.post("/p/{project}/grade/{grading_id}/close")
def close(member: Researcher, session: Db, grading_id: int) -> Response:
    """Ends a grading and opens its results."""
    close_grading(session, project_grading(session, member, grading_id))
    return _see_other(f"{_root(member)}/{grading_id}")


@router.get("/p/{project}/grade/{grading_id}/next")
def show_next(member: Grader, session: Db, grading_id: int) -> Response:
    """Leads to the next item, or to the end of this person's part."""
    grading = project_grading(session, member, grading_id)
    item = next_item(session, grading, member.account.id)
    if item is not None:
        return _see_other(f"{_root(member)}/item/{item.token}")
    return _see_other(f"{_root(member)}/{grading.id}{'' if grading.closed_at else '/guess'}")


@router.get("/p/{project}/grade/{grading_id}/guess")
def show_guess(request: Request, member: Grader, session: Db, grading_id: int) -> Response:
    """The end: first this person's grades are made final, then they guess which completion was by which method."""
    grading = project_grading(session, member, grading_id)
    return _guess_page(request, session, member, grading, {}, {})


def _guess_page(
    request: Request, session: Session, member: Member, grading: Grading, given: dict[str, str],
    errors: dict[str, list[str]],
) -> Response:  # fmt: skip
    account = member.account.id
    asked = is_asked(session, grading, account)
    return html(
        request, "grading/guess.html", status_code=422 if errors else 200, title="The end", grading=grading,
        questions=read_questions(session, grading, account) if asked else [], given=given, errors=errors,
        is_ended=grading.closed_at is not None or has_ended(session, grading, account),
        is_left=next_item(session, grading, account) is not None,
    )  # fmt: skip


@router.post("/p/{project}/grade/{grading_id}/end")
def end(member: Grader, session: Db, grading_id: int) -> Response:
    """Ends this person's part; the guess follows."""
    grading = project_grading(session, member, grading_id)
    end_part(session, grading, member.account.id)
    return _see_other(f"{_root(member)}/{grading.id}/guess")


@router.post("/p/{project}/grade/{grading_id}/guess")
def guess(request: Request, member: Grader, session: Db, grading_id: int, form: FormValues) -> Response:
    """Stores the guesses."""
    grading = project_grading(session, member, grading_id)
    sides = {str(key): str(value) for key, value in form.items()}
    try:
        store_guesses(session, grading, member.account.id, sides)
    except Invalid as error:
        return _guess_page(request, session, member, grading, sides, error.fields)
    return _see_other(f"{_root(member)}/{grading.id}")


@router.get("/p/{project}/grade/item/{token}")
def show_item(request: Request, member: Grader, session: Db, token: str) -> Response:
    """Two completions side by side; nothing here names an arm."""
    item, grading = find_item(session, member, token)
    row = own_grade(session, item, member.account.id)
    given = row.model_dump() if row else {}
    return _item_page(request, session, member, item, grading, given, {})


def _item_page(
    request: Request, session: Session, member: Member, item: GradeItem, grading: Grading, given: dict[str, Any],
    errors: dict[str, list[str]],
) -> Response:  # fmt: skip
    prompt, left, right = read_item(session, item)
    account = member.account.id
    return html(
        request, "grading/item.html", status_code=422 if errors else 200, title="Grade", item=item, grading=grading,
        prompt=prompt, left=left, right=right, given=given, errors=errors, shown_at=int(time.time()),
        n_mine=count_graded(session, grading, account), last=last_graded(session, grading, account, item),
    )  # fmt: skip


def _marks(form: FormData) -> Marks:
    """The marks as posted; raises Invalid for what is no number."""

    def number(name: str) -> int | None:
        text = str(form.get(name) or "")
        if text and not (text.isdecimal() and len(text) < 12):
            raise Invalid(f"{name.replace('_', ' ')} is a number from 1 to 5.", {name: ["1 to 5"]})
        return int(text) if text else None

    shown_at = number("shown_at")
    seconds = min(max(0.0, time.time() - shown_at), 3600.0) if shown_at else 0.0
    return Marks(
        str(form.get("choice") or ""), number("left_alignment"), number("right_alignment"),
        str(form.get("left_correct") or "") or None, str(form.get("right_correct") or "") or None, seconds,
    )  # fmt: skip


@router.post("/p/{project}/grade/item/{token}")
def grade_item(request: Request, member: Grader, session: Db, token: str, form: FormValues) -> Response:
    """Stores the grade and goes on to the next item."""
    item, grading = find_item(session, member, token)
    try:
        give_grade(session, item, grading, member.account.id, _marks(form))
    except Invalid as error:
        given = {str(key): str(value) for key, value in form.items()}
        return _item_page(request, session, member, item, grading, given, error.fields)
    return _see_other(f"{_root(member)}/{grading.id}/next")


@router.get("/api/v1/p/{project}/grade/{grading_id}/next")
def show_next_api(member: Grader, session: Db, grading_id: int) -> dict[str, Any] | None:
    """The next item for this person, blind; null when nothing is left."""
    grading = project_grading(session, member, grading_id)
    item = next_item(session, grading, member.account.id)
    if item is None:
        return None
    prompt, left, right = read_item(session, item)
    return {"token": item.token, "messages": prompt.messages, "left": left, "right": right}


@router.post("/api/v1/p/{project}/grade/{token}")
def grade_item_api(
    member: Grader, session: Db, token: str, choice: Annotated[str, Body()],
    left_alignment: Annotated[int | None, Body()] = None, right_alignment: Annotated[int | None, Body()] = None,
    left_correct: Annotated[str | None, Body()] = None, right_correct: Annotated[str | None, Body()] = None,
    seconds: Annotated[float, Body(ge=0, le=3600)] = 0,
) -> dict[str, Any]:  # fmt: skip
    """Stores the grade of an item."""
    item, grading = find_item(session, member, token)
    marks = Marks(choice, left_alignment, right_alignment, left_correct, right_correct, seconds)
    row = give_grade(session, item, grading, member.account.id, marks)
    return {"token": token, **row.model_dump(mode="json", include=set(Marks.__dataclass_fields__))}


@router.get("/p/{project}/runs/{run_id}/panel/grading")
def show_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """What a preparing run has made."""
    run = project_run(session, member, run_id)
    if run.kind != "grading":
        raise NotFound(f"Run {run_id} is no grading run.")
    grading = session.exec(select(Grading).where(Grading.run_id == run.id)).first()
    return html(request, "grading/_panel.html", run=run, grading=grading)
