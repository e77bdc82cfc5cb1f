"""What a judge reads: pairs with their texts, and a constitution as a guide."""

import random
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


def read_guides(session: Session, constitution_id: int | None, keys: Sequence[str]) -> dict[str, Guide]:
    """A guide for each question: "" is the whole constitution, a key that principle alone.

    Where principles are asked one by one, the question on the whole does not ask for them again.
    """
    whole = read_guide(session, constitution_id)
    if constitution_id is None or tuple(keys) == ("",):
        return {"": whole}
    row = get(session, Constitution, constitution_id)
    bodies = {one.key: one.body for one in read_principles(session, row.id)}
    guides = {key: guide_of(row.name, row.version, row.preface, [(key, bodies[key], 1.0)]) for key in keys if key}
    return {key: Guide(guides[key].text) if key else Guide(whole.text) for key in keys}


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


def unjudged(
    session: Session, pair_set_id: int, verdict_set_id: int | None, limit: int | None, seed: int | None = None
) -> list[int]:
    """Ids of the pairs among the first `limit` that have no verdict in this set, in their order.

    With a seed the `limit` pairs are drawn at random, the same ones each time.
    """
    query = select(Pair.id).where(Pair.pair_set_id == pair_set_id).order_by(col(Pair.position), col(Pair.id))
    ids = list(session.exec(query.limit(limit) if limit and seed is None else query))
    if limit and seed is not None and limit < len(ids):
        places = sorted(random.Random(seed).sample(range(len(ids)), limit))
        ids = [ids[place] for place in places]
    if verdict_set_id is None:
        return ids
    done = set(session.exec(select(Verdict.pair_id).where(Verdict.verdict_set_id == verdict_set_id)))
    return [key for key in ids if key not in done]


def chunks(ids: Sequence[int], size: int = CHUNK) -> Iterator[Sequence[int]]:
    """Slices of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
