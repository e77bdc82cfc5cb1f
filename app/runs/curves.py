"""A run's metrics as curves, decimated in SQL so that a long run does not flood a page."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.runs.models import Metric


def read_curves(
    session: Session, run_id: int, *, points: int = 500, after: int = -1
) -> dict[str, dict[str, list[Any]]]:
    """name → {step, value, at}: every k-th point of each curve, and always the last. `at` is seconds since 1970."""
    points = max(2, min(points, 5000))
    ranked = (
        sa.select(
            col(Metric.name), col(Metric.step), col(Metric.value), col(Metric.at),
            sa.func.row_number().over(partition_by=col(Metric.name), order_by=col(Metric.step)).label("place"),
            sa.func.count().over(partition_by=col(Metric.name)).label("n"),
        )
        .where(col(Metric.run_id) == run_id, col(Metric.step) > after)
        .subquery()
    )  # fmt: skip
    every = ranked.c.n // points + 1
    kept = sa.select(ranked).where(sa.or_((ranked.c.place - 1) % every == 0, ranked.c.place == ranked.c.n))
    curves: dict[str, dict[str, list[Any]]] = {}
    for name, step, value, at, _, _ in session.execute(kept.order_by(ranked.c.name, ranked.c.step)):
        curve = curves.setdefault(name, {"step": [], "value": [], "at": []})
        curve["step"].append(step)
        curve["value"].append(value)
        curve["at"].append(at.timestamp())
    return curves
