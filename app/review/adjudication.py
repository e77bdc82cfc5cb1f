"""What several people's answers on a pair add up to: the majority, or an even split that waits for an adjudicator."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.pairs.models import Pair
from app.review.models import Answer, Override, Queue

CHUNK = 500


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
        rows = session.execute(_answers_of(some)).all()
        by_hand = _withdrawn_by_hand(session, some) if rows else {}
        for row in rows:
            gone = by_hand.get((row.pair_id, row.choice))
            if gone is None or row.answered_at > gone:
                is_adjudicator = row.kind == "adjudication"
                words[row.pair_id].append(Word(row.id, row.account_id, row.choice, is_adjudicator, row.note))
    return dict(words)


def _said() -> Any:
    return sa.func.coalesce(sa.cast(col(Answer.later), sa.String), sa.cast(col(Answer.first), sa.String))


def _answers_of(pair_ids: list[int]) -> Any:
    said = _said().label("choice")
    return (
        sa.select(
            col(Answer.id), col(Answer.pair_id), col(Answer.account_id), col(Answer.note), col(Answer.answered_at),
            col(Queue.kind), said,
        )
        .join(Queue, col(Queue.id) == col(Answer.queue_id))
        .where(col(Answer.pair_id).in_(pair_ids), col(Answer.first).is_not(None), said != "skip")
        .order_by(col(Answer.answered_at), col(Answer.id))
    )  # fmt: skip


def _withdrawn_by_hand(session: Session, pair_ids: list[int]) -> dict[tuple[int, str], datetime]:
    """(pair, choice) → when somebody last took such an override back by hand."""
    rows = session.execute(
        sa.select(col(Override.pair_id), col(Override.choice), col(Override.withdrawn_at))
        .where(col(Override.pair_id).in_(pair_ids), col(Override.withdrawn_by_id).is_not(None))
        .order_by(col(Override.withdrawn_at))
    ).all()
    return {(row.pair_id, row.choice): row.withdrawn_at for row in rows}


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
