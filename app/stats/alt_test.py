"""The alternative-annotator test: may a judge stand in for one of the people who label?

Source: Calderon, Reichart and Dror, The Alternative Annotator Test for LLM-as-a-Judge, arXiv:2501.10970 (2025).
Each person j is left out in turn. On an item, judge and person j are compared by how well they agree with the others
(the share of equal labels; for scores, minus the root mean square error): the judge wins or draws (W_f), the person
wins or draws (W_h). rho_f and rho_h are the means of these; H0: rho_f <= rho_h - epsilon is tested by a one-sided
paired t test on W_h - W_f, and Benjamini and Yekutieli's procedure, Annals of Statistics 29 (2001), holds the false
discovery rate over persons. omega is the share of persons for whom H0 falls; the judge passes at omega >= 0.5.

The paper's costs: epsilon 0.2 where people are experts, 0.15 where skilled, 0.1 for a crowd. The test takes items as
independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.stats.distributions import t_tail
from app.stats.intervals import Floats

MIN_PEOPLE = 3
MIN_ITEMS = 30
PASS = 0.5
Label = str | float


@dataclass(frozen=True)
class Advantage:
    """One person against the judge."""

    person: str
    n: int
    rho_judge: float  # how often the judge agrees with the others at least as well as this person
    rho_person: float
    p: float
    is_rejected: bool  # the judge is at least as good, within epsilon


@dataclass(frozen=True)
class AltTest:
    """What the test says; or why it cannot be computed."""

    epsilon: float
    n_items: int
    people: list[Advantage]
    omega: float | None  # winning rate
    rho: float | None  # mean advantage probability
    is_passed: bool | None
    reason: str = ""  # why it is not computable


def alternative_test(
    people: Sequence[Mapping[str, Label]], judge: Sequence[Label | None], epsilon: float, *, q: float = 0.05,
    are_scores: bool = False,
) -> AltTest:  # fmt: skip
    """The test over items: people's labels by person, and the judge's label (None: unreadable, agrees with nobody).

    An item counts where at least 3 people labelled it; a person counts with at least 30 such items; 3 persons are
    needed. Otherwise the result says why it is not computable.

    Raises ValueError for an epsilon beyond 0..1, for lengths that differ, or for an unreadable score.
    """
    if not 0 <= epsilon <= 1:
        raise ValueError("epsilon must lie between 0 and 1")
    shared = [(said, own) for said, own in zip(people, judge, strict=True) if len(said) >= MIN_PEOPLE]
    names = sorted({name for said, _ in shared for name in said})
    gaps = {name: [_compare(said, own, name, are_scores) for said, own in shared if name in said] for name in names}
    counted = {name: found for name, found in gaps.items() if len(found) >= MIN_ITEMS}
    if len(counted) < MIN_PEOPLE:
        reason = f"It needs {MIN_PEOPLE} people who each labelled {MIN_ITEMS} items that {MIN_PEOPLE} people labelled"
        return AltTest(epsilon, len(shared), [], None, None, None, f"{reason}; here {len(counted)} did.")
    ps = [_p_value(np.array([h - f for f, h in found], dtype=np.float64), epsilon) for found in counted.values()]
    rejected = benjamini_yekutieli(ps, q)
    advantages = [
        Advantage(
            name,
            len(found),
            float(np.mean([f for f, _ in found])),
            float(np.mean([h for _, h in found])),
            p,
            is_rejected,
        )
        for (name, found), p, is_rejected in zip(counted.items(), ps, rejected, strict=True)
    ]
    omega = float(np.mean(rejected))
    rho = float(np.mean([one.rho_judge for one in advantages]))
    return AltTest(epsilon, len(shared), advantages, omega, rho, omega >= PASS)


def benjamini_yekutieli(ps: Sequence[float], q: float = 0.05) -> list[bool]:
    """Which hypotheses fall at false discovery rate q under any dependence."""
    m = len(ps)
    harmonic = sum(1 / i for i in range(1, m + 1))
    order = sorted(range(m), key=lambda i: ps[i])
    last = max((rank for rank, i in enumerate(order, 1) if ps[i] <= q * rank / (m * harmonic)), default=0)
    fallen = set(order[:last])
    return [i in fallen for i in range(m)]


def _compare(said: Mapping[str, Label], own: Label | None, person: str, are_scores: bool) -> tuple[bool, bool]:
    """(judge wins or draws, person wins or draws) against the others of one item."""
    others = [label for name, label in said.items() if name != person]
    judge, human = (_alignment(label, others, are_scores) for label in (own, said[person]))
    return judge >= human, human >= judge


def _alignment(label: Label | None, others: Sequence[Label], are_scores: bool) -> float:
    if label is None:
        return -math.inf if are_scores else 0.0
    if not are_scores:
        return float(np.mean([label == other for other in others]))
    return -math.sqrt(sum((float(label) - float(other)) ** 2 for other in others) / len(others))


def _p_value(gaps: Floats, epsilon: float) -> float:
    """One-sided p of mean gap >= epsilon; where nothing varies the mean itself decides."""
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    if error == 0:
        return 0.0 if mean < epsilon else 1.0
    t = (mean - epsilon) / error
    tail = t_tail(t, len(gaps) - 1) / 2
    return tail if t < 0 else 1 - tail
