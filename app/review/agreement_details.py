"""The agreement of an audit or a scoring queue in detail: by category, principle and judge, beside its baselines.

Like app/review/agreement.py it reads first, blind answers of random samples only; each figure has its n.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.judging.models import Judge, Rating, Verdict
from app.pairs.models import Completion, Pair
from app.prompts.models import Prompt
from app.review.agreement import choice_label
from app.review.models import Answer, Mark, Queue
from app.stats.agreement import TwoLines, cohen_kappa_interval, krippendorff_alpha_interval, two_line_agreement
from app.stats.intervals import Interval, rate_of
from app.stats.scores import ScoreAgreement, score_agreement

MOST_LINES = 40


@dataclass(frozen=True)
class Said:
    """One person's answer to one pair, with the verdict on it."""

    pair: int
    person: int
    label: str
    outcome: str | None
    by_principle: dict[str, str]
    by_judge: dict[str, str | None]  # of a panel: what each member's readings add up to, by its number
    prompt: int
    category: str
    longer: str  # a, b, or tie where the lengths are equal


@dataclass(frozen=True)
class Details:
    """What an audit says beyond its two lines."""

    kappa_all: Interval | None  # Cohen's, an unreadable verdict being a label of its own
    decided: Interval | None  # raw agreement where neither called it a tie
    between_people: Interval | None  # raw agreement of two people on one pair
    longer_agrees: Interval | None  # of people with "the longer text is better"
    people_prefer_longer: Interval | None
    judge_prefers_longer: Interval | None
    by_category: list[tuple[str, TwoLines]]
    by_principle: list[tuple[str, TwoLines]]
    by_judge: list[tuple[str, TwoLines]]  # of a panel


@dataclass(frozen=True)
class ScoreLine:
    """People's scores against the judge's, overall or by one principle."""

    principle: str
    agreement: ScoreAgreement
    alpha: Interval | None
    people_alpha: Interval | None  # between people, where several scored the same completion
    n_unreadable: int  # pairs of a person's score and a judge's that could not be read
    n_people: int


def read_details(session: Session, queue: Queue) -> Details | None:
    """The details of an audit; None before anybody answered."""
    said = _read_said(session, queue)
    if not said:
        return None
    labels, verdicts, prompts = [x.label for x in said], [x.outcome for x in said], [x.prompt for x in said]
    own = [verdict or "unreadable" for verdict in verdicts]
    decided = [x for x in said if x.outcome in ("a", "b") and x.label != "tie"]
    pairs = _two_people(said)
    uneven = [x for x in said if x.longer != "tie"]
    principles = sorted({key for x in said for key in x.by_principle})[:MOST_LINES]
    return Details(
        kappa_all=cohen_kappa_interval(labels, own, prompts) if len(said) > 1 else None,
        decided=_rate([(float(x.label == x.outcome), x.prompt) for x in decided]),
        between_people=_rate(pairs),
        longer_agrees=_rate([(float(x.label == x.longer), x.prompt) for x in said]),
        people_prefer_longer=_rate([(float(x.label == x.longer), x.prompt) for x in uneven if x.label != "tie"]),
        judge_prefers_longer=_rate(
            [(float(x.outcome == x.longer), x.prompt) for x in _once(uneven) if x.outcome in ("a", "b")]
        ),
        by_category=_by(said, lambda x: x.category, lambda x: x.outcome),
        by_principle=[
            (key, two_line_agreement(labels, [_choice(x.by_principle.get(key)) for x in said], prompts))
            for key in principles
        ],
        by_judge=_by_judge(session, said),
    )


def _read_said(session: Session, queue: Queue) -> list[Said]:
    a, b = aliased(Completion), aliased(Completion)
    of_pair = sa.and_(col(Verdict.pair_id) == col(Answer.pair_id), col(Verdict.verdict_set_id) == queue.verdict_set_id)
    found = session.execute(
        sa.select(
            col(Answer.pair_id), col(Answer.account_id), col(Answer.first), col(Verdict.outcome),
            col(Verdict.by_principle), col(Verdict.votes), col(Pair.prompt_id), col(Prompt.category),
            sa.func.length(a.text).label("a"), sa.func.length(b.text).label("b"),
        )
        .outerjoin(Verdict, of_pair)
        .join(Pair, col(Pair.id) == col(Answer.pair_id))
        .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None), col(Answer.first) != "skip")
        .order_by(col(Answer.pair_id), col(Answer.account_id))
    )  # fmt: skip
    return [
        Said(
            row.pair_id, row.account_id, choice_label(row.first), row.outcome, row.by_principle or {},
            {key: one["outcome"] for key, one in (row.votes or {}).get("by_judge", {}).items()}, row.prompt_id,
            row.category, "a" if row.a > row.b else "b" if row.b > row.a else "tie",
        )
        for row in found
    ]  # fmt: skip


