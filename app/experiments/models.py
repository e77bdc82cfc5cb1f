"""Tables: experiments and their steps."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, Session, col

from app.db import Row, json_field, long_text, moment, one_of, ref
from app.runs.models import LIVE, RUN_STATE, Run


class Experiment(Row, table=True):
    """An experiment file as it was when launched."""

    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    question: str = long_text(default="")
    file: str = long_text()
    sha256: str = Field(max_length=64)
    scale: str = Field(default="tiny", max_length=24)
    seeds: list[int] = json_field(factory=list)
    variables: dict[str, str] = json_field(factory=dict)  # what the file's {names} stood for
    form_key: str | None = Field(default=None, max_length=64, unique=True)
    status: str = one_of("status", "running", "done", "failed", "cancelled", default="running")
    created_at: datetime = moment(is_now=True)
    ended_at: datetime | None = moment(nullable=True)
    account_id: int | None = ref("account.id", nullable=True)


class Step(Row, table=True):
    """One step of one seed (seed 0: shared by all seeds). Its recipe may point at other steps as "@name".

    `failed` says that its own run did not come to its end, `skipped` that it never began, for lack of a step that it
    needs or since the experiment was cancelled. Its run is launched once the steps it needs are done.
    """

    __table_args__ = (sa.UniqueConstraint("experiment_id", "name", "seed"),)
    experiment_id: int = ref("experiment.id", index=False)
    name: str = Field(max_length=80)
    position: int
    arm: str = Field(default="", max_length=80)
    seed: int = 0
    recipe: dict[str, Any] = json_field()
    needs: list[str] = json_field(factory=list)
    run_id: int | None = ref("run.id", nullable=True)
    is_reused: bool = False
    status: str = one_of("status", "waiting", "launched", "done", "failed", "skipped", default="waiting")
    error: str = long_text(default="")

    def state(self, run: Run | None) -> str:
        """The status in a reader's words: while its run goes on, the run's; and what was cancelled has not failed."""
        if self.status == "launched" and run is not None:
            return "cancelling" if run.is_cancel_asked and run.status == "running" else run.state
        if self.status == "failed" and run is not None and run.status == "cancelled":
            return run.state
        return self.status


def _has_run(*where: Any) -> Any:
    of = sa.select(col(Step.id)).join(Run, col(Run.id) == col(Step.run_id)).where(*where)
    return of.where(col(Step.experiment_id) == col(Experiment.id), col(Step.status) == "launched").exists()


STATES = ("running", "paused", "done", "failed", "cancelled")
# An experiment's status in a reader's words, for queries: where all that is open waits for a paused run, it is paused.
EXPERIMENT_STATE = sa.case(
    (
        sa.and_(
            col(Experiment.status) == "running", _has_run(RUN_STATE == "paused"), ~_has_run(col(Run.status).in_(LIVE))
        ),
        "paused",
    ),
    else_=col(Experiment.status),
)


def state_of(session: Session, experiment: Experiment) -> str:
    """An experiment's status in a reader's words."""
    return str(session.execute(sa.select(EXPERIMENT_STATE).where(col(Experiment.id) == experiment.id)).scalar_one())
