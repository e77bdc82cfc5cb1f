"""Tables: projects and who may do what in them."""

from datetime import datetime
from typing import Any, cast

from sqlmodel import Field, SQLModel

from app.accounts.models import ROLES
from app.db import Id, Row, moment, one_of


class Project(Row, table=True):
    """Every root row belongs to one project."""

    slug: str = Field(max_length=60, unique=True)
    name: str = Field(max_length=120)
    created_at: datetime = moment(is_now=True)


class Membership(SQLModel, table=True):
    """What an account may do in a project."""

    project_id: int = Field(primary_key=True, foreign_key="project.id", sa_type=cast(Any, Id))
    account_id: int = Field(primary_key=True, foreign_key="account.id", sa_type=cast(Any, Id), index=True)
    role: str = one_of("role", *ROLES)
