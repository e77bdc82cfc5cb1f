"""Tables: benchmarks and the score of every item."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, moment, one_of, ref


class Benchmark(Row, table=True):
    """What is measured, with its settings and version."""

    __table_args__ = (sa.UniqueConstraint("project_id", "name", "version"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    version: int = 1
    kind: str = one_of("kind", "lm_eval", "safety", "format")
    settings: dict[str, Any] = json_field(factory=dict)
    chance: float | None = None
    created_at: datetime = moment(is_now=True)


class Score(Row, table=True):
    """One metric of one item (and sample) for one arm; levels and differences are computed from these."""

    __table_args__ = (
        sa.UniqueConstraint("run_id", "arm_id", "metric", "item", "sample"),
        sa.Index("ix_score_arm_benchmark", "arm_id", "benchmark_id", "metric"),
    )
    run_id: int = ref("run.id", index=False)
    arm_id: int = ref("arm.id", index=False)
    benchmark_id: int = ref("benchmark.id")
    metric: str = Field(max_length=60)
    item: str = Field(max_length=200)  # the item's own name; shared by arms, so differences are paired
    cluster: str = Field(default="", max_length=200)  # the prompt (or its group) that intervals cluster by
    category: str = Field(default="", max_length=120)
    sample: int = 0
    value: float | None = None
    is_truncated: bool = False
    detail: dict[str, Any] = json_field(factory=dict)
