"""The playground: all arms side by side, their words streamed as written. A turn is a run, linked by its id."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import Db, reading
from app.errors import Invalid, field_messages
from app.html import FormValues, html, read_form, recipe_form
from app.pairs.playing import PlayRecipe, Turn, read_turns, state_of
from app.projects.access import Member, Researcher, Viewer
from app.runs.models import Run, Sampled
from app.runs.queue import NoRow, cancel, launch, new_form_key

router = APIRouter()

_ROOT = "/p/{project}/checkpoints/playground"
LISTED = 60  # of each kind of player
LOOK_S = 0.15
LONGEST_S = 30.0  # of one connection; a browser connects again by itself, and a server that stops need not wait


def _choices(session: Session, member: Member) -> list[tuple[str, str, list[Any]]]:
    """(field, heading, rows) of whom one can ask. An arm is listed where something stands before its prompts: the
    others are their checkpoint or endpoint."""
    mine = member.project.id
    policies = select(Checkpoint).where(
        Checkpoint.project_id == mine, Checkpoint.role == "policy", col(Checkpoint.archived_at).is_(None)
    )
    servers = select(Endpoint).where(Endpoint.project_id == mine, col(Endpoint.archived_at).is_(None))
    arms = select(Arm).where(Arm.project_id == mine, Arm.kind != "imported").order_by(col(Arm.id).desc()).limit(500)
    told = {json.dumps(one.preamble) + f"{one.checkpoint_id} {one.endpoint_id}": one for one in session.exec(arms)
            if one.preamble}  # fmt: skip
    return [
        ("checkpoints", "Checkpoints", list(session.exec(policies.order_by(col(Checkpoint.id).desc()).limit(LISTED)))),
        ("endpoints", "Endpoints", list(session.exec(servers.order_by(col(Endpoint.id).desc()).limit(LISTED)))),
        ("arms", "In context", list(told.values())[:LISTED]),
    ]


def _page(
    request: Request, session: Session, member: Member, turns: list[Turn], values: dict[str, Any],
    errors: dict[str, list[str]],
) -> Response:  # fmt: skip
    fields = {one.name: one for one in recipe_form(session, PlayRecipe, member.project.id, values, errors)}
    chosen = {name: {str(key) for key in values.get(name) or []} for name in ("checkpoints", "endpoints", "arms")}
    started = select(Run).where(Run.project_id == member.project.id, Run.kind == PlayRecipe.kind)
    return html(
        request, "pairs/playground.html", 422 if errors else 200, title="Playground", turns=turns, state_of=state_of,
        said=fields["said"], settings=[one for name, one in fields.items() if name in SETTINGS], chosen=chosen,
        choices=_choices(session, member), errors=[text for many in errors.values() for text in many],
        form_key=new_form_key(), recent=session.exec(started.order_by(col(Run.id).desc()).limit(8)).all(),
    )  # fmt: skip


SETTINGS = ("system", "seed", "decoding.temperature", "decoding.top_p", "decoding.max_new_tokens")


@router.get(_ROOT)
def show_playground(
    request: Request, member: Viewer, session: Db, run: Annotated[int | None, Query()] = None
) -> Response:
    """A conversation as it stands, or an empty page; any field may be given in the address."""
    given: list[tuple[str, str | UploadFile]] = [*request.query_params.multi_items()]
    values = read_form(PlayRecipe, FormData(given))
    turns = read_turns(session, member.project.id, run) if run is not None else []
    if turns:
        last = turns[-1]
        values = {**last.run.recipe, "said": "", "after": last.run.id}
        for field in ("checkpoints", "endpoints", "arms"):
            noun = field[:-1]
            values[field] = [key for key in last.run.recipe[field] if last.answers.get(f"{noun}:{key}")]
    return _page(request, session, member, turns, values, {})


@router.post(_ROOT)
def say(request: Request, member: Researcher, session: Db, form: FormValues) -> Response:
    """Sends a message to those chosen: a run, which the page then follows."""
    values = read_form(PlayRecipe, form)
    after = values.get("after")
    try:
        recipe = PlayRecipe.model_validate(values)
        key = str(form.get("form_key") or new_form_key())[:64]
        run = launch(session, recipe, project_id=member.project.id, account_id=member.account.id, form_key=key)
    except ValidationError as error:
        errors = field_messages(error.errors())
    except (Invalid, NoRow) as error:
        errors = {"": [error.message]}
    else:
        return RedirectResponse(f"/p/{member.project.slug}/checkpoints/playground?run={run.id}#newest", status_code=303)
    is_known = isinstance(after, str) and after.isdecimal() and len(after) < 18
    turns = read_turns(session, member.project.id, int(str(after))) if is_known else []
    return _page(request, session, member, turns, values, errors)


@router.post(_ROOT + "/{run_id}/stop")
def stop(member: Researcher, session: Db, run_id: int) -> Response:
    """Stops everybody; what they have said so far stays."""
    turn = read_turns(session, member.project.id, run_id)[-1]
    if turn.run.is_live:
        cancel(session, turn.run)
    url = f"/p/{member.project.slug}/checkpoints/playground?run={run_id}#newest"
    return RedirectResponse(url, status_code=303)


@router.get(_ROOT + "/{run_id}/stream")
def stream(member: Viewer, session: Db, run_id: int) -> Response:
    """Server-sent events: `said` with a player's text so far whenever it has grown, and `end` once all is written."""
    read_turns(session, member.project.id, run_id)
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_events(run_id), media_type="text/event-stream", headers=headers)


async def _events(run_id: int) -> AsyncIterator[str]:
    shown: dict[int, Any] = {}
    loop = asyncio.get_running_loop()
    until = loop.time() + LONGEST_S
    while loop.time() < until:
        is_live, rows = await run_in_threadpool(_look, run_id)
        for event in _news(rows, shown):
            yield event
        if not is_live:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(LOOK_S)


def _look(run_id: int) -> tuple[bool, list[dict[str, Any]]]:
    with reading() as session:
        run = session.get_one(Run, run_id)  # first: what is written after this look is read at the next
        rows = session.exec(select(Sampled).where(Sampled.run_id == run_id, Sampled.step == 0)).all()
        return run.is_live, [
            {"place": row.place, "text": row.text, "state": state_of(run, row), "why": row.detail.get("why", "")}
            for row in rows
        ]


def _news(rows: list[dict[str, Any]], shown: dict[int, Any]) -> Iterator[str]:
    for row in rows:
        if shown.get(row["place"]) != row:
            shown[row["place"]] = row
            yield f"event: said\ndata: {json.dumps(row)}\n\n"
