"""From all opinions on a pair to its verdict: principles to a label, votes to a majority, orders and members to one.

The same function decides while judging and when weights change later, so re-weighting needs no call.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.judging.protocol import Asked, Protocol, Seat, missing, settled
from app.judging.verdicts import P_OF, OpinionValue, VerdictValue, add_up, choose

LABELS = ("a", "b", "tie", None)


def still_missing(protocol: Protocol, seat: Seat, opinions: Sequence[OpinionValue]) -> list[Asked]:
    """What to ask one judge next of a pair."""
    mine = [one for one in opinions if one.judge_id == seat.judge_id]
    return missing(seat, mine, lambda seat, said: _read(protocol, seat, said).choice)


def is_complete(protocol: Protocol, opinions: Sequence[OpinionValue]) -> bool:
    """Whether every judge has said what it has to."""
    return not any(still_missing(protocol, seat, opinions) for seat in protocol.seats)


def weigh(by_principle: Mapping[str, str], weights: Mapping[str, float]) -> tuple[str, float]:
    """(label, sum): the sign of Σ weight · (1 for a, −1 for b, 0 for a tie); a sum of exactly 0 is a tie."""
    total = sum(weight * (2 * P_OF[by_principle[key]] - 1) for key, weight in weights.items() if weight)
    return ("tie" if abs(total) < 1e-9 else ("a" if total > 0 else "b")), total


def decide(protocol: Protocol, opinions: Sequence[OpinionValue]) -> VerdictValue:
    """The verdict of one pair from all its opinions."""
    seats = [_decide_seat(protocol, seat, opinions) for seat in protocol.seats]
    if not protocol.rule:
        return seats[0]
    return _decide_panel(protocol, seats)


def _read(protocol: Protocol, seat: Seat, said: Sequence[OpinionValue]) -> OpinionValue:
    """One vote of one judge in one order: its label, from what it said of the whole or of each principle."""
    whole = next((one for one in said if not one.principle), None)
    by_principle = dict(whole.by_principle) if whole else {}
    by_principle |= {one.principle: one.choice for one in said if one.principle and one.choice is not None}
    if not seat.is_weighted:
        assert whole is not None
        return replace(whole, by_principle=by_principle)
    first = said[0]
    if whole is not None and whole.choice is None:
        return whole
    for key, weight in protocol.weights.items():
        if weight and key not in by_principle:
            why = next((one.reason for one in said if one.principle == key), "nothing readable was said of it")
            return OpinionValue(first.is_swapped, None, None, by_principle, f"by {key}: {why}", first.sample)
    label, total = weigh(by_principle, protocol.weights)
    told = f": {whole.reason}" if whole is not None and whole.reason else ""
    reason = f"the principles' weighted sum is {total:+g} for a{told}"
    return OpinionValue(first.is_swapped, label, None, by_principle, reason, first.sample)


def _decide_seat(protocol: Protocol, seat: Seat, opinions: Sequence[OpinionValue]) -> VerdictValue:
    votes: dict[bool, dict[int, list[OpinionValue]]] = {order: {} for order in seat.orders}
    for one in opinions:
        if one.judge_id == seat.judge_id:
            votes[one.is_swapped].setdefault(one.sample, []).append(one)
    readings = {
        order: [_read(protocol, seat, said) for _, said in sorted(found.items())] for order, found in votes.items()
    }
    by_order = [_majority(seat, order, said) for order, said in readings.items()]
    value = add_up(by_order, protocol.is_soft)
    every = [one for said in readings.values() for one in said]
    counts = {label or "null": sum(one.choice == label for one in every) for label in LABELS}
    need = value.need
    if seat.n_votes > 1 and value.outcome is not None and not value.is_flip:
        need = max(need, 0.9 * min(1.0, 2 * (1 - counts[value.outcome] / len(every))))
    return replace(value, need=round(need, 6), by_principle=_agreed(by_order), votes=counts)


def _majority(seat: Seat, is_swapped: bool, readings: Sequence[OpinionValue]) -> OpinionValue:
    """The votes of one order as one reading."""
    if seat.n_votes == 1:
        return readings[0]
    counts = Counter(one.choice for one in readings if one.choice is not None)
    n_unread = len(readings) - counts.total()
    choice = settled(counts, n_unread + seat.n_votes - len(readings))
    by_principle = {}
    for key in dict.fromkeys(key for one in readings for key in one.by_principle):
        said = Counter(one.by_principle[key] for one in readings if key in one.by_principle)
        by_principle[key] = settled(said, 0) or "tie"
    if choice is None:
        why = next((one.reason for one in readings if one.choice is None), "")
        return OpinionValue(is_swapped, None, None, by_principle, f"{n_unread} of {len(readings)} votes: {why}")
    known = [one.p_a for one in readings if one.p_a is not None]
    p_a = sum(known) / len(known) if known else None
    told = ", ".join(f"{n} {label}" for label, n in counts.most_common())
    more = f", {n_unread} unreadable" if n_unread else ""
    fewer = f" of {seat.n_votes} allowed" if len(readings) < seat.n_votes else ""
    reason = f"{len(readings)} votes{fewer}: {told}{more}"
    return OpinionValue(is_swapped, choice, p_a, by_principle, reason)


def _agreed(by_order: Sequence[OpinionValue]) -> dict[str, str]:
    """Each principle's label: what all orders say of it, a tie where they disagree; left out where one is unread."""
    keys = [key for key in by_order[0].by_principle if all(key in one.by_principle for one in by_order)]
    said = {key: {one.by_principle[key] for one in by_order} for key in keys}
    return {key: next(iter(found)) if len(found) == 1 else "tie" for key, found in said.items()}


