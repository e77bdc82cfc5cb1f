"""Statements for the few places that say the same hundreds of times a minute: compiled once, then the driver's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session


class Prepared:
    """A statement for one database, each of `columns` a bound value of it.

    SQLAlchemy looks at a statement anew each time it is executed, which takes several times as long as storing a row.
    Here its compiler and its types' conversions are used, and the rest is left out.
    """

    def __init__(self, statement: Any, columns: Sequence[str], dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        self.text = str(compiled)
        self._order = compiled.positiontup  # None where values go by name
        self._convert = {
            name: bound.type.dialect_impl(dialect).bind_processor(dialect) or _as_it_is
            for name, bound in compiled.binds.items()
        }
        self._fixed = {
            name: self._convert[name](value) for name, value in compiled.params.items() if name not in columns
        }

    def run(self, session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes it once for each row, all of them in one call of the driver."""
        if rows:
            session.connection().exec_driver_sql(self.text, [self._given(row) for row in rows])

    def read(self, session: Session, row: Mapping[str, Any]) -> Sequence[Any]:
        """Executes it once; what it returns, as the driver gives it."""
        return session.connection().exec_driver_sql(self.text, self._given(row)).all()

    def _given(self, row: Mapping[str, Any]) -> Any:
        given = {**self._fixed, **{name: self._convert[name](value) for name, value in row.items()}}
        return given if self._order is None else tuple(given[name] for name in self._order)


def _as_it_is(value: Any) -> Any:
    return value
