"""A run's metrics as curves, decimated in SQL so that a long run does not flood a page."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.runs.models import Metric, Run

DEV = "dev_"  # what was measured on the dev split shares a figure with what was measured in training


def list_figures(session: Session, run_id: int) -> list[str]:
    """One name a figure: the metrics a run has stored, dev and training together, losses first."""
    names = session.execute(sa.select(col(Metric.name)).where(col(Metric.run_id) == run_id).distinct()).scalars()
    figures = {name.removeprefix(DEV) for name in names}
    return sorted(figures, key=lambda name: (not name.endswith("loss"), not name.startswith("reward"), name))


def read_curves(session: Session, runs: Iterable[Run], figure: str, *, points: int = 500) -> list[dict[str, Any]]:
    """The series of one figure, training before dev: label, arm, part (train or dev), step, seconds since the first
    point of the run, value (None: not finite).

    Every k-th point of each curve is kept, so that at most about `points` remain, and always the last.
    """
    points = max(2, min(points, 5000))
    known = {run.id: run for run in runs}
    ranked = (
        sa.select(
            col(Metric.run_id), col(Metric.name), col(Metric.step), col(Metric.value), col(Metric.at),
            sa.func.row_number().over(partition_by=_curve(), order_by=col(Metric.step)).label("place"),
            sa.func.count().over(partition_by=_curve()).label("n"),
        )
        .where(col(Metric.run_id).in_(list(known)), col(Metric.name).in_([figure, DEV + figure]))
        .subquery()
    )  # fmt: skip
    every = ranked.c.n // points + 1
    kept = sa.select(ranked).where(sa.or_((ranked.c.place - 1) % every == 0, ranked.c.place == ranked.c.n))
    curves: dict[tuple[int, str], dict[str, Any]] = {}
    for run_id, name, step, value, at, _, _ in session.execute(
        kept.order_by(ranked.c.run_id, ranked.c.name != figure, ranked.c.step)
    ):
        run = known[run_id]
        who = f"{run.title} (run {run.id})" if len(known) > 1 else ""
        part = "dev" if name.startswith(DEV) else "train"
        curve = curves.setdefault(
            (run_id, name),
            {
                "label": f"{who} {part}".strip(),
                "arm": run.kind,
                "part": part,
                "step": [],
                "seconds": [],
                "value": [],
                "start": at,
            },
        )
        curve["step"].append(step)
        curve["seconds"].append(max(0.0, (at - curve["start"]).total_seconds()))
        curve["value"].append(value)
    return [{key: value for key, value in curve.items() if key != "start"} for curve in curves.values()]


def _curve() -> list[Any]:
    return [col(Metric.run_id), col(Metric.name)]
