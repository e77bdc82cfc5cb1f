"""The guess at the end: could the grader tell which arm wrote what? Chance is one half; above it, blinding failed."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.checkpoints.models import Arm
from app.db import now
from app.errors import Conflict, Invalid
from app.grading.items import has_ended
from app.grading.models import ArmGuess, Grade, GradeItem, Grading
from app.pairs.models import Completion
from app.prompts.models import Prompt

log = logging.getLogger(__name__)

CHANCE = 0.5
MOST = 10
# Methods, never names: a checkpoint's name could tell more than which of two it is.
WORDS = {
    "base": "the untrained base", "sft": "SFT", "dpo": "DPO", "simpo": "SimPO",
    "kto": "KTO", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "in_context": "in-context",
    "reward": "a reward model", "endpoint": "an endpoint", "imported": "an imported set",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Two completions this person has graded: which of them is by `asked`, the other being by `other`?"""

    item_id: int
    token: str
    messages: list[dict[str, str]]
    left: str
    right: str
    asked: str
    other: str
    is_left: bool  # the right answer; never sent to a page


def read_questions(session: Session, grading: Grading, account_id: int) -> list[Question]:
    """Up to ten items this person has graded, of two methods that differ, drawn by a hash of person and item."""
    left, right, left_arm, right_arm = aliased(Completion), aliased(Completion), aliased(Arm), aliased(Arm)
    graded = session.execute(
        sa.select(
            col(GradeItem.id), col(GradeItem.token), col(Prompt.messages), col(left.text).label("left"),
            col(right.text).label("right"), col(left_arm.id).label("left_arm"),
            col(left_arm.method).label("left_method"), col(right_arm.id).label("right_arm"),
            col(right_arm.method).label("right_method"),
        )
        .join(Grade, col(Grade.item_id) == col(GradeItem.id))
        .join(Prompt, col(Prompt.id) == col(GradeItem.prompt_id))
        .join(left, col(left.id) == col(GradeItem.left_id)).join(left_arm, col(left_arm.id) == col(left.arm_id))
        .join(right, col(right.id) == col(GradeItem.right_id)).join(right_arm, col(right_arm.id) == col(right.arm_id))
        .where(col(GradeItem.grading_id) == grading.id, col(Grade.account_id) == account_id)
        .where(col(Grade.choice) != "skip", col(left_arm.method) != col(right_arm.method))
    ).all()  # fmt: skip
    by_hash = sorted(graded, key=lambda row: hashlib.sha256(f"{account_id}:{row.token}".encode()).digest())
    questions = []
    for row in by_hash[:MOST]:
        # The one that is asked for is always the later arm, so that the question tells nothing of the sides.
        is_left = grading.arms.index(row.left_arm) > grading.arms.index(row.right_arm)
        asked, other = (row.left_method, row.right_method) if is_left else (row.right_method, row.left_method)
        questions.append(Question(row.id, row.token, row.messages, row.left, row.right, WORDS.get(asked, asked),
                                  WORDS.get(other, other), is_left))  # fmt: skip
    return questions


def end_part(session: Session, grading: Grading, account_id: int) -> None:
    """Ends this person's part: their grades stand from now on, and only then are they told which methods there were."""
    if grading.closed_at is not None:
        raise Conflict("This grading is closed.")
    if has_ended(session, grading, account_id):
        return
    try:
        with session.begin_nested():
            session.add(ArmGuess(grading_id=grading.id, account_id=account_id, guesses=[]))
    except IntegrityError:
        log.info("grading %s was ended twice at once by account %s", grading.id, account_id)


def store_guesses(session: Session, grading: Grading, account_id: int, sides: Mapping[str, str]) -> ArmGuess:
    """Stores the guesses of somebody who has ended their part. `sides` maps each question's token to left or right.

    Raises Invalid for open questions; Conflict before the end, after the closing, and the second time.
    """
    if grading.closed_at is not None:
        raise Conflict("This grading is closed.")
    mine = select(ArmGuess).where(ArmGuess.grading_id == grading.id, ArmGuess.account_id == account_id)
    row = session.exec(mine.with_for_update()).first()
    if row is None:
        raise Conflict("End your part first: the guess comes after the last grade.")
    if row.n:
        raise Conflict("You have guessed already.")
    questions = read_questions(session, grading, account_id)
    open_ones = [one.token for one in questions if sides.get(one.token) not in {"left", "right"}]
    if open_ones:
        raise Invalid(f"{len(open_ones)} of {len(questions)} are open: choose a side for each, guessing where you "
                      "cannot tell.", {token: ["left or right"] for token in open_ones})  # fmt: skip
    row.guesses = [
        {"item": one.item_id, "side": sides[one.token], "is_right": (sides[one.token] == "left") == one.is_left}
        for one in questions
    ]
    row.n, row.n_right = len(row.guesses), sum(bool(one["is_right"]) for one in row.guesses)
    row.made_at = now()
    session.flush()
    return row


def is_asked(session: Session, grading: Grading, account_id: int) -> bool:
    """Whether this person has ended their part of an open grading and has not guessed yet."""
    mine = select(ArmGuess.n).where(ArmGuess.grading_id == grading.id, ArmGuess.account_id == account_id)
    return grading.closed_at is None and session.exec(mine).first() == 0
