"""What people decide about revisions: taken under a lease, accepted, rejected, edited, taken back; who and when.
Counters move along."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.checkpoints.arms import find_or_make_imported_arm
from app.db import db_now, get, now
from app.errors import Conflict, Invalid, NotFound
from app.pairs.models import Completion
from app.projects.access import Member
from app.review.leases import LEASE_S, newer_note, one_press_at_a_time
from app.revising.models import Revision, RevisionSet

STATES = ("proposed", "accepted", "rejected")
GOLDEN = 0.6180339887  # spreads where people begin, so that two of them rarely look at the same revision


def project_set(session: Session, member: Member, set_id: int) -> RevisionSet:
    """A revision set of this project; raises NotFound."""
    row = get(session, RevisionSet, set_id)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no revision set {set_id}.")
    return row


def set_revision(session: Session, made: RevisionSet, revision_id: int) -> Revision:
    """A revision of this set; raises NotFound."""
    row = get(session, Revision, revision_id)
    if row.set_id != made.id:
        raise NotFound(f"There is no revision {revision_id} in this set.")
    return row


def first_place(made: RevisionSet, account_id: int) -> int:
    """Where this person begins: everybody somewhere else."""
    return int(account_id * GOLDEN % 1 * made.n)


def next_revision(session: Session, made: RevisionSet, start: int) -> Revision | None:
    """The first revision from `start` on that nobody has decided about, going round at the end."""
    open_ones = (
        select(Revision)
        .where(Revision.set_id == made.id, Revision.state == "proposed", col(Revision.revised_id).is_not(None))
        .order_by(col(Revision.position))
        .limit(1)
    )
    later = session.exec(open_ones.where(Revision.position >= start)).first()
    return later or session.exec(open_ones.where(Revision.position < start)).first()


def held_revision(session: Session, made: RevisionSet, account_id: int) -> Revision | None:
    """What this person took last and has not decided about. A lease that is over counts until somebody takes it."""
    mine = select(Revision).where(
        Revision.set_id == made.id, Revision.state == "proposed", Revision.holder_id == account_id
    )
    return session.exec(mine.order_by(col(Revision.lease_until).desc(), col(Revision.id)).limit(1)).first()


def claim_revision(session: Session, made: RevisionSet, account_id: int, start: int | None = None) -> Revision | None:
    """The revision this person is to decide about, held for a quarter of an hour; None when nothing is left for them.

    What they hold is held anew; with `start`, it is given back, and the first free one from there on is taken, going
    round at the end. One atomic UPDATE takes it: two people never hold the same one.
    """
    one_press_at_a_time(session, account_id)
    held = held_revision(session, made, account_id)
    mine = (col(Revision.set_id) == made.id, col(Revision.holder_id) == account_id, col(Revision.state) == "proposed")
    if held is not None and start is None:
        until = db_now(session) + LEASE_S
        renewed = session.execute(
            sa.update(Revision).where(col(Revision.id) == held.id, *mine).values(lease_until=until)
        )
        if renewed.rowcount == 1:  # type: ignore[attr-defined]
            return held
    session.execute(sa.update(Revision).where(*mine).values(holder_id=None, lease_until=None))
    begin = first_place(made, account_id) if start is None else start
    for part in (col(Revision.position) >= begin, col(Revision.position) < begin):
        taken = session.execute(_take(session, made, account_id, part)).scalar()
        if taken is not None:
            one = select(Revision).where(Revision.id == taken).execution_options(populate_existing=True)
            return session.exec(one).one()
    return None


def _take(session: Session, made: RevisionSet, account_id: int, part: Any) -> sa.Executable:
    now_s = db_now(session)
    is_free = sa.or_(col(Revision.holder_id).is_(None), col(Revision.lease_until) < now_s)
    chosen = (
        sa.select(col(Revision.id))
        .where(col(Revision.set_id) == made.id, col(Revision.state) == "proposed", is_free, part)
        .where(col(Revision.revised_id).is_not(None))
        .order_by(col(Revision.position))
        .limit(1)
    )
    if session.get_bind().dialect.name == "postgresql":
        chosen = chosen.with_for_update(skip_locked=True)
    return (
        sa.update(Revision)
        .where(col(Revision.id) == chosen.scalar_subquery(), col(Revision.state) == "proposed", is_free)
        .values(holder_id=account_id, lease_until=now_s + LEASE_S)
        .returning(col(Revision.id))
    )


def last_decided(session: Session, made: RevisionSet, account_id: int) -> Revision | None:
    """What this person decided about last."""
    mine = select(Revision).where(
        Revision.set_id == made.id, Revision.account_id == account_id, Revision.state != "proposed"
    )
    return session.exec(mine.order_by(col(Revision.decided_at).desc(), col(Revision.id).desc()).limit(1)).first()


def decide(
    session: Session, made: RevisionSet, revision: Revision, account_id: int, state: str, note: str = "", text: str = ""
) -> None:
    """Accepts or rejects a revision that nobody has decided about; with `text`, accepts what a person wrote instead.

    The same decision twice by the same person is once, but for a newer comment. Raises Invalid, or Conflict when
    somebody was quicker or holds it.
    """
    if state not in {"accepted", "rejected"}:
        raise Invalid(f"“{state[:20]}” is no decision: accepted or rejected.", {"state": ["accepted or rejected"]})
    if revision.revised_id is None and not (text.strip() and state == "accepted"):
        raise Conflict(f"There is no revision to decide about: {revision.reason}. Write one, or leave it.")
    changed = session.execute(
        sa.update(Revision)
        .where(col(Revision.id) == revision.id, col(Revision.state) == "proposed")
        .where(sa.or_(col(Revision.holder_id).is_(None), col(Revision.holder_id) == account_id,
                      col(Revision.lease_until) < db_now(session)))
        .values(state=state, account_id=account_id, note=note.strip()[:10_000], decided_at=now(), holder_id=None,
                lease_until=None)
    )  # fmt: skip
    session.refresh(revision)
    if changed.rowcount == 0:  # type: ignore[attr-defined]
        if revision.state == "proposed":
            raise Conflict("Somebody else is looking at this revision just now. Go on with the next one.")
        if (revision.state, revision.account_id) != (state, account_id):
            raise Conflict("Somebody has decided about this revision meanwhile. Go on with the next one.")
        if state == "accepted" and text.strip() and not _stands(session, revision, text):
            raise Conflict("You have accepted this before, with another text: take that back first.")
        revision.note = newer_note(note, revision.note)
        return
    if state == "accepted" and text.strip():
        _put_in_place(session, made, revision, account_id, text.strip())
    _count(session, made, state, 1)


def take_back(session: Session, made: RevisionSet, revision: Revision, holder_id: int | None = None) -> None:
    """Opens a decision again, for `holder_id` to look at; what a person had written gives way to what the reviser
    wrote. Raises Conflict."""
    before = revision.state
    changed = session.execute(
        sa.update(Revision)
        .where(col(Revision.id) == revision.id, col(Revision.state) == before, col(Revision.state) != "proposed")
        .values(
            state="proposed",
            account_id=None,
            note="",
            decided_at=None,
            holder_id=holder_id,
            lease_until=db_now(session) + LEASE_S if holder_id else None,
        )
    )
    if changed.rowcount == 0:  # type: ignore[attr-defined]
        raise Conflict("Nobody has decided about this revision: there is nothing to take back.")
    session.refresh(revision)
    edit = edit_of(revision)
    if edit is not None:
        revision.revised_id = edit["before"]
        revision.steps = [step for step in revision.steps if "edited_by" not in step]
        session.flush()
    _count(session, made, before, -1)


def edit_of(revision: Revision) -> dict[str, Any] | None:
    """The step in which a person wrote the text, if one did."""
    return next((step for step in revision.steps if "edited_by" in step), None)


def _stands(session: Session, revision: Revision, text: str) -> bool:
    """Whether the revision reads like this."""
    return (
        revision.revised_id is not None and text.strip() == get(session, Completion, revision.revised_id).text.strip()
    )


def _put_in_place(session: Session, made: RevisionSet, revision: Revision, account_id: int, text: str) -> None:
    """A person's text as a completion of its own, under an arm that says that people wrote it."""
    original = get(session, Completion, revision.original_id)
    if text == original.text.strip():
        raise Invalid("This is the original, word for word: reject the revision instead.", {"text": ["the original"]})
    if _stands(session, revision, text):
        return  # nothing was changed: the reviser's own text is accepted
    # two who edit revisions of one prompt at this moment number their completions one after the other
    session.execute(sa.select(col(RevisionSet.id)).where(col(RevisionSet.id) == made.id).with_for_update())
    arm = find_or_make_imported_arm(session, made.project_id, f"people’s edits (set {made.id})")
    session.flush()
    taken = sa.select(sa.func.max(col(Completion.sample))).where(
        col(Completion.run_id) == made.run_id, col(Completion.arm_id) == arm.id,
        col(Completion.prompt_id) == revision.prompt_id,
    )  # fmt: skip
    last = session.execute(taken).scalar()
    row = Completion(
        prompt_id=revision.prompt_id, arm_id=arm.id, run_id=made.run_id or original.run_id, text=text,
        sample=0 if last is None else last + 1, stop_reason="imported",
    )  # fmt: skip
    session.add(row)
    session.flush()
    step = {"edited_by": get(session, Account, account_id).name, "before": revision.revised_id, "revision": text}
    revision.steps, revision.revised_id = [*revision.steps, step], row.id
    session.flush()


def _count(session: Session, made: RevisionSet, state: str, change: int) -> None:
    column = {"accepted": RevisionSet.n_accepted, "rejected": RevisionSet.n_rejected}[state]
    more = sa.update(RevisionSet).where(col(RevisionSet.id) == made.id)
    session.execute(more.values({column.key: column + change}))  # type: ignore[attr-defined]