def _choice(text: str | None) -> str | None:
    return text if text in ("a", "b", "tie") else None


def _rate(values: list[tuple[float, int]]) -> Interval | None:
    return rate_of([value for value, _ in values], [prompt for _, prompt in values]) if values else None


def _once(said: list[Said]) -> list[Said]:
    """One answer a pair, for what concerns the verdict alone."""
    return list({x.pair: x for x in said}.values())


def _two_people(said: list[Said]) -> list[tuple[float, int]]:
    by_pair: dict[int, list[Said]] = defaultdict(list)
    for one in said:
        by_pair[one.pair].append(one)
    return [
        (float(one.label == other.label), one.prompt)
        for answers in by_pair.values()
        for i, one in enumerate(answers)
        for other in answers[i + 1 :]
    ]


def _by(
    said: list[Said], group: Callable[[Said], str], verdict: Callable[[Said], str | None]
) -> list[tuple[str, TwoLines]]:
    groups: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        groups[group(one)].append(one)
    if len(groups) < 2:
        return []
    most = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_LINES]
    return [
        (
            name or "none",
            two_line_agreement([x.label for x in rows], [verdict(x) for x in rows], [x.prompt for x in rows]),
        )
        for name, rows in most
    ]


def _by_judge(session: Session, said: list[Said]) -> list[tuple[str, TwoLines]]:
    """Each judge of a panel by itself, as the panel counted it; pairs that nobody was asked about count as they are."""
    ids = {key for x in said for key in x.by_judge}
    if len(ids) < 2:
        return []
    named = session.execute(
        sa.select(col(Judge.name), col(Judge.id)).where(col(Judge.id).in_([int(key) for key in ids]))
    )
    labels, prompts = [x.label for x in said], [x.prompt for x in said]
    return [
        (
            name,
            two_line_agreement(labels, [x.by_judge.get(str(key)) if x.by_judge else x.outcome for x in said], prompts),
        )
        for name, key in sorted((row.name, row.id) for row in named)
    ]


def _between_people(marks: Sequence[Any], principle: str) -> Interval | None:
    """Krippendorff's alpha of the scores that several people gave the same completions; None where there are none."""
    scores: dict[int, dict[int, float]] = defaultdict(dict)
    prompt_of: dict[int, int] = {}
    for mark in marks:
        if principle in mark.scores:
            scores[mark.completion_id][mark.account_id] = float(mark.scores[principle])
            prompt_of[mark.completion_id] = mark.prompt_id
    shared = [key for key, said in scores.items() if len(said) > 1]
    people = sorted({account for key in shared for account in scores[key]})
    ratings = [[scores[key].get(account) for key in shared] for account in people]
    return krippendorff_alpha_interval(ratings, [prompt_of[key] for key in shared], "interval") if shared else None


def read_score_lines(session: Session, queue: Queue) -> list[ScoreLine]:
    """A scoring queue: people's scores against the mean of the judge's readings, overall and by principle."""
    marks = session.execute(
        sa.select(
            col(Mark.completion_id), col(Mark.account_id), col(Mark.scores), col(Completion.prompt_id)
        )
        .join(Completion, col(Completion.id) == col(Mark.completion_id))
        .where(col(Mark.queue_id) == queue.id, col(Mark.answered_at).is_not(None), col(Mark.is_skipped).is_(False))
        .order_by(col(Mark.completion_id), col(Mark.account_id))
    ).all()  # fmt: skip
    read = session.execute(
        sa.select(col(Rating.completion_id), col(Rating.principle), sa.func.avg(Rating.value))
        .where(
            col(Rating.rating_set_id) == queue.rating_set_id,
            col(Rating.completion_id).in_(sa.select(col(Mark.completion_id)).where(col(Mark.queue_id) == queue.id)),
        )
        .group_by(col(Rating.completion_id), col(Rating.principle))
    )
    judge = {(completion, principle): value for completion, principle, value in read}
    lines: list[ScoreLine] = []
    for principle in sorted({key for mark in marks for key in mark.scores}):
        both = [
            (mark.scores[principle], judge.get((mark.completion_id, principle)), mark.prompt_id, mark.account_id)
            for mark in marks
            if principle in mark.scores
        ]
        readable = [(float(own), float(value), prompt) for own, value, prompt, _ in both if value is not None]
        own, other, prompts = ([row[i] for row in readable] for i in range(3))
        alpha = krippendorff_alpha_interval([own, other], prompts, "interval") if len(readable) > 1 else None
        lines.append(
            ScoreLine(
                principle, score_agreement(own, other, prompts), alpha, _between_people(marks, principle),
                len(both) - len(readable), len({account for *_, account in both}),
            )
        )  # fmt: skip
    return lines
