"""People's answers, and the overrides that follow from them. Every change moves the pair set's labels on, at once.

The first answer is given blind and never changes: agreement reads it. What a person says after the reveal is `later`,
which moves the override alone. An override stands where most people who answered a pair contradict the verdict; with
an even split, none stands and the pair waits for an adjudicator (adjudication.py).
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col

from app.db import MAX_ID, clean_text, get, now, table_of
from app.errors import Conflict, Invalid, NotFound
from app.judging.models import Verdict
from app.pairs.models import Pair, PairSet
from app.projects.access import Member
from app.review.adjudication import Word, decide, is_split, read_words
from app.review.leases import NOTE_MAX, newer_note, seconds_held
from app.review.models import Answer, Override, Queue
from app.review.tallies import count_done

SHOWN = ("left", "right", "tie", "both_bad", "skip")
DEFAULT_WHY = {
    "audit": "A blind answer in an audit contradicts the verdict.",
    "repair": "An answer in a repair queue contradicts the verdict.",
    "adjudication": "People split evenly; this is the adjudicator’s word.",
}
LATER_WHY = "Decided after the verdict was shown."
# What every answer asks of the database, built once: building it took longer than running it.
ANSWER, OVERRIDE, VERDICT, PAIR, PAIR_SET = map(table_of, (Answer, Override, Verdict, Pair, PairSet))
_PLACE = (
    sa.select(Answer, Queue)
    .join(Queue, col(Queue.id) == col(Answer.queue_id))
    .where(col(Answer.id) == sa.bindparam("answer"))
)
_PAIR: Any = sa.bindparam("pair")
_LOCK = sa.select(PAIR.c.id).where(PAIR.c.id == _PAIR).with_for_update()
_GIVE = (  # sets whatever columns it is given
    sa.update(ANSWER)
    .where(ANSWER.c.id == sa.bindparam("answer"), ANSWER.c.account_id == sa.bindparam("person"))
    .where(ANSWER.c.first.is_(None))
)
_OUTCOME = sa.select(VERDICT.c.outcome).where(
    VERDICT.c.verdict_set_id == sa.bindparam("verdict_set"), VERDICT.c.pair_id == _PAIR
)
_STANDING = sa.select(Override).where(col(Override.pair_id) == _PAIR, col(Override.withdrawn_at).is_(None))
_OVERRIDE = sa.insert(OVERRIDE)
_MOVE_ON = (
    sa.update(PAIR_SET)
    .where(PAIR_SET.c.id == sa.select(PAIR.c.pair_set_id).where(PAIR.c.id == _PAIR).scalar_subquery())
    .values(
        labels_version=PAIR_SET.c.labels_version + 1, n_overridden=PAIR_SET.c.n_overridden + sa.bindparam("more")
    )
)  # fmt: skip


def in_pair_frame(choice: str, is_swapped: bool) -> str:
    """What was chosen on the screen, as a, b, tie, both_bad or skip; raises Invalid."""
    if choice not in SHOWN:
        raise Invalid(f"“{choice[:20]}” is no answer. Answers: {', '.join(SHOWN)}.", {"choice": ["not an answer"]})
    if choice in {"left", "right"}:
        return "b" if (choice == "left") == is_swapped else "a"
    return choice


def as_shown(choice: str | None, is_swapped: bool) -> str | None:
    """The reverse: a and b as the sides they were shown on."""
    if choice in {"a", "b"}:
        return "right" if (choice == "a") == is_swapped else "left"
    return choice


def project_answer(session: Session, member: Member, answer_id: int) -> tuple[Answer, Queue]:
    """An answer of this project with its queue; raises NotFound."""
    found = session.execute(_PLACE, {"answer": answer_id}).first() if 0 < answer_id <= MAX_ID else None
    if found is None or found.Queue.project_id != member.project.id:
        raise NotFound(f"There is no answer {answer_id}.")
    return found.Answer, found.Queue


def give_answer(session: Session, answer: Answer, queue: Queue, account_id: int, choice: str, note: str = "") -> None:
    """Stores the blind answer of a place this person holds, once; a second press of the same key changes nothing but
    the comment, if it comes with another one.

    Raises Conflict when the place is another's, was answered otherwise before, or the queue is closed.
    """
    if queue.closed_at is not None:
        raise Conflict("This queue is closed: your comment is kept with the pair, in case it is opened again.")
    wanted = in_pair_frame(choice, answer.is_swapped)
    _lock(session, answer.pair_id)
    given = {"first": wanted, "note": clean_text(note).strip()[:NOTE_MAX], "answered_at": now(),
             "seconds": seconds_held(session, answer)}  # fmt: skip
    stored = session.execute(_GIVE, {"answer": answer.id, "person": account_id, **given})
    if stored.rowcount == 0:  # type: ignore[attr-defined]
        session.refresh(answer)
        if answer.account_id != account_id:
            raise Conflict("You do not hold this pair any more: it went to somebody else. Go on with the next one.")
        if answer.first != wanted:
            raise Conflict("Your first answer stands. Press U on its page to change what the label becomes.")
        answer.note = newer_note(note, answer.note)
        session.flush()
        words = _words_of(session, answer)
        _settle(session, answer, queue, words, words)
        return
    for name, value in given.items():
        set_committed_value(answer, name, value)
    count_done(session, queue.id, account_id, 1, int(wanted == "skip"))
    words = _words_of(session, answer)
    _settle(session, answer, queue, [word for word in words if word.answer_id != answer.id], words)


def change_answer(session: Session, answer: Answer, queue: Queue, account_id: int, choice: str, note: str = "") -> None:
    """What the person says after the reveal: `first` stays, the override follows. Raises Conflict or NotFound."""
    if answer.account_id != account_id:
        raise NotFound("This is somebody else's answer.")
    if answer.first is None:
        raise Conflict("Answer first: only what was answered can be changed.")
    _lock(session, answer.pair_id)
    before = _words_of(session, answer)
    answer.later = in_pair_frame(choice, answer.is_swapped)
    if note.strip():
        answer.note = clean_text(note).strip()[:NOTE_MAX]
    session.flush()
    _settle(session, answer, queue, before, _words_of(session, answer))


def is_contradiction(choice: str, outcome: str | None) -> bool:
    """Whether a person's choice asks for another label than the verdict gives. Tie and both bad are both none."""
    neither = {"tie", "both_bad"}
    return choice != outcome and not (choice in neither and outcome in neither)


