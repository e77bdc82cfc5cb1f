"""Candidates to look at before judging: empty, identical within a pair, and the same text for many prompts."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.pairs.models import Completion, Pair

SCANNED = 1_000  # pairs looked at: a form must open at once
MANY = 3  # prompts that are answered with the very same text
SHOWN = 3


@dataclass(frozen=True)
class Flags:
    """What was found in a pair set, in pairs; `constants` are (text, prompts answered with it)."""

    n: int = 0  # pairs looked at
    n_empty: int = 0
    n_identical: int = 0
    n_constant: int = 0  # pairs with a side that is such a text
    constants: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.n_empty or self.n_identical or self.n_constant)


def flag_candidates(session: Session, pair_set_id: int) -> Flags:
    """Counts over the first SCANNED pairs of a set. White space alone is empty; identical is by every character."""
    a, b = aliased(Completion), aliased(Completion)
    columns: list[Any] = [
        Pair.id, Pair.prompt_id, a.text.label("a"), b.text.label("b"),  # type: ignore[attr-defined]
    ]  # fmt: skip
    pairs = (
        sa.select(*columns)
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Pair.pair_set_id) == pair_set_id)
        .order_by(col(Pair.position), col(Pair.id))
        .limit(SCANNED)
        .cte("pairs")
    )
    is_empty = sa.or_(sa.func.trim(pairs.c.a, BLANK) == "", sa.func.trim(pairs.c.b, BLANK) == "")
    is_same = pairs.c.a == pairs.c.b
    n, n_empty, n_same = session.execute(
        sa.select(sa.func.count(), _sum(is_empty), _sum(is_same)).select_from(pairs)
    ).one()
    sides = sa.union_all(
        sa.select(pairs.c.prompt_id, pairs.c.a.label("text")), sa.select(pairs.c.prompt_id, pairs.c.b.label("text"))
    ).subquery()
    n_prompts = sa.func.count(sides.c.prompt_id.distinct())
    often = (
        sa.select(sides.c.text, n_prompts.label("n"))
        .where(sa.func.trim(sides.c.text, BLANK) != "")
        .group_by(sides.c.text)
        .having(n_prompts >= MANY)
    )
    found = session.execute(often.order_by(n_prompts.desc(), sides.c.text).limit(SHOWN)).all()
    n_constant = 0
    if found:
        texts = often.with_only_columns(sides.c.text)
        is_constant = sa.or_(pairs.c.a.in_(texts), pairs.c.b.in_(texts))
        n_constant = session.execute(sa.select(sa.func.count()).select_from(pairs).where(is_constant)).scalar() or 0
    return Flags(n, n_empty or 0, n_same or 0, n_constant, [(text, count) for text, count in found])


BLANK = " \t\n\r"


def _sum(condition: Any) -> Any:
    return sa.func.sum(sa.case((condition, 1), else_=0))
