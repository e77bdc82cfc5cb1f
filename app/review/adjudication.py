"""What several people's answers on a pair add up to: the majority, or an even split that waits for an adjudicator."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.db import table_of
from app.pairs.models import Pair
from app.review.models import Answer, Override, Queue

CHUNK = 500
ANSWER, OVERRIDE, QUEUE = map(table_of, (Answer, Override, Queue))


@dataclass(frozen=True)
class Word:
    """What one person says of a pair now: their later word if they gave one, else their first."""

    answer_id: int
    account_id: int
    choice: str  # a, b, tie or both_bad
    is_adjudicator: bool
    why: str


def label_of(choice: str) -> str:
    """The label a choice asks for. Tie and both bad are the same one: no preference."""
    return "neither" if choice in {"tie", "both_bad"} else choice


def decide(words: Sequence[Word]) -> str | None:
    """The choice that stands: an adjudicator's where one has spoken, else the one with most people behind it.

    Somebody who met the pair in several queues counts once, with what they said last.

    None without words, or when the leading labels have equally many. Tie and both bad count together, and the one
    of them said by more, or else later, names the choice.
    """
    said = [word for word in words if word.is_adjudicator] or words
    last = {word.account_id: word for word in said}
    voters = [word for word in said if word is last[word.account_id]]
    labels = Counter(label_of(word.choice) for word in voters).most_common(2)
    if not labels or (len(labels) == 2 and labels[0][1] == labels[1][1]):
        return None
    leading = [word.choice for word in voters if label_of(word.choice) == labels[0][0]]
    return Counter(reversed(leading)).most_common(1)[0][0]


def is_split(words: Sequence[Word]) -> bool:
    """Whether people have spoken and no side has more of them."""
    return bool(words) and decide(words) is None


def read_words(session: Session, pair_ids: Iterable[int]) -> dict[int, list[Word]]:
    """pair → what people say of it, in the order they said it: no skips, nor what was withdrawn by hand after."""
    ids = list(pair_ids)
    words: dict[int, list[Word]] = defaultdict(list)
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        for row in session.execute(_ANSWERS, {"pairs": some}).all():
            if row.gone is None or row.answered_at > row.gone:
                is_adjudicator = row.kind == "adjudication"
                words[row.pair_id].append(Word(row.id, row.account_id, row.choice, is_adjudicator, row.note))
    return dict(words)


def _said() -> Any:
    return sa.func.coalesce(sa.cast(ANSWER.c.later, sa.String), sa.cast(ANSWER.c.first, sa.String))


def _answers() -> Any:
    """What was said of some `pairs`, each with when somebody last took an override to that choice back by hand."""
    said, by_hand = _said(), OVERRIDE.alias("by_hand")
    gone = (
        sa.select(sa.func.max(by_hand.c.withdrawn_at))
        .where(by_hand.c.pair_id == ANSWER.c.pair_id, by_hand.c.choice == said, by_hand.c.withdrawn_by_id.is_not(None))
        .scalar_subquery()
    )
    return (
        sa.select(
            ANSWER.c.id, ANSWER.c.pair_id, ANSWER.c.account_id, ANSWER.c.note, ANSWER.c.answered_at, QUEUE.c.kind,
            said.label("choice"), gone.label("gone"),
        )
        .join(QUEUE, QUEUE.c.id == ANSWER.c.queue_id)
        .where(ANSWER.c.pair_id.in_(sa.bindparam("pairs", expanding=True)), ANSWER.c.first.is_not(None))
        .where(said != "skip")
        .order_by(ANSWER.c.answered_at, ANSWER.c.id)
    )  # fmt: skip


_ANSWERS = _answers()  # each answer asks it: building it would take longer than running it


def unsettled_pairs(session: Session, pair_set_id: int) -> set[int]:
    """The pairs of a set on which people split evenly and nobody has adjudicated: they are not trained on."""
    said = _said()
    contested = session.execute(
        sa.select(col(Answer.pair_id))
        .join(Pair, col(Pair.id) == col(Answer.pair_id))
        .where(col(Pair.pair_set_id) == pair_set_id, col(Answer.first).is_not(None), said != "skip")
        .group_by(col(Answer.pair_id))
        .having(sa.func.count(sa.distinct(said)) > 1)
        .order_by(col(Answer.pair_id))
    ).scalars()
    return {pair for pair, words in read_words(session, contested).items() if is_split(words)}
