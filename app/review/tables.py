"""The tables of review: queues, the answers and scores of a queue, and overrides."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import col

from app.accounts.models import Account
from app.judging.models import RatingSet, Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.projects.access import Member
from app.review.models import CHOICES, Answer, Mark, Override, Queue
from app.tables import Column, Filter, Table

LABELS = ("a", "b", "tie", "both_bad")
KINDS = ("audit", "repair", "adjudication", "scoring")


def queues_table(member: Member) -> Table:
    """The project's queues. A grader is not told whose labels they are."""
    root = f"/p/{member.project.slug}"
    number = sa.cast(col(Queue.id), sa.String)
    plain = sa.case(*((col(Queue.kind) == kind, kind.capitalize()) for kind in KINDS)) + " " + number
    state = sa.case(
        (col(Queue.closed_at).is_not(None), "closed"),
        (col(Queue.n_answered) >= col(Queue.n) * col(Queue.overlap), "done"), else_="open",
    )  # fmt: skip
    name: Any = Queue.name if member.may("viewer") else plain
    columns = [
        Column("name", name, "Queue", href=lambda row: f"{root}/review/{row['id']}"),
        Column("kind", Queue.kind, "Kind"),
        Column("answered", Queue.n_answered, "Answered", "number"),
        Column("places", col(Queue.n) * col(Queue.overlap), "Of", "number"),
        Column("overlap", Queue.overlap, "People per item", "number", is_shown=False),
        Column("state", state, "State", "badge"),
        Column("created_at", Queue.created_at, "Drawn", "when"),
        Column("id", Queue.id, is_shown=False),
    ]
    source: Any = Queue
    if member.may("viewer"):
        is_verdicts, is_ratings = (
            col(VerdictSet.id) == col(Queue.verdict_set_id), col(RatingSet.id) == col(Queue.rating_set_id)
        )  # fmt: skip
        source = sa.outerjoin(Queue, VerdictSet, is_verdicts).outerjoin(RatingSet, is_ratings)
        judged = sa.func.coalesce(VerdictSet.name, RatingSet.name)
        columns.insert(2, Column("verdict_set", judged, "Verdicts or scores", href=lambda row: _judged_url(root, row)))
        columns.append(Column("verdict_set_id", Queue.verdict_set_id, is_shown=False))
        columns.append(Column("rating_set_id", Queue.rating_set_id, is_shown=False))
    filters = [Filter("kind", Queue.kind, "Kind", KINDS), Filter("state", state, "State", ("open", "done", "closed"))]
    return Table("queues", columns, source, Queue.id, [Queue.project_id == member.project.id], filters)


def _judged_url(root: str, row: dict[str, Any]) -> str:
    if row["verdict_set_id"]:
        return f"{root}/judge/{row['verdict_set_id']}"
    return f"{root}/judge/ratings/{row['rating_set_id']}" if row["rating_set_id"] else ""


def answers_table(member: Member, queue: Queue) -> Table:
    """The answers of a queue, in the pair's own frame."""
    root = f"/p/{member.project.slug}/review/answers"
    columns = [
        Column("id", Answer.id, "Answer", "number", lambda row: f"{root}/{row['id']}"),
        Column("pair", Answer.pair_id, "Pair", "number"),
        Column("account", Account.name, "Who"),
        Column("first", Answer.first, "First answer", "word"),
        Column("later", Answer.later, "Later", "word"),
        Column("verdict", Verdict.outcome, "Verdict"),
        Column("is_swapped", Answer.is_swapped, is_shown=False),
        Column("seconds", Answer.seconds, "Seconds", "number"),
        Column("note", Answer.note, "Comment", "long"),
        Column("answered_at", Answer.answered_at, "When", "when"),
        Column("is_simulated", Account.is_simulated, is_shown=False),
    ]
    is_verdict = sa.and_(
        col(Verdict.pair_id) == col(Answer.pair_id), col(Verdict.verdict_set_id) == queue.verdict_set_id
    )
    source = sa.join(Answer, Account, col(Account.id) == col(Answer.account_id)).outerjoin(Verdict, is_verdict)
    where = [col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None)]
    filters = [Filter("first", Answer.first, "First answer", CHOICES), Filter("who", Account.name, "Who")]
    return Table(f"answers-{queue.id}", columns, source, Answer.id, _own(where, member), filters)


