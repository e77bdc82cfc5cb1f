"""wider constraints: panels, scoring and adjudication queues, more methods, principles with calls of their own

Revision ID: 0002
Revises: 0001
"""

import re
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

WIDER = {
    ("judge", "kind"): ("endpoint", "checkpoint", "reward", "rule", "panel", "imported"),
    ("queue", "kind"): ("audit", "repair", "adjudication", "scoring"),
    ("checkpoint", "method"): (
        "imported", "base", "sft", "reward", "dpo", "simpo", "kto", "ppo", "grpo", "rloo",
    ),
}  # fmt: skip
OPINION = "uq_opinion_verdict_set_id_pair_id_judge_id_is_swapped_sample"
OPINION_KEY = ["verdict_set_id", "pair_id", "judge_id", "is_swapped", "sample", "principle"]


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for (table, column), values in WIDER.items():
            listed = ", ".join(f"'{value}'" for value in values)
            pattern = rf"CHECK \({column} IN \([^)]*\)\)"
            changes = [(pattern, f"CHECK ({column} IN ({listed}))")]
            if table == "queue":
                changes.append((r"verdict_set_id INTEGER NOT NULL", "verdict_set_id INTEGER"))
            rebuild(table, changes)
        rebuild(
            "opinion",
            [
                (rf"{OPINION} (.*)sample\)", r"uq_opinion_reading \1sample, principle)"),
                (r"(\tsample INTEGER NOT NULL, )", r"\1\n\tprinciple VARCHAR(60) DEFAULT '' NOT NULL, "),
            ],
        )
        return
    for (table, column), values in WIDER.items():
        name = op.f(f"ck_{table}_{column}")
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, sa.column(column).in_(values))
    op.alter_column("queue", "verdict_set_id", nullable=True)
    op.add_column("opinion", sa.Column("principle", sa.String(length=60), nullable=False, server_default=""))
    op.drop_constraint(op.f(OPINION), "opinion", type_="unique")
    op.create_unique_constraint("uq_opinion_reading", "opinion", OPINION_KEY)


def rebuild(table: str, changes: list[tuple[str, str]]) -> None:
    """SQLite's way to change a constraint: a new table by the old one's own words, its rows, its name, its indices."""
    connection = op.get_bind()
    query = sa.text("SELECT name, sql FROM sqlite_master WHERE tbl_name = :t AND sql IS NOT NULL")
    words = dict(connection.execute(query, {"t": table}).all())
    made = words.pop(table)
    for pattern, replacement in changes:
        made, n = re.subn(pattern, replacement, made)
        assert n == 1, f"{table}: {pattern} was found {n} times"
    columns = ", ".join(f'"{row[1]}"' for row in connection.exec_driver_sql(f"PRAGMA table_info({table})"))
    made, n = re.subn(rf'^CREATE TABLE "?{table}"?', f"CREATE TABLE {table}_new", made)
    assert n == 1, made
    op.execute(made)
    op.execute(f"INSERT INTO {table}_new ({columns}) SELECT {columns} FROM {table}")
    op.execute(f"DROP TABLE {table}")
    op.execute(f"ALTER TABLE {table}_new RENAME TO {table}")
    for index in words.values():
        op.execute(index)


def downgrade() -> None:
    raise NotImplementedError("rows may hold values the earlier schema refuses: restore a backup instead")
