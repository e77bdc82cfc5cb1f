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


def downgrade() -> None:
    raise NotImplementedError("an earlier version knows none of these rows: restore a backup instead")
