"""What people would say of all judged pairs: an audit's answers and the judge's verdicts, combined by PPI++.

Ties, and win rates of one arm over another with a tie counted one half. Of several answers to a pair the mean counts.
A verdict that could not be read enters as one half of a win and no tie; the estimate stays unbiased whatever stands
there, since what the verdicts get wrong is measured on the audited pairs (app/stats/ppi.py).
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.checkpoints.models import Arm
from app.judging.models import Verdict
from app.pairs.models import Completion, Pair
from app.review.agreement import choice_label, state_of_verdicts
from app.review.models import Answer, Queue
from app.stats.ppi import Estimate, estimate_rate

FEWEST = 10  # audited pairs, below which nothing is estimated
MOST_ARMS = 20
KEPT = 64  # audits worked out: a million verdicts take seconds to count


@dataclass(frozen=True)
class RateLine:
    """One rate over all judged pairs."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class Estimates:
    """The rates of an audit; or how many pairs are audited where that is too few."""

    n_audited: int
    lines: list[RateLine]
    fewest: int = FEWEST


@dataclass(frozen=True)
class _Row:
    """Pairs of one prompt, two arms and one outcome; `first` is what a person said, where one was asked."""

    prompt: int
    arms: tuple[int, int]
    outcome: str | None
    n: int
    first: tuple[str, ...] = ()


_known: OrderedDict[tuple[Any, ...], Estimates] = OrderedDict()


def read_estimates(session: Session, queue: Queue) -> Estimates:
    """The rates of an audit's verdict set as people would give them; worked out anew after another answer or verdict.

    Raises ValueError for a queue that is no audit.
    """
    if queue.kind != "audit":
        raise ValueError("only a random audit estimates anything")
    is_given = sa.and_(col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None))
    given = session.execute(sa.select(sa.func.count(), sa.func.max(Answer.answered_at)).where(is_given)).one()
    key = (session.get_bind().engine.url, queue.id, *state_of_verdicts(session, queue), *given)
    if key not in _known:
        _known[key] = _compute(session, queue)
        while len(_known) > KEPT:
            _known.popitem(last=False)
    return _known[key]


def _compute(session: Session, queue: Queue) -> Estimates:
    audited, others = _read_audited(session, queue), _read_others(session, queue)
    if len(audited) < FEWEST:
        return Estimates(len(audited), [])
    lines = [RateLine("tie", _estimate(audited, others, _tie))]
    by_arms: dict[tuple[int, int], list[_Row]] = defaultdict(list)
    for row in audited:
        if row.arms[0] != row.arms[1]:
            by_arms[min(row.arms), max(row.arms)].append(row)
    wanted = [arms for arms, rows in by_arms.items() if len(rows) >= FEWEST]
    ids = {arm for two in wanted for arm in two}
    named = session.execute(sa.select(col(Arm.id), col(Arm.name)).where(col(Arm.id).in_(ids)))
    names: dict[int, str] = {key: name for key, name in named}  # noqa: C416  dict() does not know rows as pairs
    for arms in sorted(wanted, key=lambda two: -len(by_arms[two]))[:MOST_ARMS]:
        rest = [row for row in others if set(row.arms) == set(arms)]
        name = f"win rate of {names[arms[0]]} over {names[arms[1]]}"
        lines.append(RateLine(name, _estimate(by_arms[arms], rest, lambda said, row, x=arms[0]: _win(said, row, x))))
    same = [row for row in audited if row.arms[0] == row.arms[1]]
    if len(same) >= FEWEST:  # two samples of one arm: a is the first sample, so this shows a bias of order
        rest = [row for row in others if row.arms[0] == row.arms[1]]
        lines.append(RateLine("a preferred over b, one arm’s two samples", _estimate(same, rest, _side_a)))
    return Estimates(len(audited), lines)


def _estimate(audited: list[_Row], others: list[_Row], value: Any) -> Estimate:
    return estimate_rate(
        [sum(value(said, row) for said in row.first) / len(row.first) for row in audited],
        [value(row.outcome, row) for row in audited],
        [row.prompt for row in audited],
        [value(row.outcome, row) for row in others],
        [row.prompt for row in others],
        [row.n for row in others],
    )


def _tie(said: str | None, row: _Row) -> float:
    return float(said == "tie")


def _side_a(said: str | None, row: _Row) -> float:
    return {"a": 1.0, "b": 0.0}.get(said or "", 0.5)


def _win(said: str | None, row: _Row, arm: int) -> float:
    a_wins = _side_a(said, row)
    return a_wins if row.arms[0] == arm else 1 - a_wins


def _read_audited(session: Session, queue: Queue) -> list[_Row]:
    a, b = aliased(Completion), aliased(Completion)
    of_pair = sa.and_(col(Verdict.pair_id) == col(Answer.pair_id), col(Verdict.verdict_set_id) == queue.verdict_set_id)
    found = session.execute(
        sa.select(
            col(Answer.pair_id), col(Answer.first), col(Verdict.outcome), col(Pair.prompt_id),
            a.arm_id.label("a"), b.arm_id.label("b"),  # type: ignore[attr-defined]
        )
        .outerjoin(Verdict, of_pair)
        .join(Pair, col(Pair.id) == col(Answer.pair_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None), col(Answer.first) != "skip")
        .order_by(col(Answer.pair_id), col(Answer.id))
    )  # fmt: skip
    rows: dict[int, _Row] = {}
    for one in found:
        before = rows[one.pair_id].first if one.pair_id in rows else ()
        said = (*before, choice_label(one.first))
        rows[one.pair_id] = _Row(one.prompt_id, (one.a, one.b), one.outcome, 1, said)
    return list(rows.values())


def _read_others(session: Session, queue: Queue) -> list[_Row]:
    """The pairs nobody answered, counted by the database: a million verdicts are some thousand rows a prompt set."""
    a, b = aliased(Completion), aliased(Completion)
    answered = sa.select(col(Answer.pair_id)).where(
        col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None), col(Answer.first) != "skip"
    )
    columns: list[Any] = [col(Pair.prompt_id), a.arm_id, b.arm_id, col(Verdict.outcome)]
    found = session.execute(
        sa.select(*columns, sa.func.count())
        .select_from(Verdict)
        .join(Pair, col(Pair.id) == col(Verdict.pair_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Verdict.verdict_set_id) == queue.verdict_set_id, col(Verdict.pair_id).not_in(answered))
        .group_by(*columns)
    )
    return [_Row(prompt, (one, other), outcome, n) for prompt, one, other, outcome, n in found]
