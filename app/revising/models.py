"""Tables: revisions. A completion, what a critique said of it, and the completion that was written in its stead."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, long_text, moment, one_of, ref


class RevisionSet(Row, table=True):
    """One round of critique and revision (Constitutional AI, arXiv 2212.08073, section 3.1)."""

    __tablename__ = "revision_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    prompt_set_id: int = ref("prompt_set.id")
    constitution_id: int = ref("constitution.id")
    original_arm_id: int | None = ref("arm.id", nullable=True)  # who wrote the originals
    arm_id: int | None = ref("arm.id", nullable=True)  # under which the revisions stand
    settings: dict[str, Any] = json_field(factory=dict)
    n: int = 0
    n_accepted: int = 0
    n_rejected: int = 0
    pair_set_id: int | None = ref("pair_set.id", nullable=True)  # (original, revised), once handed over
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class Revision(Row, table=True):
    """One completion revised: the steps are kept, a person accepts or rejects the result."""

    __table_args__ = (
        sa.UniqueConstraint("set_id", "original_id"),
        sa.CheckConstraint("revised_id IS NOT NULL OR reason <> ''", name="revised_or_reason"),
    )
    set_id: int = ref("revision_set.id", index=False)
    position: int
    prompt_id: int = ref("prompt.id")
    original_id: int = ref("completion.id", index=False)
    revised_id: int | None = ref("completion.id", nullable=True, index=False)
    steps: list[dict[str, Any]] = json_field(factory=list)  # principle, critique, revision, in order
    reason: str = long_text(default="")  # why there is no revision
    state: str = one_of("state", "proposed", "accepted", "rejected", default="proposed")
    account_id: int | None = ref("account.id", nullable=True)
    note: str = long_text(default="")
    decided_at: datetime | None = moment(nullable=True)
    holder_id: int | None = ref("account.id", nullable=True, index=False)  # who is looking at it, until
    lease_until: float | None = None