def _decide_panel(protocol: Protocol, values: Sequence[VerdictValue]) -> VerdictValue:
    """Members to one verdict. Members that could not be read leave one only where they could not have decided it."""
    seats = protocol.seats
    shares = [1.0 if protocol.rule == "majority" else seat.weight for seat in seats]
    p_a: float | None = None
    if protocol.rule == "mean":
        outcome, p_a = _mean(shares, values)
    else:
        outcome = _settle(shares, [one.outcome for one in values])
    votes: dict[str, Any] = {label: sum(one.votes[label] for one in values) for label in ("a", "b", "tie", "null")}
    votes["by_judge"] = {
        str(seat.judge_id): {
            "outcome": one.outcome, "p_a": one.p_a, "is_flip": one.is_flip, "weight": share,
            "by_principle": one.by_principle,
        }
        for seat, share, one in zip(seats, shares, values, strict=True)
    }  # fmt: skip
    by_principle = {}
    for key in dict.fromkeys(key for one in values for key in one.by_principle):
        said = [(share, one.by_principle[key]) for share, one in zip(shares, values, strict=True)
                if key in one.by_principle]  # fmt: skip
        found = _settle([share for share, _ in said], [label for _, label in said])
        by_principle[key] = found or "tie"
    told = "; ".join(f"{seat.name}: {one.outcome or 'unreadable'}" for seat, one in zip(seats, values, strict=True))
    is_flip = any(one.is_flip for one in values)
    if outcome is None:
        why = "; ".join(
            f"{seat.name}: {one.reason}" for seat, one in zip(seats, values, strict=True) if one.outcome is None
        )
        reason = f"the panel needs what could not be read ({why})"
        return VerdictValue(None, reason, None, is_flip, 1.0, by_principle, votes)
    need = _panel_need(outcome, p_a, shares, values)
    return VerdictValue(outcome, told, p_a, is_flip, need, by_principle, votes)


def _settle(shares: Sequence[float], labels: Iterable[str | None]) -> str | None:
    counts: dict[str, float] = {}
    unread = 0.0
    for share, label in zip(shares, labels, strict=True):
        if label is None:
            unread += share
        else:
            counts[label] = counts.get(label, 0.0) + share
    return settled(counts, unread)


def _mean(shares: Sequence[float], values: Sequence[VerdictValue]) -> tuple[str | None, float | None]:
    """The mean of the members' p(a), a plain label counting as 1, 1/2 or 0."""
    found = [
        (share, one.p_a if one.p_a is not None else P_OF[one.outcome])
        for share, one in zip(shares, values, strict=True) if one.outcome is not None
    ]  # fmt: skip
    total, read = sum(shares), sum(share for share, _ in found)
    if not read:
        return None, None
    said = sum(share * p for share, p in found)
    least, most = choose(said / total), choose((said + total - read) / total)
    if least != most:
        return None, None
    return least, said / read


def _panel_need(
    outcome: str, p_a: float | None, shares: Sequence[float], values: Sequence[VerdictValue]
) -> float:  # fmt: skip
    """Splits, flips and doubt: the larger of how divided the members are and how doubtful they are on average."""
    total = sum(shares)
    against = sum(share for share, one in zip(shares, values, strict=True) if one.outcome != outcome) / total
    doubt = sum(share * one.need for share, one in zip(shares, values, strict=True)) / total
    lean = 0.8 * (1 - abs(2 * p_a - 1)) if p_a is not None else 0.0
    tie = 0.5 if outcome == "tie" else 0.0
    return round(max(0.9 * min(1.0, 2 * against), doubt, lean, tie), 6)
