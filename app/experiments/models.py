"""Tables: experiments and their steps."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, long_text, moment, one_of, ref


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

    `failed` is this step's own failure, `skipped` says that a step it needs failed. Its run is launched once the steps
    it needs are done.
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
