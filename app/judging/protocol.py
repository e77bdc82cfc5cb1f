"""A protocol: who is asked, in which orders, by which principles and how often; and what is still to be asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlmodel import Session

from app.constitutions.constitutions import read_principles
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.judging.verdicts import OpinionValue

# The recipe's fields that decide what opinions add up to; a verdict set keeps them as its protocol.
FIELDS = frozenset(
    {"with_reason", "temperature", "max_tokens", "seed", "is_both_orders", "flip_as", "votes", "label",
     "principle_calls", "overall", "identical", "draw", "compare_with"}
)  # fmt: skip
ASKED = frozenset({"endpoint", "checkpoint"})  # kinds that are asked a question: in two orders, by principle
RULE_KEYS = ("format", "answer")
N_CUT = "n_cut"  # beside them: how many readings did not fit the judge's context or its answer's tokens


@dataclass(frozen=True)
class Seat:
    """One judge of a protocol, and what it is asked of each pair."""

    judge_id: int
    kind: str
    name: str = ""
    weight: float = 1.0
    orders: tuple[bool, ...] = (False,)
    principles: tuple[str, ...] = ("",)  # one question each; "" is the question on the whole
    n_votes: int = 1
    is_weighted: bool = False  # its label is the weighted sum of its principles, not what it says of the whole


@dataclass(frozen=True)
class Protocol:
    """Who judges, and how that adds up."""

    seats: tuple[Seat, ...]
    rule: str = ""  # a panel's: majority, mean or weighted
    is_soft: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)  # by principle
    is_by_log_probs: bool = False

    @property
    def n_at_most(self) -> int:
        """Readings of a pair when every vote is asked for."""
        return sum(len(one.orders) * len(one.principles) * one.n_votes for one in self.seats)


@dataclass(frozen=True, slots=True)
class Asked:
    """One reading that is wanted of a judge."""

    is_swapped: bool
    sample: int = 0
    principle: str = ""


def read_protocol(session: Session, judge: Judge, settings: Mapping[str, Any], constitution: int | None) -> Protocol:
    """A recipe's protocol, or that of a stored verdict set (whose missing settings mean what they did then)."""
    principles = read_principles(session, constitution) if constitution is not None else []
    weights = {one.key: one.weight for one in principles}
    if judge.kind != "panel":
        return Protocol((_seat(judge, 1.0, settings, tuple(weights)),), "", settings.get("flip_as") == "soft", weights,
                        settings.get("label") == "log_probs")  # fmt: skip
    seats = tuple(
        _seat(get(session, Judge, one["judge"]), float(one["weight"]), settings, tuple(weights))
        for one in judge.settings["members"]
    )
    return Protocol(seats, judge.settings["rule"], settings.get("flip_as") == "soft", weights,
                    settings.get("label") == "log_probs")  # fmt: skip


def _seat(judge: Judge, weight: float, settings: Mapping[str, Any], keys: tuple[str, ...]) -> Seat:
    is_asked = judge.kind in ASKED
    is_separate = is_asked and bool(keys) and settings.get("principle_calls") == "separate"
    is_weighted = is_asked and settings.get("overall") == "weighted"
    principles: tuple[str, ...] = ("",)
    if is_separate:
        principles = keys if is_weighted else (*keys, "")
    return Seat(
        judge.id, judge.kind, judge.name, weight,
        orders=(False, True) if is_asked and settings.get("is_both_orders", True) else (False,),
        principles=principles, n_votes=int(settings.get("votes", 1)) if judge.kind == "endpoint" else 1,
        is_weighted=is_weighted,
    )  # fmt: skip


def protocol_of(session: Session, verdict_set: VerdictSet) -> Protocol:
    """The protocol a verdict set was made by."""
    judge = get(session, Judge, verdict_set.judge_id)
    return read_protocol(session, judge, verdict_set.protocol, verdict_set.constitution_id)


def settled(votes: Mapping[str, float], undecided: float) -> str | None:
    """The majority's label when nothing that the undecided could say would change it; None while it would.

    a or b needs more than half of all votes; where neither can get that, it is a tie. The undecided are votes not yet
    asked for, and votes that could not be read: the first may be asked no more once this is settled, and the second
    leave a label only where they could not have decided it.
    """
    half = (sum(votes.values()) + undecided) / 2
    for side in ("a", "b"):
        if votes.get(side, 0) > half + 1e-9:
            return side
    is_open = any(votes.get(side, 0) + undecided > half + 1e-9 for side in ("a", "b"))
    return None if is_open else "tie"


@lru_cache(maxsize=4096)
def next_wave(a: int, b: int, tie: int, null: int, left: int) -> int:
    """How many votes to ask for next: the fewest that could settle it; 0 when it is settled or cannot be any more."""
    votes = {"a": a, "b": b, "tie": tie}
    if not left or settled(votes, null + left) is not None:
        return 0
    for n in range(1, left + 1):
        if any(settled({**votes, side: votes[side] + n}, null + left - n) is not None for side in votes):
            return n
    return 0


def missing(seat: Seat, opinions: Sequence[OpinionValue], settle_choice: Any) -> list[Asked]:
    """What to ask this judge next of a pair, given its readings so far. Empty when it has said what it has to.

    `settle_choice` makes one choice of the readings of one vote (several where each principle has its own call).
    """
    if seat.n_votes == 1:
        have = {(one.is_swapped, one.principle) for one in opinions}
        return [Asked(order, 0, key) for order in seat.orders for key in seat.principles if (order, key) not in have]
    wanted: list[Asked] = []
    for order in seat.orders:
        by_sample: dict[int, list[OpinionValue]] = {}
        for one in opinions:
            if one.is_swapped == order:
                by_sample.setdefault(one.sample, []).append(one)
        open_votes = [
            Asked(order, sample, key) for sample, said in by_sample.items()
            for key in seat.principles if key not in {one.principle for one in said}
        ]  # fmt: skip
        if open_votes:
            wanted += open_votes
            continue
        choices = [settle_choice(seat, said) for said in by_sample.values()]
        n = next_wave(*(choices.count(one) for one in ("a", "b", "tie", None)), seat.n_votes - len(choices))
        fresh = [sample for sample in range(seat.n_votes) if sample not in by_sample][:n]
        wanted += [Asked(order, sample, key) for sample in fresh for key in seat.principles]
    return wanted
