"""The gate before training: what a judge says that failed its Judge Card teaches only with a typed reason."""

from typing import Any

from pydantic import Field
from sqlmodel import Session

from app.db import get
from app.errors import Invalid
from app.judging.models import Judge
from app.review.cards import SHORTEST_REASON, failed_card, judge_of_reward_model, lines_that
from app.review.models import JudgeCard


def reason_field(what: str) -> Any:
    """The field of the reason; `what` of the judge’s may train: its labels, its scores."""
    return Field(
        "", max_length=2_000, title="Reason", json_schema_extra={"rows": 3},
        description=f"Needed where the judge failed its Judge Card: why its {what} may train all the same. The report "
        f"prints it.{' Reward models are judges too.' if what == 'scores' else ''}",
    )  # fmt: skip


def check_waiver(session: Session, judge_id: int, constitution_id: int | None, reason: str, what: str) -> None:
    """Raises Invalid where the judge failed its card and no reason is given; it names the lines and what to do."""
    card = failed_card(session, judge_id, constitution_id)
    if card is not None and len(reason.strip()) < SHORTEST_REASON:
        raise _refuse(session, card, "", what, "judge")


def check_reward_waiver(session: Session, checkpoint_id: int, reason: str) -> None:
    """The same of a reward model whose scores are the reward: as a judge it may have failed a card."""
    judge = judge_of_reward_model(session, checkpoint_id)
    card = failed_card(session, judge.id, None) if judge else None
    if card is not None and len(reason.strip()) < SHORTEST_REASON:
        raise _refuse(session, card, ", which is this reward model,", "scores", "reward model")


def check_rewarding(session: Session, recipe: Any) -> None:
    """The same of whatever rewards a run of PPO, GRPO or RLOO."""
    if recipe.judge is not None and recipe.judge_weight:
        check_waiver(session, recipe.judge, recipe.constitution, recipe.waiver, "scores")
    if recipe.reward is not None and recipe.reward_weight:
        check_reward_waiver(session, recipe.reward, recipe.waiver)


def _refuse(session: Session, card: JudgeCard, which: str, what: str, other: str) -> Invalid:
    return Invalid(
        f"The judge “{get(session, Judge, card.judge_id).name}”{which} failed its Judge Card {card.id} "
        f"({'; '.join(lines_that(card, 'failed'))}). Its {what} train only with a reason (waiver, {SHORTEST_REASON} "
        f"characters or more), which the report prints; or choose another {other}.",
        {"waiver": [f"the judge failed its card {card.id}: say why its {what} may train all the same"]},
    )
