"""Judges: making one, what it reads, and what stops it from being used."""

from typing import Any

from sqlmodel import Session, select

from app.checkpoints.models import Checkpoint, Endpoint
from app.db import get, now
from app.errors import Invalid, NotFound
from app.judging.models import Judge
from app.judging.recipes import NewJudgeRecipe, read_weight

SENT_ALWAYS = ("temperature", "token_field")  # request fields no judge can do without


def make_judge(session: Session, project_id: int, recipe: NewJudgeRecipe) -> Judge:
    """A new judge as its recipe says; raises Invalid."""
    kind, settings = recipe.judge_kind, dict[str, Any]()
    source = ""
    if kind == "endpoint":
        source = _own(session, Endpoint, recipe.endpoint, project_id).name
    elif kind in {"checkpoint", "reward"}:
        checkpoint = _own(session, Checkpoint, recipe.checkpoint, project_id)
        wanted = "reward" if kind == "reward" else "policy"
        if checkpoint.role != wanted:
            message = f"Checkpoint {checkpoint.id} is a {checkpoint.role}; this judge needs a {wanted}."
            raise Invalid(message, {"checkpoint": [message]})
        source = checkpoint.name
    elif kind == "panel":
        settings, source = _panel(session, project_id, recipe)
    else:
        settings = recipe.model_dump(include={"format_weight", "answer_weight", "flip_rate"})
        if not recipe.format_weight and not recipe.answer_weight:
            raise Invalid("A rule judge needs a weight above 0.", {"format_weight": ["both weights are 0"]})
        source = "format and answer" if recipe.answer_weight else "format"
        source += f", {recipe.flip_rate:.0%} flipped" if recipe.flip_rate else ""
    row = Judge(
        project_id=project_id, kind=kind,
        name=free_name(session, Judge, project_id, recipe.name or f"{kind}: {source}"),
        endpoint_id=recipe.endpoint if kind == "endpoint" else None,
        checkpoint_id=recipe.checkpoint if kind in {"checkpoint", "reward"} else None,
        settings=settings, is_oracle=_is_oracle(session, kind, recipe),
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def _is_oracle(session: Session, kind: str, recipe: NewJudgeRecipe) -> bool:
    """Whether it reads gold answers: such a rule, and a panel with a member that does."""
    if kind == "panel":
        return any(get(session, Judge, one).is_oracle for one in recipe.members)
    return kind == "rule" and recipe.answer_weight > 0


def _panel(session: Session, project_id: int, recipe: NewJudgeRecipe) -> tuple[dict[str, Any], str]:
    """A panel's settings, and its members in words."""
    members = [_own(session, Judge, one, project_id) for one in dict.fromkeys(recipe.members)]
    for one in members:
        if one.kind in {"panel", "imported"}:
            why = "is a panel itself" if one.kind == "panel" else "came with its labels"
            raise Invalid(f"“{one.name}” {why}: it cannot sit on a panel.", {"members": [f"“{one.name}” {why}"]})
    weights = dict(read_weight(line) for line in recipe.weights)
    strangers = sorted(set(weights) - {one.id for one in members})
    if strangers:
        message = f"Judge {strangers[0]} has a weight and is no member."
        raise Invalid(message, {"weights": [message]})
    seats = [{"judge": one.id, "weight": weights.get(one.id, 1.0)} for one in members]
    return {"members": seats, "rule": recipe.rule}, ", ".join(one.name for one in members)[:80]


def _own(session: Session, kind: Any, key: int | None, project_id: int) -> Any:
    row = get(session, kind, key or 0)
    if row.project_id != project_id:
        raise NotFound(f"There is no {kind.__tablename__} {key} in this project.")
    return row


def free_name(session: Session, kind: Any, project_id: int, wanted: str) -> str:
    """`wanted`, or `wanted (2)`, … where a row of the project has it already."""
    taken = set(
        session.exec(select(kind.name).where(kind.project_id == project_id, kind.name.startswith(wanted[:100])))
    )
    name, n = wanted[:120], 1
    while name in taken:
        n += 1
        name = f"{wanted[:112]} ({n})"
    return name


def freeze_judge(session: Session, judge: Judge) -> None:
    """Labels point to this judge from now on."""
    if judge.frozen_at is None:
        judge.frozen_at = now()
        session.add(judge)


def endpoint_of(session: Session, judge: Judge) -> Endpoint:
    """The endpoint a judge asks; raises Invalid when it was put away."""
    row = get(session, Endpoint, judge.endpoint_id or 0)
    if row.archived_at is not None:
        raise Invalid(
            f"The endpoint “{row.name}” is archived and its key forgotten: add it again, and a judge with it."
        )
    return row


def check_mode(mode: dict[str, Any], temperature: float) -> None:
    """Raises Invalid where "test connection" found that the endpoint ignores, or refuses, what a judge must send."""
    ignored = [name for name in SENT_ALWAYS if name in mode.get("ignored", [])]
    if ignored:
        raise Invalid(
            f"The endpoint ignores {' and '.join(ignored)}, so its answers are not what this recipe asks for. "
            "Use another server or model, then test the connection again on the judge's page."
        )
    if mode.get("temperature") == "refused" and temperature != 1:
        raise Invalid(
            "This endpoint takes no temperature: it always samples at its own. Set the temperature to 1 to say so.",
            {"temperature": ["the endpoint refuses this field"]},
        )
