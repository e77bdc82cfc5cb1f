"""Tables: review queues, people's answers, and the overrides that follow from them."""

from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from app.db import Id, Row, json_field, long_text, moment, one_of, ref

CHOICES = ("a", "b", "tie", "both_bad", "skip")


class Queue(Row, table=True):
    """Pairs drawn for people. An audit is a random sample and feeds every estimate; a repair queue mends labels.

    An adjudication queue holds the pairs on which people split evenly; a scoring queue holds single completions.
    """

    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    verdict_set_id: int | None = ref("verdict_set.id", nullable=True)  # of pairs
    rating_set_id: int | None = ref("rating_set.id", nullable=True)  # of single completions, which are scored
    kind: str = one_of("kind", "audit", "repair", "adjudication", "scoring")
    seed: int = 0
    n: int = 0
    n_answered: int = 0  # places with their first answer; kept by what stores answers
    overlap: int = 1
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    closed_at: datetime | None = moment(nullable=True)


class Answer(Row, table=True):
    """One place in a queue: first who holds it, then what they answered. `first` never changes: agreement reads it."""

    __table_args__ = (
        sa.UniqueConstraint("queue_id", "pair_id", "place"),
        sa.UniqueConstraint("queue_id", "pair_id", "account_id"),
        # partial: beside an IS NULL within the index, Postgres would sort the whole queue to find the first place
        sa.Index("ix_answer_queue_open", "queue_id", "place", "position", sqlite_where=sa.text("first IS NULL"),
                 postgresql_where=sa.text("first IS NULL")),
        sa.Index("ix_answer_person", "queue_id", "account_id", "answered_at", "id"),
        sa.Index("ix_answer_given", "queue_id", "id", "first", sqlite_where=sa.text("first IS NOT NULL"),
                 postgresql_where=sa.text("first IS NOT NULL")),
    )  # fmt: skip
    queue_id: int = ref("queue.id", index=False)
    pair_id: int = ref("pair.id")
    place: int = 0  # 0 … overlap-1
    position: int = 0  # order in the queue
    account_id: int | None = ref("account.id", nullable=True)
    lease_until: float | None = None
    is_swapped: bool = False  # b was shown on the left
    first: str | None = one_of("first", *CHOICES, nullable=True)
    later: str | None = one_of("later", *CHOICES, nullable=True)  # after the reveal; moves the override only
    seconds: float | None = None
    note: str = long_text(default="")
    answered_at: datetime | None = moment(nullable=True)


class Tally(SQLModel, table=True):
    """How much one person has done in a queue; kept by what stores answers and scores, so that no page counts them."""

    queue_id: int = Field(primary_key=True, foreign_key="queue.id", sa_type=cast(Any, Id))
    account_id: int = Field(primary_key=True, foreign_key="account.id", sa_type=cast(Any, Id), index=True)
    n: int = 0  # places answered or scored, skips included
    n_skipped: int = 0


class Override(Row, table=True):
    """A person's word over a pair. It beats any verdict; it is withdrawn, never deleted."""

    __table_args__ = (
        sa.Index("uq_override_standing", "pair_id", unique=True, sqlite_where=sa.text("withdrawn_at IS NULL"),
                 postgresql_where=sa.text("withdrawn_at IS NULL")),
    )  # fmt: skip
    pair_id: int = ref("pair.id")
    choice: str = one_of("choice", "a", "b", "tie", "both_bad")
    account_id: int = ref("account.id")
    why: str = long_text(default="")
    answer_id: int | None = ref("answer.id", nullable=True)
    made_at: datetime = moment(is_now=True)
    withdrawn_at: datetime | None = moment(nullable=True)
    withdrawn_by_id: int | None = ref("account.id", nullable=True, index=False)  # by hand; else the answers changed


class Mark(Row, table=True):
    """One place of a scoring queue: first who holds it, then the scores they gave by principle, blind."""

    __table_args__ = (
        sa.UniqueConstraint("queue_id", "completion_id", "place"),
        sa.UniqueConstraint("queue_id", "completion_id", "account_id"),
        sa.Index("ix_mark_queue_open", "queue_id", "place", "position", sqlite_where=sa.text("answered_at IS NULL"),
                 postgresql_where=sa.text("answered_at IS NULL")),
        sa.Index("ix_mark_person", "queue_id", "account_id", "answered_at", "id"),
    )  # fmt: skip
    queue_id: int = ref("queue.id", index=False)
    completion_id: int = ref("completion.id")
    place: int = 0
    position: int = 0
    account_id: int | None = ref("account.id", nullable=True)
    lease_until: float | None = None
    scores: dict[str, float] = json_field(factory=dict)  # by principle; "" is the overall score
    is_skipped: bool = False
    seconds: float | None = None
    note: str = long_text(default="")
    answered_at: datetime | None = moment(nullable=True)


class JudgeCard(Row, table=True):
    """What a battery of probes on the project's own pairs found about a judge, and whether it passed."""

    __tablename__ = "judge_card"
    project_id: int = ref("project.id")
    judge_id: int = ref("judge.id")
    constitution_id: int | None = ref("constitution.id", nullable=True)
    pair_set_id: int = ref("pair_set.id")
    protocol: dict[str, Any] = json_field(factory=dict)
    limits: dict[str, float] = json_field(factory=dict)
    lines: list[dict[str, Any]] = json_field(factory=list)  # probe, value, interval, n, limit, whether it passed
    probes: list[dict[str, Any]] = json_field(factory=list)  # examples of what was asked and answered
    is_passed: bool | None = None  # NULL while the run goes on
    n: int = 0
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)
