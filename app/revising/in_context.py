"""Alignment in context: a constitution as the system message, accepted revisions as demonstrations, nothing trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator
from sqlmodel import Session, col, select
from starlette.datastructures import FormData, QueryParams

from app.checkpoints.models import Arm, Checkpoint
from app.constitutions.constitutions import read_principles
from app.constitutions.models import Constitution
from app.db import get
from app.errors import NotFound, invalid
from app.html import FormField, read_form, recipe_form
from app.revising.in_context_arm import as_system_message, build_in_context_arm
from app.revising.recipes import InContextFields
from app.runs.queue import check_reference
from app.runs.recipe import check_text, noun_of


class InContextForm(InContextFields):
    """The form on a constitution's page."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_storable(cls, values: Any) -> Any:
        check_text(values)
        return values


@dataclass
class InContext:
    """What the page shows."""

    constitution: Constitution
    system: str
    fields: list[FormField]
    general: list[str] = field(default_factory=list)


def read_in_context(
    session: Session, project_id: int, key: int, values: QueryParams | FormData,
    errors: Mapping[str, list[str]] | None = None,
) -> InContext:  # fmt: skip
    """The page of one constitution; raises NotFound."""
    constitution = _constitution(session, project_id, key)
    given = read_form(InContextForm, FormData(list(values.multi_items())))
    if not errors and not given.get("checkpoint") and not given.get("endpoint"):
        base = select(Checkpoint.id).where(
            Checkpoint.project_id == project_id, Checkpoint.method == "base", Checkpoint.role == "policy",
            col(Checkpoint.archived_at).is_(None),
        )  # fmt: skip
        given["checkpoint"] = session.exec(base.order_by(col(Checkpoint.id).desc()).limit(1)).first()
    fields = recipe_form(session, InContextForm, project_id, given, errors)
    known = {one.name for one in fields}
    general = [message for name, said in (errors or {}).items() if name not in known for message in said]
    return InContext(constitution, as_system_message(constitution, read_principles(session, key)), fields, general)


def make_in_context_arm(session: Session, project_id: int, key: int, form: FormData) -> Arm:
    """The arm that a form describes; the same form twice is the same arm. Raises Invalid or NotFound."""
    constitution = _constitution(session, project_id, key)
    try:
        wanted = InContextForm.model_validate(read_form(InContextForm, form))
    except ValidationError as error:
        raise invalid(error) from error
    for name, info in InContextForm.model_fields.items():
        value = getattr(wanted, name)
        if noun_of(info) and value is not None:
            check_reference(session, noun_of(info), value, project_id)
    return build_in_context_arm(session, project_id, constitution, wanted)


def _constitution(session: Session, project_id: int, key: int) -> Constitution:
    row = get(session, Constitution, key)
    if row.project_id != project_id:
        raise NotFound(f"There is no constitution {key}.")
    return row
