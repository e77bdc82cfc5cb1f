"""training: rounds, sweeps, towers"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "login_failure",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failure")),
    )
    op.create_index("ix_login_failure_key_sha256_at", "login_failure", ["key_sha256", "at"], unique=False)
    op.create_index("ix_login_failure_at", "login_failure", ["at"], unique=False)
    hold_revisions()
    for table, answered in (("answer", "first"), ("mark", "answered_at")):
        is_open = sa.text(f"{answered} IS NULL")
        op.drop_index(f"ix_{table}_queue_open", table)
        op.create_index(
            f"ix_{table}_queue_open", table, ["queue_id", "place", "position"], sqlite_where=is_open,
            postgresql_where=is_open,
        )  # fmt: skip


def hold_revisions() -> None:
    """Who is looking at a revision, and until when."""
    if op.get_bind().dialect.name == "sqlite":  # a column with its reference; a batch would rebuild the table
        op.execute(
            "ALTER TABLE revision ADD COLUMN holder_id INTEGER "
            "CONSTRAINT fk_revision_holder_id REFERENCES account (id)"
        )  # fmt: skip
    else:
        op.add_column("revision", sa.Column("holder_id", sa.BigInteger(), nullable=True))
        op.create_foreign_key("fk_revision_holder_id", "revision", "account", ["holder_id"], ["id"])
    op.add_column("revision", sa.Column("lease_until", sa.Float(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("an earlier version knows none of these rows: restore a backup instead")
