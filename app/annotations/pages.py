"""Tables of annotation sets: the list, a set's labels one a row, and what one item's labels are."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.annotations.models import Annotation, AnnotationItem, AnnotationSet
from app.db import get
from app.errors import NotFound
from app.projects.access import Member
from app.tables import Column, Filter, Table


def project_annotations(session: Session, member: Member, set_id: int) -> AnnotationSet:
    """An annotation set of this project; raises NotFound."""
    row = get(session, AnnotationSet, set_id)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no annotation set {set_id}.")
    return row


def sets_table(member: Member) -> Table:
    """The project's annotation sets."""
    root = f"/p/{member.project.slug}/annotations"
    columns = [
        Column("id", AnnotationSet.id, "Set", "number", is_shown=False),
        Column("name", AnnotationSet.name, "Name", href=lambda row: f"{root}/{row['id']}"),
        Column("kind", AnnotationSet.kind, "Kind"),
        Column("state", AnnotationSet.state, "State", "badge"),
        Column("n", AnnotationSet.n, "Items", "number"),
        Column("n_labels", AnnotationSet.n_labels, "Labels", "number"),
        Column("n_unreadable", AnnotationSet.n_unreadable, "Unreadable", "number"),
        Column("n_rejected", AnnotationSet.n_rejected, "Refused rows", "number"),
        Column("source", AnnotationSet.source, "Source"),
        Column("licence", AnnotationSet.licence, is_shown=False),
        Column("sha256", AnnotationSet.sha256, is_shown=False),
        Column("created_at", AnnotationSet.created_at, "Imported", "when"),
    ]
    where = [AnnotationSet.project_id == member.project.id, col(AnnotationSet.archived_at).is_(None)]
    return Table("annotation sets", columns, AnnotationSet, AnnotationSet.id, where)


def labels_table(member: Member, row: AnnotationSet) -> Table:
    """A set's labels, one a row."""
    root = f"/p/{member.project.slug}/annotations/{row.id}/items"
    columns: list[Column] = [
        Column("item", AnnotationItem.key, "Item", href=lambda one: f"{root}/{one['item_id']}"),
        Column("category", AnnotationItem.category, "Category"),
        Column("annotator", Annotation.annotator, "Annotator"),
        Column("place", Annotation.place, "Place", "number"),
        Column("label", Annotation.label, "Label", is_shown=row.kind != "score"),
        Column("value", Annotation.value, "Score", "number", is_shown=row.kind == "score"),
        Column("reason", Annotation.reason, "Why unreadable", "long"),
        Column("prompt", AnnotationItem.grp, is_shown=False),
        Column("item_id", AnnotationItem.id, is_shown=False),
    ]
    source = sa.join(Annotation, AnnotationItem, col(AnnotationItem.id) == col(Annotation.item_id))
    names = tuple(row.annotators) if len(row.annotators) <= 30 else ()
    filters = [Filter("annotator", Annotation.annotator, "Annotator", names)]
    if row.kind != "score":
        filters.append(Filter("label", Annotation.label, "Label", (*map(str, row.labels), "unreadable"), _read_label))
    filters.append(Filter("category", AnnotationItem.category, "Category"))
    return Table(
        f"labels-{row.id}", columns, source, Annotation.id, [col(Annotation.set_id) == row.id], filters,
        is_newest_first=False,
    )  # fmt: skip


def _read_label(text: str) -> str | None:
    return None if text == "unreadable" else text


def read_item(session: Session, row: AnnotationSet, item_id: int) -> dict[str, Any]:
    """One item with its texts and everybody's labels; raises NotFound."""
    item = get(session, AnnotationItem, item_id)
    if item.set_id != row.id:
        raise NotFound(f"There is no item {item_id} in this set.")
    said = session.exec(select(Annotation).where(Annotation.item_id == item.id).order_by(col(Annotation.id))).all()
    return {"item": item, "said": said}