def _words_of(session: Session, answer: Answer) -> list[Word]:
    """What people say of the pair of an answer."""
    return read_words(session, [answer.pair_id]).get(answer.pair_id, [])


def _lock(session: Session, pair_id: int) -> None:
    """Makes two who answer the same pair at this moment settle it one after the other."""
    session.execute(_LOCK, {"pair": pair_id})


def _settle(session: Session, answer: Answer, queue: Queue, before: list[Word], words: list[Word]) -> None:
    """Makes the pair's standing override what the people's answers ask for."""
    pair_id = answer.pair_id
    people = decide(words)
    standing = standing_override(session, pair_id)
    outcome = session.execute(_OUTCOME, {"verdict_set": queue.verdict_set_id, "pair": pair_id}).scalar()
    is_needed = people is not None and is_contradiction(people, outcome)
    held = standing.choice if standing else None
    wanted = people if is_needed or held == people else None  # one made over another judge's verdict stays
    if held == wanted:
        if standing is not None and standing.answer_id == answer.id:
            _say_why(session, standing, answer.note)
        if is_split(before) != is_split(words):  # no override changes, but whether the pair may be trained on does
            _move_labels_on(session, pair_id, 0)
        return
    if standing is not None:
        standing.withdrawn_at = now()
        session.flush()
    if wanted is not None:
        behind = [word for word in words if word.choice == wanted]
        speaker = next((word for word in reversed(behind) if word.is_adjudicator), None)
        speaker = speaker or next((word for word in behind if word.answer_id == answer.id), behind[-1])
        why = speaker.why.strip() or (LATER_WHY if answer.later else DEFAULT_WHY[queue.kind])
        session.execute(_OVERRIDE, {
            "pair_id": pair_id, "choice": wanted, "account_id": speaker.account_id, "why": why,
            "answer_id": speaker.answer_id, "made_at": now(),
        })  # fmt: skip
    _move_labels_on(session, pair_id, int(wanted is not None) - int(standing is not None))


def _say_why(session: Session, standing: Override, why: str) -> None:
    """A newer comment of who made an override: the same word over the pair, and the history keeps the older why."""
    if not why or standing.why == why:
        return
    standing.withdrawn_at = now()
    session.flush()
    session.add(Override(
        pair_id=standing.pair_id, choice=standing.choice, account_id=standing.account_id, why=why,
        answer_id=standing.answer_id,
    ))  # fmt: skip


def standing_override(session: Session, pair_id: int) -> Override | None:
    """The override that stands over a pair."""
    return session.execute(_STANDING, {"pair": pair_id}).scalar()


def withdraw(session: Session, override: Override, account_id: int) -> None:
    """Takes an override back by hand: the row stays, the verdict speaks again. Raises Conflict if it was taken back."""
    _lock(session, override.pair_id)  # somebody may answer the pair, and so withdraw it, at this moment
    changed = session.execute(
        sa.update(Override)
        .where(col(Override.id) == override.id, col(Override.withdrawn_at).is_(None))
        .values(withdrawn_at=now(), withdrawn_by_id=account_id)
    )
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict("This override was withdrawn before.")
    session.refresh(override)
    _move_labels_on(session, override.pair_id, -1)


def project_override(session: Session, member: Member, override_id: int) -> Override:
    """An override of this project; raises NotFound."""
    override = get(session, Override, override_id)
    pair_set = get(session, PairSet, get(session, Pair, override.pair_id).pair_set_id)
    if pair_set.project_id != member.project.id:
        raise NotFound(f"There is no override {override_id}.")
    return override


def _move_labels_on(session: Session, pair_id: int, n_more: int) -> None:
    """The pair set's labels have changed, and so many more (or fewer) overrides stand over its pairs."""
    session.execute(_MOVE_ON, {"pair": pair_id, "more": n_more})
