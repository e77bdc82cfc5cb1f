"""Tables: runs, what they need, read and made, their metrics and log, and the workers that do them."""

from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlmodel import Field, SQLModel, col

from app.db import Id, Row, json_field, long_text, moment, one_of, ref

QUEUES = ("gpu", "io", "cpu")
LIVE = ("queued", "running")
ENDED = ("done", "failed", "cancelled")
STATES = (*LIVE, *ENDED, "paused", "skipped")  # what a reader is told
SAID = {"failed": "failed", "cancelled": "was cancelled", "paused": "is paused", "skipped": "was skipped"}


class Run(Row, table=True):
    """One piece of work for a worker. The row is the truth; the broker only wakes somebody up."""

    __table_args__ = (
        sa.Index("uq_run_slot_running", "slot", unique=True, sqlite_where=sa.text("status = 'running'"),
                 postgresql_where=sa.text("status = 'running'")),
        sa.Index("ix_run_claim", "status", "queue", "priority", "id"),
    )  # fmt: skip

    project_id: int = ref("project.id")
    kind: str = Field(max_length=40, index=True)
    queue: str = one_of("queue", *QUEUES)
    title: str = Field(default="", max_length=200)
    recipe: dict[str, Any] = json_field()
    recipe_sha256: str = Field(max_length=64, index=True)
    form_key: str | None = Field(default=None, max_length=64, unique=True)
    status: str = one_of("status", *LIVE, *ENDED, default="queued")
    is_cancel_asked: bool = False
    priority: int = 0
    slot: str | None = Field(default=None, max_length=120)
    worker: str | None = Field(default=None, max_length=120)
    attempt: int = 0
    deaths: int = 0
    lease_until: float | None = None
    done: int = 0
    total: int = 0
    counted_from: int = (
        0  # how much was done when this attempt began to count, and when: the rate is reckoned from here
    )
    counted_at: datetime | None = moment(nullable=True)
    note: str = Field(default="", max_length=200)
    error: str | None = long_text(nullable=True)
    code_version: str = Field(default="", max_length=80)
    packages: dict[str, str] = json_field(factory=dict)
    cost: dict[str, float] = json_field(factory=dict)
    account_id: int | None = ref("account.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    started_at: datetime | None = moment(nullable=True)
    ended_at: datetime | None = moment(nullable=True)

    @property
    def spent(self) -> dict[str, float]:
        """What it has cost, by true names: early versions counted the calls of those that write as a judge's."""
        if self.kind not in {"red_team", "revise"} or "judge_calls" not in self.cost:
            return self.cost
        said = {name.replace("judge_", "generation_"): 0.0 for name in self.cost}
        for name, value in self.cost.items():
            said[name.replace("judge_", "generation_")] += value
        return said

    @property
    def is_live(self) -> bool:
        """Queued or running."""
        return self.status in LIVE

    @property
    def is_paused(self) -> bool:
        """It stopped by itself for people to look, and says why; what somebody cancelled says nothing."""
        return self.status == "cancelled" and bool(self.error)

    @property
    def state(self) -> str:
        """The status in a reader's words: what waits for people is paused, what never started for lack of another run
        is skipped."""
        if self.is_paused:
            return "paused"
        return "skipped" if self.status == "failed" and not self.attempt else self.status


# The same, for queries.
RUN_STATE = sa.case(
    (sa.and_(col(Run.status) == "cancelled", sa.func.coalesce(col(Run.error), "") != ""), "paused"),
    (sa.and_(col(Run.status) == "failed", col(Run.attempt) == 0), "skipped"),
    else_=col(Run.status),
)


class RunNeed(SQLModel, table=True):
    """A run that must be done before another starts."""

    __tablename__ = "run_need"
    run_id: int = Field(primary_key=True, foreign_key="run.id", sa_type=cast(Any, Id))
    needs_id: int = Field(primary_key=True, foreign_key="run.id", sa_type=cast(Any, Id), index=True)


class RunIo(Row, table=True):
    """What a run read or made: a noun (a table's name) and the row's id. Lineage is built from these."""

    __tablename__ = "run_io"
    __table_args__ = (
        sa.UniqueConstraint("run_id", "is_output", "noun", "ref_id"),
        sa.Index("ix_run_io_ref", "noun", "ref_id"),
    )
    run_id: int = ref("run.id", index=False)
    is_output: bool
    noun: str = Field(max_length=40)
    ref_id: int = Field(sa_type=cast(Any, Id))
    sha256: str = Field(default="", max_length=64)


class Metric(SQLModel, table=True):
    """One point of a curve. NULL stands for a value that was not finite."""

    run_id: int = Field(primary_key=True, foreign_key="run.id", sa_type=cast(Any, Id))
    name: str = Field(primary_key=True, max_length=60)
    step: int = Field(primary_key=True)
    value: float | None = None
    at: datetime = moment(is_now=True)


class LogLine(Row, table=True):
    """One line of a run's log."""

    __tablename__ = "log_line"
    run_id: int = ref("run.id")
    attempt: int = 0
    at: datetime = moment(is_now=True)
    level: str = one_of("level", "info", "warning", "error", default="info")
    text: str = long_text()


class Sampled(Row, table=True):
    """A fixed prompt sampled during training: the film strip on the run's page."""

    __table_args__ = (sa.UniqueConstraint("run_id", "step", "place"),)
    run_id: int = ref("run.id", index=False)
    step: int
    place: int
    prompt: str = long_text()
    text: str = long_text()
    reward: float | None = None
    detail: dict[str, Any] = json_field(factory=dict)  # the held-out judge, length, repetition, refusal, format


class Worker(Row, table=True):
    """A worker process, as it last reported itself."""

    name: str = Field(max_length=120, unique=True)
    queues: str = Field(max_length=60)
    slots: str = Field(default="", max_length=200)
    device: str = Field(default="", max_length=200)
    started_at: datetime = moment(is_now=True)
    beat_at: float = 0
