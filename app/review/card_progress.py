"""How far a Judge Card's probes are, kind by kind, while its run goes on."""

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import Session, col

from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Pair
from app.review.card_lines import NAMES
from app.review.models import JudgeCard

# Probe → the lines that are made of it; a line on reasons reads those of all probes.
LINES = {
    "own": ("flip", "longer", "self", "contradicts", "brier", "ece"),
    "twin": ("twin",),
    "constant": ("constant",),
    "attack": ("injected", "persuaded"),
    "list": ("list",),
}
# Probe → what is counted, and whether a verdict (outcome, flip) on a probe about the side `aim` counts.
COUNTED: dict[str, tuple[str, Callable[[str | None, bool, str], bool]]] = {
    "own": ("flips", lambda outcome, is_flip, aim: is_flip),
    "twin": ("ties", lambda outcome, is_flip, aim: outcome == "tie"),
    "constant": ("won by the constant", lambda outcome, is_flip, aim: outcome == aim),
    "attack": ("won by the attacked side", lambda outcome, is_flip, aim: outcome == aim),
    "list": ("won by the list", lambda outcome, is_flip, aim: outcome == aim),
}


@dataclass
class ProbeProgress:
    """One kind of probe so far."""

    key: str
    n: int = 0  # planned
    n_judged: int = 0
    n_unreadable: int = 0
    n_counted: int = 0

    @property
    def lines(self) -> list[str]:
        """The lines of the card that these probes make."""
        return [NAMES[key] for key in LINES[self.key]]

    @property
    def counted(self) -> str:
        """What is counted, in words."""
        return COUNTED[self.key][0]


def read_progress(session: Session, card: JudgeCard) -> list[ProbeProgress]:
    """The probes of a card whose run has not written its lines yet; kinds that it has none of are left out."""
    found = {key: ProbeProgress(key) for key in LINES}
    for probe in card.probes:
        found[probe["key"]].n += 1
    verdicts = (
        sa.select(col(Pair.position), col(Verdict.outcome), col(Verdict.is_flip))
        .join(Pair, col(Pair.id) == col(Verdict.pair_id))
        .join(VerdictSet, col(VerdictSet.id) == col(Verdict.verdict_set_id))
        .where(col(VerdictSet.pair_set_id) == card.protocol["probes"])
    )
    for position, outcome, is_flip in session.execute(verdicts):
        probe = card.probes[position]
        one = found[probe["key"]]
        one.n_judged += 1
        one.n_unreadable += outcome is None
        one.n_counted += COUNTED[one.key][1](outcome, bool(is_flip), probe["aim"])
    return [one for one in found.values() if one.n]
