"""What a judge reads: pairs with their texts, and a constitution as a guide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.constitutions.constitutions import read_principles
from app.constitutions.models import Constitution
from app.db import get
from app.judging.models import Verdict
from app.judging.prompt import Guide, PairText, guide_of
from app.pairs.models import Completion, Pair
from app.prompts.models import Prompt

CHUNK = 200


@dataclass(frozen=True)
class PairRow:
    """A pair with everything a judge of any kind may read."""

    id: int
    position: int
    text: PairText
    reference: str | None


def read_guide(session: Session, constitution_id: int | None) -> Guide:
    """The constitution as the judge is shown it."""
    if constitution_id is None:
        return Guide()
    row = get(session, Constitution, constitution_id)
    principles = [(one.key, one.body, one.weight) for one in read_principles(session, row.id)]
    return guide_of(row.name, row.version, row.preface, principles)


def read_pairs(session: Session, ids: Sequence[int]) -> list[PairRow]:
    """Pairs with their texts, in the order of `ids`."""
    a, b = aliased(Completion), aliased(Completion)
    columns: list[Any] = [Pair.id, Pair.position, Prompt.messages, a.text, b.text, Prompt.reference]
    query = (
        sa.select(*columns)
        .select_from(Pair)
        .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Pair.id).in_(list(ids)))
    )
    rows = {row[0]: PairRow(row[0], row[1], PairText(row[2], row[3], row[4]), row[5]) for row in session.execute(query)}
    return [rows[key] for key in ids]


def unjudged(session: Session, pair_set_id: int, verdict_set_id: int | None, limit: int | None) -> list[int]:
    """Ids of the pairs among the first `limit` that have no verdict in this set, in their order."""
    query = select(Pair.id).where(Pair.pair_set_id == pair_set_id).order_by(col(Pair.position), col(Pair.id))
    ids = list(session.exec(query.limit(limit) if limit else query))
    if verdict_set_id is None:
        return ids
    done = set(session.exec(select(Verdict.pair_id).where(Verdict.verdict_set_id == verdict_set_id)))
    return [key for key in ids if key not in done]


def chunks(ids: Sequence[int], size: int = CHUNK) -> Iterator[Sequence[int]]:
    """Slices of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
