"""tallies: how much each person has done in a queue, so that no page counts their answers"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# what is stored already, counted once
FILL = (
    "INSERT INTO tally (queue_id, account_id, n, n_skipped) "
    "SELECT queue_id, account_id, count(*), sum(CASE WHEN first = 'skip' THEN 1 ELSE 0 END) FROM answer "
    "WHERE answered_at IS NOT NULL AND account_id IS NOT NULL GROUP BY queue_id, account_id",
    "INSERT INTO tally (queue_id, account_id, n, n_skipped) "
    "SELECT queue_id, account_id, count(*), sum(CASE WHEN is_skipped THEN 1 ELSE 0 END) FROM mark "
    "WHERE answered_at IS NOT NULL AND account_id IS NOT NULL GROUP BY queue_id, account_id",
)


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "tally",
        sa.Column("queue_id", number, nullable=False),
        sa.Column("account_id", number, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("n_skipped", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["queue_id"], ["queue.id"], name=op.f("fk_tally_queue_id")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_tally_account_id")),
        sa.PrimaryKeyConstraint("queue_id", "account_id", name=op.f("pk_tally")),
    )
    op.create_index(op.f("ix_tally_account_id"), "tally", ["account_id"], unique=False)
    for statement in FILL:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("an earlier version knows none of these rows: restore a backup instead")
