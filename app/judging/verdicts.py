"""From opinions to a verdict: both orders must agree; what people should look at first."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.judging.prompt import TIE

P_OF = {"a": 1.0, "tie": 0.5, "b": 0.0}  # a label as a probability that a is better


@dataclass(frozen=True)
class OpinionValue:
    """One reading in the pair's own frame: choice a, b, tie, or None with a reason."""

    is_swapped: bool
    choice: str | None
    p_a: float | None = None
    by_principle: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    sample: int = 0  # which vote
    principle: str = ""  # its key, where each principle has a call of its own
    judge_id: int = 0


@dataclass(frozen=True)
class VerdictValue:
    """What opinions add up to."""

    outcome: str | None
    reason: str = ""
    p_a: float | None = None
    is_flip: bool = False
    need: float = 0
    by_principle: dict[str, str] = field(default_factory=dict)
    votes: dict[str, Any] = field(default_factory=dict)


def in_pair_frame(letter: str | None, is_swapped: bool) -> str | None:
    """A or B as the judge saw them → a or b of the pair."""
    if letter is None or letter == TIE:
        return letter
    return {"A": "b", "B": "a"}[letter] if is_swapped else letter.lower()


def add_up(opinions: Sequence[OpinionValue], is_soft: bool = False) -> VerdictValue:
    """The verdict of one pair. Orders that disagree are a flip; one unreadable order leaves none.

    A flip is a tie; with `is_soft` it is the side that the mean of both orders points to, with that mean as p(a).
    """
    for one in opinions:
        if one.choice is None:
            where = "with the sides swapped: " if one.is_swapped else ""
            return VerdictValue(None, f"{where}{one.reason}", need=1.0)
    choices = {one.choice for one in opinions}
    known = [one.p_a for one in opinions if one.p_a is not None]
    p_a = sum(known) / len(known) if len(known) == len(opinions) else None
    if len(choices) > 1:
        said = " and ".join(f"{one.choice} {'swapped' if one.is_swapped else 'as given'}" for one in opinions)
        if is_soft:
            p_a = p_a if p_a is not None else sum(P_OF[str(one.choice)] for one in opinions) / len(opinions)
        label = choose(p_a) if is_soft and p_a is not None else "tie"
        return VerdictValue(label, f"the orders disagree: {said}", p_a, True, 0.9)
    (outcome,) = choices
    reason = next((one.reason for one in opinions if one.reason), "")
    return VerdictValue(outcome, reason, p_a, False, _need(outcome, p_a, opinions))


def _need(outcome: str | None, p_a: float | None, opinions: Sequence[OpinionValue]) -> float:
    """0 to 1: doubt of the judge, or principles that point the other way."""
    if outcome == "tie":
        return 0.5
    votes = [choice for one in opinions for choice in one.by_principle.values()]
    against = sum(choice not in {outcome, "tie"} for choice in votes) / len(votes) if votes else 0.0
    doubt = 1 - abs(2 * p_a - 1) if p_a is not None else 0.0
    return round(0.8 * max(doubt, against), 6)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def choose(p_a: float) -> str:
    """The side a probability points to; exactly one half is a tie."""
    return "tie" if abs(p_a - 0.5) < 1e-9 else ("a" if p_a > 0.5 else "b")


def is_flipped(seed: int, position: int, flip_rate: float) -> bool:
    """Whether the rule judge errs on purpose at this position: the same seed errs at the same places."""
    digest = hashlib.sha256(f"flip:{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < flip_rate
