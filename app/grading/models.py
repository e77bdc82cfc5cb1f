"""Tables: blind gradings, their items, and people's grades."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, moment, one_of, ref

CHOICES = ("left", "right", "tie", "both_bad", "skip")


class Grading(Row, table=True):
    """Arms compared blind by people; sealed until closed."""

    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    prompt_set_id: int = ref("prompt_set.id")
    seed: int = 0
    planned_n: int = 0  # items to grade
    n_identical: int = 0  # identical completions: automatic ties, never shown
    arms: list[int] = json_field()  # arm ids, in the report's order
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    closed_at: datetime | None = moment(nullable=True)


class GradeItem(Row, table=True):
    """Two completions side by side under a random token, which is all a grader's browser ever sees."""

    __tablename__ = "grade_item"
    __table_args__ = (sa.UniqueConstraint("grading_id", "prompt_id", "left_id", "right_id"),)
    token: str = Field(max_length=40, unique=True)
    grading_id: int = ref("grading.id")
    position: int
    prompt_id: int = ref("prompt.id")
    left_id: int = ref("completion.id", index=False)
    right_id: int = ref("completion.id", index=False)
    is_identical: bool = False


class Grade(Row, table=True):
    """One person's grade of one item."""

    __table_args__ = (sa.UniqueConstraint("item_id", "account_id"),)
    item_id: int = ref("grade_item.id", index=False)
    account_id: int = ref("account.id")
    choice: str = one_of("choice", *CHOICES)
    left_alignment: int | None = None  # 1 to 5
    right_alignment: int | None = None
    left_correct: str | None = one_of("left_correct", "yes", "partly", "no", nullable=True)
    right_correct: str | None = one_of("right_correct", "yes", "partly", "no", nullable=True)
    seconds: float = 0
    made_at: datetime = moment(is_now=True)


class ArmGuess(Row, table=True):
    """At the end a grader guesses which arm wrote which completion; a rate above chance means blinding failed."""

    __tablename__ = "arm_guess"
    __table_args__ = (sa.UniqueConstraint("grading_id", "account_id"),)
    grading_id: int = ref("grading.id", index=False)
    account_id: int = ref("account.id")
    guesses: list[dict[str, Any]] = json_field()
    n_right: int = 0
    n: int = 0
    made_at: datetime = moment(is_now=True)
