"""The migrations lead to what the models say, on both databases, and the app refuses another schema."""

import pytest
import sqlalchemy as sa
from alembic import command

from app import db
from app.errors import AppError


def test_migrations_and_models_agree(database: str):
    command.check(db._alembic())


def test_every_id_holds_64_bits_and_every_time_its_zone(postgres_database: str):
    with db.engine().connect() as connection:
        query = "SELECT table_name || '.' || column_name, data_type FROM information_schema.columns "
        rows = connection.execute(sa.text(query + "WHERE table_schema = 'public'")).all()
    columns = {name: kind for name, kind in rows if not name.startswith("alembic_version")}
    ids = {name: kind for name, kind in columns.items() if name.endswith((".id", "_id"))}
    assert len(ids) > 30
    assert {name for name, kind in ids.items() if kind != "bigint"} == set()
    assert {name for name, kind in columns.items() if kind == "timestamp without time zone"} == set()


def test_migrations_can_be_run_again_and_change_nothing(database: str):
    before = sa.inspect(db.engine()).get_table_names()
    db.upgrade()
    assert sa.inspect(db.engine()).get_table_names() == before


def test_another_schema_is_refused_with_the_remedy(database: str):
    db.check_schema()
    with db.engine().execution_options(is_write=True).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'ffff'"))
    with pytest.raises(AppError, match="run `preflab db upgrade`"):
        db.check_schema()


def test_foreign_keys_hold_on_both_databases(database: str):
    row = "INSERT INTO login (account_id, kind, token_sha256, label, created_at, expires_at) "
    values = "VALUES (4711, 'token', 'x', '', '2026-01-01', '2026-01-02')"
    with (
        pytest.raises(sa.exc.IntegrityError),
        db.engine().execution_options(is_write=True).begin() as connection,
    ):
        connection.execute(sa.text(row + values))
