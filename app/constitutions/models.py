"""Tables: constitutions (versions, frozen once used) and their principles."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, long_text, moment, ref


class Constitution(Row, table=True):
    """One version of what the judge is asked to follow."""

    __table_args__ = (sa.UniqueConstraint("project_id", "name", "version"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    version: int = 1
    preface: str = long_text(default="")
    frozen_at: datetime | None = moment(nullable=True)
    created_at: datetime = moment(is_now=True)


class Principle(Row, table=True):
    """One rule of a constitution."""

    __table_args__ = (sa.UniqueConstraint("constitution_id", "key"),)
    constitution_id: int = ref("constitution.id", index=False)
    position: int
    key: str = Field(max_length=60)
    body: str = long_text()
    weight: float = 1.0
