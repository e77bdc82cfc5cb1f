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


# What a folder of version 0.1's first schema holds, in the tables that are built anew
FIRST_ROWS = (
    "INSERT INTO project (id, slug, name, created_at) VALUES (1, 'p', 'P', '2026-01-01')",
    "INSERT INTO run (id, project_id, kind, queue, title, recipe, recipe_sha256, status, is_cancel_asked, priority,"
    " attempt, deaths, done, total, counted_from, note, code_version, packages, cost, created_at) VALUES (1, 1,"
    " 'generate', 'gpu', '', '{}', 'x', 'done', false, 0, 1, 0, 0, 0, 0, '', '', '{}', '{}', '2026-01-01')",
    "INSERT INTO prompt_set (id, project_id, name, state, n, n_merged, n_rejected, counts, source, sha256, created_at)"
    " VALUES (1, 1, 's', 'ready', 1, 0, 0, '{}', '', '', '2026-01-01')",
    "INSERT INTO prompt (id, set_id, position, messages, follow_ups, split, grp, category, source, licence, sha256)"
    " VALUES (1, 1, 0, '[]', '[]', 'train', 'g', '', '', '', 'x')",
    "INSERT INTO arm (id, project_id, name, kind, method, preamble, decoding, seed, sha256, created_at)"
    " VALUES (1, 1, 'a', 'imported', 'imported', '[]', '{}', 0, 'x', '2026-01-01')",
    "INSERT INTO completion (id, prompt_id, arm_id, run_id, sample, text, n_tokens, stop_reason, is_prompt_truncated)"
    " VALUES (1, 1, 1, 1, 0, 'x', 1, 'stop', false), (2, 1, 1, 1, 1, 'y', 1, 'stop', false)",
    "INSERT INTO pair_set (id, project_id, name, prompt_set_id, n, labels_version, created_at)"
    " VALUES (1, 1, 's', 1, 1, 0, '2026-01-01')",
    "INSERT INTO pair (id, pair_set_id, position, prompt_id, a_id, b_id) VALUES (1, 1, 0, 1, 1, 2)",
    "INSERT INTO judge (id, project_id, name, kind, settings, is_oracle, created_at)"
    " VALUES (1, 1, 'j', 'rule', '{}', false, '2026-01-01')",
    "INSERT INTO verdict_set (id, project_id, name, pair_set_id, judge_id, protocol, n_a, n_b, n_tie, n_null, n_flip,"
    " created_at) VALUES (1, 1, 'v', 1, 1, '{}', 1, 0, 0, 0, 0, '2026-01-01')",
    "INSERT INTO opinion (id, verdict_set_id, pair_id, judge_id, is_swapped, sample, choice, by_principle, reason)"
    " VALUES (1, 1, 1, 1, false, 0, 'a', '{}', '')",
    "INSERT INTO verdict (id, verdict_set_id, pair_id, outcome, reason, is_flip, need)"
    " VALUES (1, 1, 1, 'a', '', false, 0)",
    "INSERT INTO queue (id, project_id, name, verdict_set_id, kind, seed, n, overlap, created_at)"
    " VALUES (1, 1, 'q', 1, 'audit', 0, 1, 1, '2026-01-01')",
    "INSERT INTO answer (id, queue_id, pair_id, place, position, is_swapped, note) VALUES (1, 1, 1, 0, 0, false, '')",
    "INSERT INTO checkpoint (id, project_id, name, role, weights, method, step, source, revision, path,"
    " manifest_sha256, n_parameters, seed, facts, created_at)"
    " VALUES (1, 1, 'c', 'policy', 'full', 'dpo', 0, '', '', '', '', 0, 0, '{}',"
    " '2026-01-01')",
)


def test_rows_of_the_first_schema_survive_and_its_constraints_still_hold(database: str):
    with db.engine().execution_options(is_write=True).begin() as connection:
        if connection.dialect.name == "sqlite":
            for (name,) in connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")).all():
                connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{name}"')
        else:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    command.upgrade(db._alembic(), "0001")
    with db.engine().execution_options(is_write=True).begin() as connection:
        for row in FIRST_ROWS:
            connection.exec_driver_sql(row)
    db.upgrade()
    command.check(db._alembic())
    with db.engine().connect() as connection:
        for statement in FIRST_ROWS:
            table = statement.split()[2]
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table} WHERE id = 1").scalar() == 1, table
        assert connection.exec_driver_sql("SELECT principle, choice FROM opinion").one() == ("", "a")
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    for bad in (
        "UPDATE judge SET kind = 'oracle'",
        "UPDATE queue SET kind = 'other'",
        "UPDATE checkpoint SET method = 'other'",
        "UPDATE opinion SET choice = NULL",
        "UPDATE answer SET queue_id = 4711",
        "UPDATE queue SET rating_set_id = 4711",
    ):
        with (
            pytest.raises(sa.exc.IntegrityError),
            db.engine().execution_options(is_write=True).begin() as connection,
        ):
            connection.exec_driver_sql(bad)
    with db.engine().execution_options(is_write=True).begin() as connection:
        connection.exec_driver_sql("UPDATE judge SET kind = 'panel'")
        connection.exec_driver_sql("UPDATE queue SET kind = 'scoring', verdict_set_id = NULL")
        connection.exec_driver_sql("UPDATE checkpoint SET method = 'simpo'")
