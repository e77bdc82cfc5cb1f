"""Tables: accounts and their logins."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, moment, one_of, ref

ROLES = ("viewer", "grader", "researcher", "owner")


class Account(Row, table=True):
    """A person (or, in tests only, a simulated one)."""

    name: str = Field(max_length=80, unique=True)
    password_hash: str | None = Field(default=None, max_length=200)
    is_simulated: bool = False
    created_at: datetime = moment(is_now=True)


class Login(Row, table=True):
    """A session cookie, an API token or a one-time link; only the hash of its secret is stored."""

    account_id: int = ref("account.id")
    kind: str = one_of("kind", "session", "token", "link")
    token_sha256: str = Field(max_length=64, unique=True)
    label: str = Field(default="", max_length=120)
    created_at: datetime = moment(is_now=True)
    expires_at: datetime = moment()
    revoked_at: datetime | None = moment(nullable=True)


class LoginFailure(Row, table=True):
    """A wrong password of the last minutes: one row for the name that was tried, one for the address it came from.

    Only hashes are kept: what stands in the name's field may be a password.
    """

    __tablename__ = "login_failure"
    __table_args__ = (
        sa.Index("ix_login_failure_key_sha256_at", "key_sha256", "at"),
        sa.Index("ix_login_failure_at", "at"),
    )
    key_sha256: str = Field(max_length=64)
    at: datetime = moment(is_now=True)
