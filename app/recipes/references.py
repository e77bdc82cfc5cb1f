"""A row by its name, in the place of its id: as experiment files and the command line refer to one."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel

from app.constitutions.constitutions import ensure_shipped
from app.errors import Invalid
from app.recipes import recipe_class
from app.runs.recipe import noun_of

MOST_NAMES = 10  # that an error lists


def find_row(session: Session, project_id: int, noun: str, field: str, name: str) -> int:
    """The id of the project's newest `noun` with this name, also given as “@noun:name”; raises Invalid."""
    what = noun.replace("_", " ")
    if name.startswith("@") and ":" in name:
        given = name
        left, _, name = name.removeprefix("@").partition(":")
        if left != noun:
            raise Invalid(f"{field}: “{given}” names a {left.replace('_', ' ')}, but a {what} belongs here.")
    if noun == "constitution":
        ensure_shipped(session, project_id)
    table = SQLModel.metadata.tables[noun]
    of_project = sa.select(table.c.id).where(table.c.project_id == project_id).order_by(table.c.id.desc())
    key = session.execute(of_project.where(table.c.name == name).limit(1)).scalar()
    if key is None:
        raise Invalid(f"{field}: this project has no {what} called “{name}”. {_known(session, project_id, table)}")
    return int(key)


def _known(session: Session, project_id: int, table: sa.Table) -> str:
    newest = sa.select(sa.func.max(table.c.id)).where(table.c.project_id == project_id).group_by(table.c.name)
    names = sa.select(table.c.name).where(table.c.id.in_(newest)).order_by(table.c.id.desc()).limit(MOST_NAMES + 1)
    found = [f"“{name}”" for name in session.execute(names).scalars()]
    if not found:
        return "It has none yet."
    return f"It has: {', '.join(found[:MOST_NAMES])}{' and more' if len(found) > MOST_NAMES else ''}."


def resolve_names(session: Session, project_id: int, values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with ids in the place of names; what is a number already, or no reference, stays as it is."""
    resolved = dict(values)
    for field, described in recipe_class(str(values.get("kind", ""))).model_fields.items():
        noun, value = noun_of(described), values.get(field)
        if noun and value is not None:
            given = value if isinstance(value, list) else [value]
            rows = [
                find_row(session, project_id, noun, field, one) if isinstance(one, str) and not one.isdecimal() else one
                for one in given
            ]
            resolved[field] = rows if isinstance(value, list) else rows[0]
    return resolved
