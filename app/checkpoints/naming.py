"""Names that are unique within a project: a second row of the same name gets a number behind it."""

from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select


def store_named(session: Session, row: SQLModel, wanted: str) -> None:
    """Stores a row whose table is unique by (project_id, name), as “wanted” or the first free “wanted (2)”."""
    named: Any = row
    table: Any = type(row)
    wanted = wanted.strip()[:110]
    for number in range(1, 1000):
        name = wanted if number == 1 else f"{wanted} ({number})"
        taken = select(table.id).where(table.project_id == named.project_id, col(table.name) == name)
        if session.exec(taken).first() is not None:
            continue
        named.name = name
        try:
            with session.begin_nested():  # another run may take the name at this moment
                session.add(row)
        except IntegrityError:
            continue
        return
    raise RuntimeError(f"a thousand rows are called {wanted}")
