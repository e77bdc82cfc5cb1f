"""Tables: completions, and the pairs that get judged."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, long_text, moment, one_of, ref


class Completion(Row, table=True):
    """What an arm wrote for a prompt."""

    __table_args__ = (
        sa.UniqueConstraint("run_id", "arm_id", "prompt_id", "sample"),
        sa.Index("ix_completion_arm_prompt", "arm_id", "prompt_id"),
        sa.Index("ix_completion_run", "run_id", "id"),
        sa.Index("ix_completion_stop_reason", "stop_reason", "id"),
    )
    prompt_id: int = ref("prompt.id")
    arm_id: int = ref("arm.id", index=False)
    run_id: int = ref("run.id", index=False)
    sample: int = 0
    text: str = long_text()
    n_tokens: int = 0
    stop_reason: str = one_of("stop_reason", "stop", "length", "imported", "refused", default="stop")
    is_prompt_truncated: bool = False


class PairSet(Row, table=True):
    """A named list of pairs. `labels_version` moves on whenever an override changes a label."""

    __tablename__ = "pair_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    prompt_set_id: int = ref("prompt_set.id")
    n: int = 0
    labels_version: int = 0
    n_overridden: int = 0  # pairs over which an override stands; kept by what makes and withdraws overrides
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class Pair(Row, table=True):
    """Two completions of one prompt, sides a and b until judged."""

    __table_args__ = (
        sa.UniqueConstraint("pair_set_id", "a_id", "b_id"),
        sa.CheckConstraint("a_id <> b_id", name="two_completions"),
        sa.Index("ix_pair_set_position", "pair_set_id", "position"),
        sa.Index("ix_pair_prompt_set", "prompt_id", "pair_set_id"),
    )
    pair_set_id: int = ref("pair_set.id", index=False)
    position: int
    prompt_id: int = ref("prompt.id", index=False)
    a_id: int = ref("completion.id", index=False)
    b_id: int = ref("completion.id", index=False)
