"""Tables: frozen preference snapshots."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from app.db import Row, json_field, long_text, moment, one_of, ref


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
    waiver: str = long_text(default="")  # why labels of a judge that failed its card may train all the same
    sha256: str = Field(default="", max_length=64)
    path: str = Field(default="", max_length=1000)  # relative to the data folder
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)


class LogProb(SQLModel, table=True):
    """What frozen weights give a tokenised text: paid once, whatever trains on it how often."""

    __tablename__ = "log_prob"
    weights_sha256: str = Field(primary_key=True, max_length=64)  # base, adapter, tokenizer and number format
    text_sha256: str = Field(primary_key=True, max_length=64)  # token ids, and from where the completion begins
    value: float  # summed over the completion's tokens, nats
    n_tokens: int
