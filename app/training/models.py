"""Tables: frozen preference snapshots."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from app.db import Row, json_field, moment, one_of, ref


class Snapshot(Row, table=True):
    """A hashed file of TRL's prompt/chosen/rejected rows. Stale once the pair set's labels have moved on."""

    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    pair_set_id: int = ref("pair_set.id")
    verdict_set_id: int = ref("verdict_set.id")
    labels_version: int
    state: str = one_of("state", "writing", "ready", default="writing")
    n_train: int = 0
    n_dev: int = 0
    counts: dict[str, Any] = json_field(factory=dict)  # ties, both bad, unreadable, overridden
    sha256: str = Field(default="", max_length=64)
    path: str = Field(default="", max_length=1000)  # relative to the data folder
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
