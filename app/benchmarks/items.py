"""The items of a benchmark with what two arms scored on each, as a table that can be filtered."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.benchmarks.definitions import in_order
from app.benchmarks.models import Benchmark, Score
from app.benchmarks.scores import Scored, find_scored, pick_base, read_levels
from app.errors import NotFound
from app.tables import Column, Filter, Table

BASE_ONLY, OTHER_ONLY = "base right, other wrong", "base wrong, other right"
BOTH, NEITHER = "both right", "both wrong"


def items_table(
    session: Session, root: str, benchmark: Benchmark, arm: int | None, base: int | None, metric: str
) -> tuple[Table, dict[str, Any]]:
    """The items of two arms side by side, and what the page needs to say which arms these are."""
    scored = find_scored(session, benchmark.project_id, benchmark.id)
    if not scored:
        raise NotFound("Nothing has been scored on this benchmark yet.")
    levels = read_levels(session, [one.run_id for one in scored])
    metrics = in_order(benchmark, {name for _, name, _ in levels})
    metric = metric if metric in metrics else metrics[0]
    of_base = pick_base(scored, base) or scored[0]
    mine = next((one for one in scored if one.arm.id == arm), None)
    mine = mine or next((one for one in reversed(scored) if one.run_id != of_base.run_id), of_base)
    a, b = _item_means(of_base, metric, metrics), _item_means(mine, metric, metrics)
    is_right, is_other_right = a.c.value >= 0.5, b.c.value >= 0.5
    outcome = sa.case(
        (sa.and_(is_right, ~is_other_right), BASE_ONLY),
        (sa.and_(~is_right, is_other_right), OTHER_ONLY),
        (sa.and_(is_right, is_other_right), BOTH),
        else_=NEITHER,
    )
    below = f"{root}/benchmarks/{benchmark.id}/items"
    columns = [
        Column("item", a.c.item, "Item", href=lambda row: f"{below}/{row['_key']}"),
        Column("prompt", a.c.prompt, "Prompt", "long"),
        Column("category", a.c.category, "Category"),
        Column("base", a.c.value, of_base.arm.name, "number", is_sortable=True),
        Column("other", b.c.value, mine.arm.name, "number", is_sortable=True),
        Column("outcome", outcome, "Outcome"),
    ]
    filters = [
        Filter("outcome", outcome, "Show", (BASE_ONLY, OTHER_ONLY, BOTH, NEITHER)),
        Filter("category", a.c.category, "Category"),
    ]
    source = a.join(b, a.c.item == b.c.item)
    table = Table("items", columns, source, a.c.key, [], filters, is_newest_first=False)
    return table, {
        "scored": scored, "metrics": metrics, "metric": metric, "base": of_base, "other": mine, "benchmark": benchmark,
    }  # fmt: skip


def _item_means(one: Scored, metric: str, metrics: list[str]) -> Any:
    """One row an item: its first score's id, its mean over samples, its prompt."""
    means = (
        sa.select(
            sa.func.min(col(Score.id)).label("key"), col(Score.item).label("item"),
            sa.func.avg(col(Score.value)).label("value"),
        )
        .where(col(Score.run_id) == one.run_id, col(Score.arm_id) == one.arm.id, col(Score.metric) == metric)
        .group_by(col(Score.item))
        .subquery()
    )  # fmt: skip
    first, words = aliased(Score), aliased(Score)
    prompt = (  # the words stand on one of the item's metrics only
        sa.select(col(words.detail)["prompt"].as_string())
        .where(col(words.run_id) == one.run_id, col(words.arm_id) == one.arm.id, col(words.metric).in_(metrics))
        .where(col(words.item) == means.c.item, col(words.sample) == 0)
        .where(col(words.detail)["prompt"].as_string().is_not(None))
        .limit(1)
        .scalar_subquery()
    )
    return (
        sa.select(
            means.c.key, means.c.item, means.c.value, col(first.category).label("category"), prompt.label("prompt")
        )
        .join(first, col(first.id) == means.c.key)
        .subquery()
    )
