"""Scores that people give single completions, blind, on the judge's own principles and scale of 1 to 10."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.constitutions.models import Principle
from app.db import clean_text, get, now
from app.errors import Conflict, Invalid, NotFound
from app.judging.models import Judge, Rating, RatingSet
from app.pairs.models import Completion
from app.projects.access import Member
from app.prompts.models import Prompt
from app.review.leases import NOTE_MAX, newer_note, seconds_held
from app.review.models import Mark, Queue
from app.review.tallies import count_done

SCALE = range(1, 11)
POINTS = {str(point) for point in SCALE}
OVERALL = ""  # the principle of a set that has no constitution


@dataclass(frozen=True)
class Asked:
    """One principle that is scored."""

    key: str
    body: str


@dataclass(frozen=True)
class ShownCompletion:
    """What a person sees of a place: nothing of what the judge said."""

    messages: list[dict[str, str]]
    reference: str | None
    text: str


@dataclass(frozen=True)
class JudgeScore:
    """A judge's score by one principle: the mean of its samples, NULL with the reason where none could be read."""

    judge: str
    key: str
    value: float | None
    reason: str


def asked_of(session: Session, queue: Queue) -> list[Asked]:
    """The principles of the judge's constitution, or the overall score where it had none."""
    constitution = get(session, RatingSet, queue.rating_set_id or 0).constitution_id
    if constitution is None:
        return [Asked(OVERALL, "How good is this completion, all in all?")]
    rows = select(Principle).where(Principle.constitution_id == constitution).order_by(col(Principle.position))
    return [Asked(row.key, row.body) for row in session.exec(rows).all()]


def project_mark(session: Session, member: Member, mark_id: int) -> tuple[Mark, Queue]:
    """A place of a scoring queue of this project; raises NotFound."""
    mark = get(session, Mark, mark_id)
    queue = get(session, Queue, mark.queue_id)
    if queue.project_id != member.project.id:
        raise NotFound(f"There is no mark {mark_id}.")
    return mark, queue


def read_completion(session: Session, mark: Mark) -> ShownCompletion:
    """The completion of a place with its prompt."""
    completion = get(session, Completion, mark.completion_id)
    prompt = get(session, Prompt, completion.prompt_id)
    return ShownCompletion(prompt.messages, prompt.reference, completion.text)


def read_scores(asked: list[Asked], given: Mapping[str, object]) -> dict[str, float]:
    """The scores by principle; raises Invalid where one is missing or off the scale."""
    scores, errors = {}, {}
    for one in asked:
        text = str(given.get(one.key, "")).strip()
        if text not in POINTS:
            errors[one.key or "overall"] = [f"“{text[:20]}” is not on the scale" if text else "has no score"]
        else:
            scores[one.key] = float(text)
    strange = given.keys() - {one.key for one in asked}
    for key in strange:
        errors[key[:60]] = ["is no principle of this rubric"]
    if errors:
        missing = "; ".join(f"{key}: {', '.join(found)}" for key, found in errors.items())
        raise Invalid(f"Score each principle from 1 to 10 ({missing}).", errors)
    return scores


def give_scores(
    session: Session, mark: Mark, queue: Queue, account_id: int, scores: dict[str, float] | None, note: str = ""
) -> None:
    """Stores the blind scores of a place this person holds, once; None skips it.

    The same scores sent again change nothing but the comment, if it is another. Raises Conflict when the place is
    another's, was scored otherwise, or the queue is closed.
    """
    if queue.closed_at is not None:
        raise Conflict("This queue is closed: your comment is kept with the completion, in case it is opened again.")
    stored = session.execute(
        sa.update(Mark)
        .where(col(Mark.id) == mark.id, col(Mark.account_id) == account_id, col(Mark.answered_at).is_(None))
        .values(
            scores=scores or {}, is_skipped=scores is None, note=clean_text(note).strip()[:NOTE_MAX],
            answered_at=now(), seconds=seconds_held(session, mark),
        )
    )  # fmt: skip
    session.refresh(mark)
    if stored.rowcount == 0:  # type: ignore[attr-defined]
        if mark.account_id != account_id:
            raise Conflict("You do not hold this completion any more: it went to somebody else. Go on with the next.")
        if mark.scores != (scores or {}):
            raise Conflict(
                "Your scores stand: you have seen the judge’s. Take them back on their page if they are wrong."
            )
        mark.note = newer_note(note, mark.note)
        return
    count_done(session, queue.id, account_id, 1, int(scores is None))


def take_back(session: Session, mark: Mark, account_id: int) -> None:
    """Undo: a skip is open again; scores, whose judge's have been seen by now, leave every estimate but stay stored.

    Raises NotFound or Conflict.
    """
    if mark.account_id != account_id:
        raise NotFound("These are somebody else's scores.")
    if mark.answered_at is None:
        raise Conflict("There is nothing to take back: this completion is not scored yet.")
    if mark.scores:
        left = session.execute(
            sa.update(Mark).where(col(Mark.id) == mark.id, ~col(Mark.is_skipped)).values(is_skipped=True)
        )
        session.refresh(mark)
        count_done(session, mark.queue_id, account_id, 0, left.rowcount)  # type: ignore[attr-defined]
        return
    opened = session.execute(
        sa.update(Mark).where(col(Mark.id) == mark.id, col(Mark.answered_at).is_not(None), col(Mark.is_skipped))
        .values(answered_at=None, seconds=None, is_skipped=False)
    )  # fmt: skip
    session.refresh(mark)
    if opened.rowcount == 1:  # type: ignore[attr-defined]  # else another press of the same key was quicker
        count_done(session, mark.queue_id, account_id, -1, -1)


def last_marked(session: Session, queue: Queue, account_id: int) -> Mark | None:
    """The completion this person scored or skipped last: where U leads back to."""
    mine = select(Mark).where(
        Mark.queue_id == queue.id, Mark.account_id == account_id, col(Mark.answered_at).is_not(None)
    )
    return session.exec(mine.order_by(col(Mark.answered_at).desc(), col(Mark.id).desc()).limit(1)).first()


def read_judge_scores(session: Session, mark: Mark, queue: Queue) -> list[JudgeScore]:
    """What the judges said, by judge and principle. Call it only once the place is scored."""
    assert mark.scores
    rows = session.execute(
        sa.select(col(Judge.name), col(Rating.principle), col(Rating.value), col(Rating.reason))
        .join(Judge, col(Judge.id) == col(Rating.judge_id))
        .where(col(Rating.rating_set_id) == queue.rating_set_id, col(Rating.completion_id) == mark.completion_id)
        .order_by(col(Rating.judge_id), col(Rating.principle), col(Rating.sample))
    ).all()
    grouped: dict[tuple[str, str], list[tuple[float | None, str]]] = defaultdict(list)
    for judge, principle, value, reason in rows:
        grouped[judge, principle].append((value, reason))
    found = []
    for (judge, key), samples in grouped.items():
        values = [value for value, _ in samples if value is not None]
        reason = next((text for _, text in samples if text), "")
        found.append(JudgeScore(judge, key, sum(values) / len(values) if values else None, reason))
    return found
