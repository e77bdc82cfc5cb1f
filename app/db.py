"""Engines, the only commit, and the column types every table uses."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import sqlalchemy as sa
from fastapi import Depends, Request
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel

from app.config import settings
from app.errors import AppError, NotFound

log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=SQLModel)
MAX_ID = 2**63 - 1
ROOT = Path(__file__).resolve().parent.parent

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Id(sa.types.TypeDecorator[int]):
    """A 64-bit integer key; SQLite counts its own up only when the column is spelled INTEGER."""

    impl = sa.BigInteger
    cache_ok = True
    python_type = int

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return sa.Integer() if dialect.name == "sqlite" else sa.BigInteger()


class Utc(sa.types.TypeDecorator[datetime]):
    """An instant, always aware and in UTC, also on SQLite which stores no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True
    python_type = datetime

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """This moment in UTC."""
    return datetime.now(UTC)


class Row(SQLModel):
    """What every table with a number of its own begins with."""

    id: int = Field(default=None, primary_key=True, sa_type=Id)


def ref(target: str, *, nullable: bool = False, index: bool = True) -> Any:
    """A foreign key to `table.id`."""
    return Field(
        default=None if nullable else ...,
        sa_type=cast(Any, Id),
        foreign_key=target,
        nullable=nullable,
        index=index,
    )


def one_of(name: str, *values: str, default: Any = ..., nullable: bool = False) -> Any:
    """A string column held to `values` by a CHECK (native enums cannot be changed in place)."""
    kind = sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=24)
    if nullable and default is ...:
        default = None
    return Field(default=default, sa_type=cast(Any, kind), nullable=nullable)


def json_field(*, nullable: bool = False, factory: Callable[[], Any] | None = None) -> Any:
    """A JSON column."""
    if factory is not None:
        return Field(default_factory=factory, sa_type=cast(Any, sa.JSON), nullable=nullable)
    return Field(default=None if nullable else ..., sa_type=cast(Any, sa.JSON), nullable=nullable)


def moment(*, nullable: bool = False, is_now: bool = False) -> Any:
    """A UTC instant."""
    if is_now:
        return Field(default_factory=now, sa_type=cast(Any, Utc), nullable=nullable)
    return Field(default=None if nullable else ..., sa_type=cast(Any, Utc), nullable=nullable)


def long_text(*, nullable: bool = False, default: Any = ...) -> Any:
    """A text column without a length limit."""
    return Field(default=None if nullable else default, sa_type=cast(Any, sa.Text), nullable=nullable)


def clean_text(text: str) -> str:
    """Text that every database stores: NUL and lone surrogates become the replacement character."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def make_engine(url: str) -> sa.Engine:
    """An engine whose SQLite connections begin explicitly: IMMEDIATE for writers, plain for readers."""
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN loses updates
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "before_cursor_execute")
    def _refuse_nul(_connection: Any, _cursor: Any, statement: str, given: Any, _context: Any, is_many: bool) -> None:
        # rows inserted at once with RETURNING come as one flat tuple, and still count as many
        rows = given if is_many and isinstance(next(iter(given), None), tuple | list) else [given]
        for values in rows:  # plain loops: an import comes by here with thirty million values
            for one in values:
                if isinstance(one, str) and "\x00" in one:  # as Postgres does
                    raise sa.exc.DataError(statement, given, ValueError("a text holds a NUL character"))

    # Writers of one process that meet at SQLite's own lock sleep and look again, up to a tenth of a second each time;
    # here they queue instead. Other processes are still met there, and waiting longer than it would wait is no better.
    writers = threading.Lock()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        is_write = connection.get_execution_options().get("is_write", False)
        if is_write and writers.acquire(timeout=30):
            connection.info["has_turn"] = True
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
        except BaseException:
            _end(connection)
            raise

    @event.listens_for(engine, "commit")
    @event.listens_for(engine, "rollback")
    def _end(connection: sa.Connection) -> None:
        if connection.info.pop("has_turn", False):
            writers.release()

    return engine


@cache
def engine() -> sa.Engine:
    """The process's engine for reads."""
    url = settings().database
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return make_engine(url)


