"""Tables: prompt sets and prompts."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, long_text, moment, one_of, ref

SPLITS = ("train", "dev", "test", "ood")


class PromptSet(Row, table=True):
    """A named list of prompts. `importing` until every row stands; then `ready`."""

    __tablename__ = "prompt_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    state: str = one_of("state", "importing", "ready", "failed", default="importing")
    n: int = 0
    n_merged: int = 0  # exact duplicates that were merged
    n_rejected: int = 0
    counts: dict[str, int] = json_field(factory=dict)  # prompts by split
    hygiene: dict[str, Any] = json_field(factory=dict)  # near-duplicates, overlap with benchmarks, lengths, categories
    source: str = Field(default="", max_length=500)
    sha256: str = Field(default="", max_length=64)
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class RejectedRow(Row, table=True):
    """A line of an import that could not be used, and why."""

    __tablename__ = "rejected_row"
    run_id: int = ref("run.id")
    line: int
    reason: str = long_text()


class Prompt(Row, table=True):
    """A list of messages (system, earlier turns, the question), and what is known of it."""

    __table_args__ = (
        sa.UniqueConstraint("set_id", "sha256"),
        sa.Index("ix_prompt_set_split", "set_id", "split", "position"),
        sa.Index("ix_prompt_set_position", "set_id", "position"),
        sa.Index("ix_prompt_set_category", "set_id", "category", "position"),
    )
    set_id: int = ref("prompt_set.id", index=False)
    position: int
    messages: list[dict[str, str]] = json_field()
    follow_ups: list[str] = json_field(factory=list)
    reference: str | None = long_text(nullable=True)  # the gold answer, if there is one
    split: str = one_of("split", *SPLITS)
    grp: str = Field(max_length=120)  # paraphrases share it; a group never stands in two splits
    category: str = Field(default="", max_length=120)
    source: str = Field(default="", max_length=300)
    licence: str = Field(default="", max_length=120)
    near_of: int | None = None  # the position of an earlier prompt of the set it nearly equals
    overlaps: str = Field(default="", max_length=200)  # the benchmark whose question it holds
    sha256: str = Field(max_length=64)

    @property
    def text(self) -> str:
        """The last message, which is what a list shows."""
        return self.messages[-1]["content"]
