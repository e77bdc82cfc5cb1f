"""Arms: what gets compared. The same source, prefix and decoding are the same arm, whoever asks first."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import get
from app.errors import NotFound
from app.runs.recipe import sha256_of

Messages = list[dict[str, str]]


def find_or_make_arm(
    session: Session, project_id: int, *, checkpoint: int | None = None, endpoint: int | None = None,
    system: str = "", few_shot: Sequence[Mapping[str, str]] = (), decoding: Mapping[str, Any], name: str = "",
) -> Arm:  # fmt: skip
    """The arm of a checkpoint or an endpoint with this prefix and decoding. A name given later changes nothing."""
    preamble = preamble_of(system, few_shot)
    settings = same_decoding(decoding)
    sha256 = sha256_of({"checkpoint": checkpoint, "endpoint": endpoint, "preamble": preamble, "decoding": settings})
    arm = Arm(project_id=project_id, name="", kind="checkpoint", sha256=sha256, preamble=preamble, decoding=settings)
    if checkpoint is not None:
        row = get(session, Checkpoint, checkpoint)
        _check_project(row.project_id, project_id, "checkpoint", checkpoint)
        arm.checkpoint_id, arm.seed, arm.name = row.id, row.seed, row.name
        arm.method = "in_context" if preamble and row.method in {"base", "imported"} else row.method
    else:
        server = get(session, Endpoint, endpoint or 0)
        _check_project(server.project_id, project_id, "endpoint", endpoint or 0)
        arm.kind, arm.method, arm.endpoint_id, arm.name = "endpoint", "endpoint", server.id, server.name
    arm.name = (name or arm.name + _said(preamble, settings))[:120]
    return _store_once(session, arm)


def find_or_make_imported_arm(session: Session, project_id: int, name: str) -> Arm:
    """The arm of completions that a file brought along, known by its name alone."""
    sha256 = sha256_of({"imported": name[:120]})
    arm = Arm(project_id=project_id, name=name[:120], kind="imported", method="imported", sha256=sha256)
    return _store_once(session, arm)


def preamble_of(system: str, few_shot: Sequence[Mapping[str, str]]) -> Messages:
    """What stands before each prompt: a system message unless it is blank, then examples."""
    before = [{"role": "system", "content": system}] if system.strip() else []
    return before + [{"role": one["role"], "content": one["content"]} for one in few_shot]


def same_decoding(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding settings in one spelling, so that 1 and 1.0 are one arm; greedy has no top-p."""
    found: dict[str, Any] = dict(decoding)
    for key in ("temperature", "top_p"):
        if key in found:
            found[key] = float(found[key])
    if found.get("temperature") == 0 and "top_p" in found:
        found["top_p"] = 1.0
    return found


def put_before(preamble: Messages, messages: Messages) -> Messages:
    """A prompt with an arm's prefix before it. Two system messages become one: chat templates refuse a second."""
    is_twice = bool(preamble and messages) and preamble[0]["role"] == messages[0]["role"] == "system"
    if not is_twice:
        return [*preamble, *messages]
    both = f"{preamble[0]['content']}\n\n{messages[0]['content']}"
    return [{"role": "system", "content": both}, *preamble[1:], *messages[1:]]


def _said(preamble: Messages, decoding: Mapping[str, Any]) -> str:
    parts = []
    if preamble:
        parts.append("system message" if len(preamble) == 1 else f"{len(preamble)} messages before")
    if "temperature" in decoding:
        parts.append("greedy" if decoding["temperature"] == 0 else f"T={decoding['temperature']:g}")
    return "".join(f" · {part}" for part in parts)


def _check_project(found: int, wanted: int, noun: str, key: int) -> None:
    if found != wanted:
        raise NotFound(f"There is no {noun} {key} in this project.")


def _store_once(session: Session, arm: Arm) -> Arm:
    same = select(Arm).where(Arm.project_id == arm.project_id, Arm.sha256 == arm.sha256)
    row = session.exec(same).first()
    if row is not None:
        return row
    try:
        with session.begin_nested():  # another run may make the same arm at this moment
            session.add(arm)
    except IntegrityError:
        return session.exec(same).one()
    return arm
