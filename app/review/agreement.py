"""Agreement of judge and people: from audits only, from first answers only, always told twice."""

import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.db import get
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Pair
from app.review.coverage import read_part
from app.review.models import Answer, Queue
from app.stats.agreement import (
    TwoLines,
    cohen_kappa_interval,
    krippendorff_alpha_interval,
    two_line_agreement,
)
from app.stats.intervals import Interval

LABELS = ("a", "b", "tie")
KEPT = 200
MANY = 1_000  # answers from which on a page may show an agreement of a moment ago
REST = 20.0  # for so many times as long as working it out took
# What first answers said never changes, so neither does the agreement until there are more of them, or other verdicts:
# a judging that failed may be taken up again. By queue and state of its verdicts.
_known: "OrderedDict[tuple[Any, ...], _Known]" = OrderedDict()


@dataclass(frozen=True)
class Agreement:
    """What one audit says of its judge. Without answers there is no figure, only how many are missing."""

    queue: Queue
    labels: str  # the set whose labels people checked
    n_pairs: int  # drawn
    n_audited: int  # pairs with at least one answer other than a skip
    n_skipped: int
    n_people: int
    is_simulated: bool
    lines: TwoLines | None
    kappa: Interval | None  # Cohen's, readable verdicts only
    people_alpha: Interval | None  # Krippendorff's, between people, where pairs were answered by several
    confusion: list[list[int]]  # rows people, columns the verdict: a, b, tie, unreadable
    part: str = ""  # what of the judging this stands for, where that is not all of it


@dataclass(frozen=True)
class _Known:
    n: int  # places answered then
    until: float  # when a page asks anew
    agreement: Agreement


def read_agreement(
    session: Session, queue: Queue, *, has_coefficients: bool = True, is_page: bool = False
) -> Agreement:
    """The agreement in an audit; lists leave out the coefficients, whose intervals take a thousand resamples.

    While people answer a large audit, a page (`is_page`) may show one of a moment ago, with its own n: else each answer
    would have the next page read all the others, and pages would take longer the more was answered.

    Raises ValueError for a repair queue, which was not drawn at random.
    """
    if queue.kind != "audit":
        raise ValueError("only a random audit says anything about agreement")
    # not queue.n_answered: the caller may have read the queue before the last answers
    n = session.execute(sa.select(col(Queue.n_answered)).where(col(Queue.id) == queue.id)).scalar_one()
    key = (session.get_bind().engine.url, queue.id, *state_of_verdicts(session, queue), has_coefficients)
    began, known = time.monotonic(), _known.get(key)
    will_do = known is not None and (known.n == n or (is_page and known.n >= MANY and began < known.until))
    if known is None or not will_do:
        agreement, ended = _compute(session, queue, has_coefficients), time.monotonic()
        known = _known[key] = _Known(n, ended + REST * (ended - began), agreement)
        while len(_known) > KEPT:
            _known.popitem(last=False)
    return replace(known.agreement, queue=queue, part=read_part(session, queue).said)


def state_of_verdicts(session: Session, queue: Queue) -> tuple[int, ...]:
    """What changes whenever a verdict of a queue's set does: its id and its counters."""
    found = get(session, VerdictSet, queue.verdict_set_id or 0)
    return found.id, found.n_a, found.n_b, found.n_tie, found.n_null, found.n_flip


def _compute(session: Session, queue: Queue, has_coefficients: bool) -> Agreement:
    found = session.execute(
        sa.select(
            col(Answer.pair_id), col(Answer.account_id), col(Answer.first), col(Verdict.outcome), col(Pair.prompt_id),
            col(Account.is_simulated),
        )
        # a verdict whose call had failed is gone while the judge is asked again
        .outerjoin(Verdict, sa.and_(col(Verdict.pair_id) == col(Answer.pair_id),
                                    col(Verdict.verdict_set_id) == queue.verdict_set_id))
        .join(Pair, col(Pair.id) == col(Answer.pair_id))
        .join(Account, col(Account.id) == col(Answer.account_id))
        .where(col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None))
        .order_by(col(Answer.pair_id), col(Answer.account_id))
    ).all()  # fmt: skip
    said = [row for row in found if row.first != "skip"]
    people = [choice_label(row.first) for row in said]
    verdicts = [row.outcome for row in said]
    prompts = [row.prompt_id for row in said]
    shared = [(row.pair_id, row.account_id, choice_label(row.first), row.prompt_id) for row in said]
    table = [[0, 0, 0, 0] for _ in LABELS]
    for one, other in zip(people, verdicts, strict=True):
        table[LABELS.index(one)][3 if other is None else LABELS.index(other)] += 1
    return Agreement(
        queue=queue,
        labels=get(session, VerdictSet, queue.verdict_set_id or 0).name,
        n_pairs=queue.n,
        n_audited=len({row.pair_id for row in said}),
        n_skipped=len(found) - len(said),
        n_people=len({row.account_id for row in said}),
        is_simulated=any(row.is_simulated for row in said),
        lines=two_line_agreement(people, verdicts, prompts) if said else None,
        kappa=_kappa(people, verdicts, prompts) if has_coefficients else None,
        people_alpha=_alpha(shared) if has_coefficients else None,
        confusion=table,
    )


def choice_label(choice: str) -> str:
    """A judge cannot say “both bad”: it counts as a tie, which is also what it does to the label."""
    return "tie" if choice == "both_bad" else choice


def _kappa(people: list[str], verdicts: list[str | None], prompts: list[int]) -> Interval | None:
    """Cohen's kappa, which needs two items that both could read."""
    readable = sum(verdict is not None for verdict in verdicts)
    return cohen_kappa_interval(people, verdicts, prompts) if readable > 1 else None


def _alpha(said: list[tuple[int, int, str, int]]) -> Interval | None:
    """Krippendorff's alpha between people over pairs that several of them answered; None where there are none."""
    by_pair: dict[int, dict[int, str]] = defaultdict(dict)
    prompt_of: dict[int, int] = {}
    for pair, account, label, prompt in said:
        by_pair[pair][account] = label
        prompt_of[pair] = prompt
    shared = [pair for pair, answers in by_pair.items() if len(answers) > 1]
    if len(shared) < 2:
        return None
    accounts = sorted({account for pair in shared for account in by_pair[pair]})
    ratings = [[by_pair[pair].get(account) for pair in shared] for account in accounts]
    return krippendorff_alpha_interval(ratings, [prompt_of[pair] for pair in shared])


def read_agreements(session: Session, project_id: int) -> list[Agreement]:
    """Every audit of a project, newest first."""
    audits = session.exec(
        select(Queue).where(Queue.project_id == project_id, Queue.kind == "audit").order_by(col(Queue.id).desc())
    )
    return [read_agreement(session, queue, has_coefficients=False, is_page=True) for queue in audits.all()]


def count_answered(session: Session, queue: Queue) -> tuple[int, int]:
    """(places answered, places in all) of a queue."""
    return queue.n_answered, queue.n * queue.overlap
