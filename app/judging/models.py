"""Tables: judges; calls (paid facts), opinions (readings) and verdicts (what they add up to)."""

from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from app.db import Id, Row, json_field, long_text, moment, one_of, ref

OUTCOMES = ("a", "b", "tie")


class Judge(Row, table=True):
    """Who labels: an endpoint, a local checkpoint, a reward model, a rule, a panel of those, or an imported file.

    A panel's settings name its members and how their votes count; each opinion names the member who gave it.
    """

    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    kind: str = one_of("kind", "endpoint", "checkpoint", "reward", "rule", "panel", "imported")
    endpoint_id: int | None = ref("endpoint.id", nullable=True)
    checkpoint_id: int | None = ref("checkpoint.id", nullable=True)
    settings: dict[str, Any] = json_field(factory=dict)
    is_oracle: bool = False  # reads gold answers
    frozen_at: datetime | None = moment(nullable=True)
    created_at: datetime = moment(is_now=True)


class VerdictSet(Row, table=True):
    """One judging of a pair set."""

    __tablename__ = "verdict_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    pair_set_id: int = ref("pair_set.id")
    judge_id: int = ref("judge.id")
    constitution_id: int | None = ref("constitution.id", nullable=True)
    protocol: dict[str, Any] = json_field(factory=dict)
    parent_id: int | None = ref("verdict_set.id", nullable=True)  # re-aggregated from these opinions, not re-judged
    weights: dict[str, float] = json_field(factory=dict)  # of the principles, where they are not the constitution's
    run_id: int | None = ref("run.id", nullable=True)
    n_a: int = 0
    n_b: int = 0
    n_tie: int = 0
    n_null: int = 0
    n_flip: int = 0
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)

    @property
    def n(self) -> int:
        """Verdicts so far, unreadable ones included."""
        return self.n_a + self.n_b + self.n_tie + self.n_null


class Call(Row, table=True):
    """A paid fact: one request to an endpoint, keyed by its hash. `unknown` = sent, and nobody saw the answer."""

    __table_args__ = (sa.UniqueConstraint("project_id", "request_sha256", "sample"),)
    project_id: int = ref("project.id", index=False)
    run_id: int = ref("run.id")
    request_sha256: str = Field(max_length=64)
    sample: int = 0
    state: str = one_of("state", "intent", "answered", "failed", "unknown", default="intent")
    tries: int = 0
    failure: str = Field(default="", max_length=300)
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0
    sent_at: datetime = moment(is_now=True)
    answered_at: datetime | None = moment(nullable=True)


class CallText(SQLModel, table=True):
    """A call's request and raw answer, apart from the table that is scanned."""

    __tablename__ = "call_text"
    call_id: int = Field(primary_key=True, foreign_key="call.id", sa_type=cast(Any, Id))
    request: dict[str, Any] = json_field()
    raw: str = long_text(default="")


class Opinion(Row, table=True):
    """One reading of one pair by one judge in one order, in the pair's own frame."""

    __table_args__ = (
        sa.UniqueConstraint(
            "verdict_set_id", "pair_id", "judge_id", "is_swapped", "sample", "principle", name="uq_opinion_reading"
        ),
        sa.CheckConstraint("choice IS NOT NULL OR reason <> ''", name="choice_or_reason"),
    )
    verdict_set_id: int = ref("verdict_set.id", index=False)
    pair_id: int = ref("pair.id")
    judge_id: int = ref("judge.id", index=False)
    is_swapped: bool = False
    sample: int = 0
    principle: str = Field(default="", max_length=60)  # its key where each principle has a call of its own
    call_id: int | None = ref("call.id", nullable=True, index=False)
    choice: str | None = one_of("choice", *OUTCOMES, nullable=True)
    p_a: float | None = None
    by_principle: dict[str, str] = json_field(factory=dict)
    reason: str = long_text(default="")


class Verdict(Row, table=True):
    """What the opinions on a pair add up to. NULL with a reason when they cannot be read."""

    __table_args__ = (
        sa.UniqueConstraint("verdict_set_id", "pair_id"),
        sa.CheckConstraint("outcome IS NOT NULL OR reason <> ''", name="outcome_or_reason"),
        # Lists are filtered by outcome and flip and sorted by need or p_a: each index ends with what the others ask
        # for, so that a filter which few rows pass is tested within the index.
        sa.Index("ix_verdict_need", "verdict_set_id", "need", "pair_id", "outcome", "is_flip"),
        sa.Index("ix_verdict_p_a", "verdict_set_id", "p_a", "pair_id", "outcome", "is_flip"),
        sa.Index("ix_verdict_outcome", "verdict_set_id", "outcome", "pair_id", "is_flip"),
        sa.Index("ix_verdict_flip", "verdict_set_id", "is_flip", "pair_id", "outcome"),
    )
    verdict_set_id: int = ref("verdict_set.id", index=False)
    pair_id: int = ref("pair.id")
    outcome: str | None = one_of("outcome", *OUTCOMES, nullable=True)
    reason: str = long_text(default="")
    p_a: float | None = None
    by_principle: dict[str, str] = json_field(factory=dict)  # key → a, b or tie
    votes: dict[str, Any] = json_field(factory=dict)  # how often a, b, tie, unreadable; of panels also by judge
    is_flip: bool = False  # the two orders disagree
    need: float = 0  # how much a person should look at it, 0 to 1


class RatingSet(Row, table=True):
    """One scoring of single completions, 1 to 10 by each principle."""

    __tablename__ = "rating_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    judge_id: int = ref("judge.id")
    constitution_id: int | None = ref("constitution.id", nullable=True)
    pair_set_id: int | None = ref("pair_set.id", nullable=True)  # both sides of its pairs are scored
    prompt_set_id: int | None = ref("prompt_set.id", nullable=True)
    arm_id: int | None = ref("arm.id", nullable=True)  # or what this arm wrote for the prompt set
    protocol: dict[str, Any] = json_field(factory=dict)
    run_id: int | None = ref("run.id", nullable=True)
    n: int = 0  # completions with a score or the reason for none
    n_null: int = 0
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class Rating(Row, table=True):
    """A judge's score of one completion, overall (principle empty) or by one principle. NULL with a reason."""

    __table_args__ = (
        sa.UniqueConstraint("rating_set_id", "completion_id", "judge_id", "principle", "sample"),
        sa.CheckConstraint("value IS NOT NULL OR reason <> ''", name="value_or_reason"),
    )
    rating_set_id: int = ref("rating_set.id", index=False)
    completion_id: int = ref("completion.id")
    judge_id: int = ref("judge.id", index=False)
    principle: str = Field(default="", max_length=60)
    sample: int = 0
    call_id: int | None = ref("call.id", nullable=True, index=False)
    value: float | None = None
    reason: str = long_text(default="")
