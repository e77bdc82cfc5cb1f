"""Alembic's environment: the app's engine and metadata."""

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString

from app.db import Id, Utc, engine
from app.models import metadata


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Spells our column types in SQLAlchemy's own words, so that a migration stays readable for ever."""
    if kind == "type" and isinstance(item, Id):
        return 'sa.BigInteger().with_variant(sa.Integer(), "sqlite")'
    if kind == "type" and isinstance(item, Utc):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


def hold_foreign_keys(connection: Any, is_held: bool) -> None:
    """SQLite changes a constraint by building the table anew, which foreign keys would not survive meanwhile."""
    if connection.dialect.name == "sqlite":
        connection.rollback()
        connection.connection.dbapi_connection.execute(f"PRAGMA foreign_keys={'ON' if is_held else 'OFF'}")


with engine().execution_options(is_write=True).connect() as connection:
    hold_foreign_keys(connection, False)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        hold_foreign_keys(connection, True)
