"""Tables: imported annotations. What several annotators, people or judges, said about the same items."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, long_text, moment, one_of, ref

KINDS = ("pairwise3", "pairwise5", "categorical", "score")


class AnnotationSet(Row, table=True):
    """One imported set of annotations. Its labels are named as what they are: somebody else's."""

    __tablename__ = "annotation_set"
    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    kind: str = one_of("kind", *KINDS)
    labels: list[Any] = json_field(factory=list)  # the labels there are, in their order
    annotators: dict[str, Any] = json_field(factory=dict)  # name → {"is_person": bool, "n": labels}
    n: int = 0  # items
    n_labels: int = 0
    n_unreadable: int = 0
    n_rejected: int = 0
    source: str = Field(default="", max_length=500)
    licence: str = Field(default="", max_length=120)
    sha256: str = Field(default="", max_length=64)
    state: str = one_of("state", "importing", "ready", default="importing")
    run_id: int | None = ref("run.id", nullable=True)
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class AnnotationItem(Row, table=True):
    """What was labelled: a pair, or a single completion."""

    __tablename__ = "annotation_item"
    __table_args__ = (
        sa.UniqueConstraint("set_id", "key"),
        sa.Index("ix_annotation_item_position", "set_id", "position"),
    )
    set_id: int = ref("annotation_set.id", index=False)
    position: int
    key: str = Field(max_length=200)
    grp: str = Field(max_length=200)  # the prompt: intervals resample whole prompts
    category: str = Field(default="", max_length=120)
    texts: dict[str, Any] = json_field(factory=dict)  # messages, a, b or completion, where the file has them


class Annotation(Row, table=True):
    """One label by one annotator. NULL with a reason where what they wrote is no label."""

    __table_args__ = (
        sa.UniqueConstraint("item_id", "annotator", "place"),
        sa.CheckConstraint("label IS NOT NULL OR value IS NOT NULL OR reason <> ''", name="label_or_reason"),
    )
    set_id: int = ref("annotation_set.id")
    item_id: int = ref("annotation_item.id", index=False)
    annotator: str = Field(max_length=120)
    place: int = 0  # who labels one item twice has places 0, 1, …
    label: str | None = Field(default=None, max_length=120)
    value: float | None = None  # the number, where the kind is score
    reason: str = long_text(default="")