def _own(where: list[Any], member: Member) -> list[Any]:
    """A grader sees their own rows alone."""
    return where if member.may("viewer") else [*where, col(Account.id) == member.account.id]


def marks_table(member: Member, queue: Queue) -> Table:
    """The scores people gave in a queue."""
    root = f"/p/{member.project.slug}/review/marks"
    columns = [
        Column("id", Mark.id, "Score", "number", lambda row: f"{root}/{row['id']}"),
        Column("completion", Mark.completion_id, "Completion", "number"),
        Column("account", Account.name, "Who"),
        Column("scores", Mark.scores, "Scores"),
        Column("is_skipped", Mark.is_skipped, "Skipped or taken back"),
        Column("seconds", Mark.seconds, "Seconds", "number"),
        Column("note", Mark.note, "Comment", "long"),
        Column("answered_at", Mark.answered_at, "When", "when"),
        Column("is_simulated", Account.is_simulated, is_shown=False),
    ]
    source = sa.join(Mark, Account, col(Account.id) == col(Mark.account_id))
    where = [col(Mark.queue_id) == queue.id, col(Mark.answered_at).is_not(None)]
    return Table(f"scores-{queue.id}", columns, source, Mark.id, _own(where, member),
                 [Filter("who", Account.name, "Who")])  # fmt: skip


def results_table(member: Member, queue: Queue) -> Table:
    """What people said in a queue, of whichever kind."""
    return marks_table(member, queue) if queue.kind == "scoring" else answers_table(member, queue)


def overrides_table(member: Member) -> Table:
    """Every override of the project, standing or withdrawn."""
    by_hand = aliased(Account)
    root = f"/p/{member.project.slug}"
    columns = [
        Column("id", Override.id, "Override", "number"),
        Column("pair", Override.pair_id, "Pair", "number"),
        Column("pair_set", PairSet.name, "Pairs", href=lambda row: f"{root}/pairs/{row['pair_set_id']}"),
        Column("choice", Override.choice, "Label", "word"),
        Column("account", Account.name, "Who"),
        Column("why", Override.why, "Why", "long"),
        Column("made_at", Override.made_at, "Made", "when"),
        Column("withdrawn_at", Override.withdrawn_at, "Withdrawn", "when"),
        Column("withdrawn_by", by_hand.name, "Withdrawn by"),
        Column("answer", Override.answer_id, is_shown=False),
        Column("pair_set_id", PairSet.id, is_shown=False),
    ]
    source = (
        sa.join(Override, Pair, col(Pair.id) == col(Override.pair_id))
        .join(PairSet, col(PairSet.id) == col(Pair.pair_set_id))
        .join(Account, col(Account.id) == col(Override.account_id))
        .outerjoin(by_hand, col(by_hand.id) == col(Override.withdrawn_by_id))
    )
    state = sa.case((col(Override.withdrawn_at).is_(None), "standing"), else_="withdrawn")
    columns.append(Column("state", state, is_shown=False))
    # “+ 0” keeps SQLite from walking all pairs of the project to find the few that stand overridden
    of_project = col(PairSet.project_id) + 0 == member.project.id
    filters = [
        Filter("state", state, "State", ("standing", "withdrawn")),
        Filter("who", Account.name, "Who"),
        Filter("choice", Override.choice, "Label", LABELS),
        Filter("pair_set_id", col(Pair.pair_set_id) + 0, "Pair set", cast=int),
    ]
    return Table("overrides", columns, source, Override.id, [of_project], filters)