@contextmanager
def reading() -> Iterator[Session]:
    """A session that sees one state of the database and stores nothing."""
    with Session(engine(), autoflush=False, expire_on_commit=False) as session:
        try:
            yield session
        finally:
            session.expunge_all()  # what was read stays readable: a rollback would empty it
            session.rollback()


@contextmanager
def transaction() -> Iterator[Session]:
    """A session committed as a whole at the end, or not at all; then what waited for the commit is sent."""
    with Session(engine().execution_options(is_write=True), expire_on_commit=False) as session:
        try:
            yield session
        except BaseException:
            session.expunge_all()  # an error page still names who is signed in
            raise
        session.commit()
    for send in session.info.get("after_commit", []):
        try:
            send()
        except OSError:
            log.warning("a wake-up was not sent; the ticker will repair it", exc_info=True)


def after_commit(session: Session, send: Callable[[], None]) -> None:
    """Calls `send` once the transaction has been committed, never before."""
    session.info.setdefault("after_commit", []).append(send)


def request_session(request: Request) -> Iterator[Session]:
    """The request's session: reads roll back, writes commit before the answer leaves."""
    with reading() if request.method in {"GET", "HEAD"} else transaction() as session:
        yield session


# With the default scope the client can get 200 before its commit fails.
Db = Annotated[Session, Depends(request_session, scope="function")]


def table_of(kind: Any) -> sa.Table:
    """A model's table, for statements that go past the mapper."""
    table: sa.Table = kind.metadata.tables[str(kind.__tablename__)]
    return table


EMPTY_JSON: dict[type, str] = {dict: "{}", list: "[]"}  # what most cells hold, so that most need no encoder


def insert_plain(session: Session, kind: type[SQLModel], rows: list[dict[str, Any]]) -> None:
    """Rows that all give the same columns; no object is made of a row, and no default filled in.

    On SQLite the driver itself stores them: SQLAlchemy's handling of a million rows takes as long as storing them.
    """
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        connection.execute(sa.insert(kind), rows)
        return
    columns = table_of(kind).c
    names = list(rows[0])
    by_column: list[Any] = list(zip(*(row.values() for row in rows), strict=True))
    for place, name in enumerate(names):
        if isinstance(columns[name].type, sa.JSON):
            by_column[place] = [
                (not value and EMPTY_JSON.get(type(value))) or json.dumps(value) for value in by_column[place]
            ]
    marks = ", ".join("?" * len(names))
    listed = ", ".join(f'"{name}"' for name in names)
    insert = f'INSERT INTO "{kind.__tablename__}" ({listed}) VALUES ({marks})'
    connection.exec_driver_sql(insert, list(zip(*by_column, strict=True)))


def db_now(session: Session) -> float:
    """Seconds since 1970 on the database's clock, the only clock that leases use."""
    sqlite = "SELECT (julianday('now')-2440587.5)*86400.0"
    postgres = "SELECT extract(epoch from clock_timestamp())"
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return float(session.execute(sa.text(sqlite if is_sqlite else postgres)).scalar_one())


def get(session: Session, kind: type[RowT], key: int) -> RowT:
    """The row with this id; raises NotFound."""
    row = session.get(kind, key) if 0 < key <= MAX_ID else None
    if row is None:
        raise NotFound(f"There is no {kind.__tablename__} {key}.")
    return row


def _alembic() -> Any:
    from alembic.config import Config

    config = Config(toml_file=str(ROOT / "pyproject.toml"))
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def upgrade() -> None:
    """Brings the database's schema to this version."""
    from alembic import command

    engine()
    command.upgrade(_alembic(), "head")


def check_schema() -> None:
    """Raises AppError unless the database's schema is the one this code knows."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with engine().connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory.from_config(_alembic()).get_current_head()
    if found != wanted:
        raise AppError(
            f"The database's schema is {found or 'empty'}, this version needs {wanted}: run `preflab db upgrade`."
        )
