"""Candidates to look at before judging: empty, identical within a pair, and the same text for many prompts."""

from collections import defaultdict
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlmodel import Session

from app.db import table_of
from app.pairs.models import Completion, Pair

SCANNED = 1_000  # pairs looked at: a form must open at once
MANY = 3  # prompts that are answered with the very same text
SHOWN = 3
BLANK = " \t\n\r"

PAIR, COMPLETION = map(table_of, (Pair, Completion))
_A, _B = COMPLETION.alias("a"), COMPLETION.alias("b")
_FEW = (
    sa.select(PAIR.c.prompt_id, PAIR.c.a_id, PAIR.c.b_id)
    .where(PAIR.c.pair_set_id == sa.bindparam("pair_set"))
    .order_by(PAIR.c.position, PAIR.c.id)
    .limit(SCANNED)
    .subquery()
)
_FIRST = (
    sa.select(_FEW.c.prompt_id, _A.c.text.label("a"), _B.c.text.label("b"))
    .join_from(_FEW, _A, _A.c.id == _FEW.c.a_id)
    .join(_B, _B.c.id == _FEW.c.b_id)
)


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
    """Counts over the first SCANNED pairs of a set. White space alone is empty; identical is by every character.

    Each text is read once and compared here: a database that groups by long texts takes twice as long.
    """
    rows = session.execute(_FIRST, {"pair_set": pair_set_id}).all()
    prompts: dict[str, set[int]] = defaultdict(set)
    for prompt, a, b in rows:
        prompts[a].add(prompt)
        prompts[b].add(prompt)
    empty = {text for text in prompts if not text.strip(BLANK)}
    often = {text: len(of) for text, of in prompts.items() if len(of) >= MANY and text not in empty}
    return Flags(
        n=len(rows),
        n_empty=sum(a in empty or b in empty for _, a, b in rows),
        n_identical=sum(a == b for _, a, b in rows),
        n_constant=sum(a in often or b in often for _, a, b in rows),
        constants=sorted(often.items(), key=lambda one: (-one[1], one[0]))[:SHOWN],
    )
