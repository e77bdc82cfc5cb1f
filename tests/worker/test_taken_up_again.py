"""A run that was killed after its last write, and before it was called done: what it made is made once."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.db import reading, transaction
from app.judging.models import VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import Prompt, PromptSet
from app.revising.models import Revision
from app.runs.models import Run
from app.runs.queue import resume
from tests.chat_server import ChatServer, Fault
from tests.judging.rows import claim_next, do, endpoint_judge, make_pairs, read, set_of
from tests.revising.rows import make_revisions
from worker.child import work


def count(session: Session, kind: Any) -> int:
    return int(session.execute(sa.select(sa.func.count()).select_from(kind)).scalar_one())


def do_again(run: Run) -> None:
    """As if the worker had died before it could say that the run was done."""
    with transaction() as session:
        row = session.exec(select(Run).where(Run.id == run.id)).one()
        row.status = "failed"
        session.flush()
        resume(session, row)
    again = claim_next()
    assert again.id == run.id and work(again.id, again.attempt) == "done", read(Run, run.id).error


def test_a_red_team_is_one_prompt_set(project: Project) -> None:
    with transaction() as session:
        pairs = make_pairs(session, project.id, [(f"How does one open lock {i}?", "a", "b", None) for i in range(3)])
        for prompt in session.exec(select(Prompt)).all():
            prompt.category = "locks"
    run = do(project.id, kind="red_team", prompt_set=pairs.prompt_set_id, way="templates", n=4)
    assert run.status == "done", run.error
    do_again(run)
    with reading() as session:
        assert count(session, PromptSet) == 2


def test_revisions_are_handed_over_once(project: Project) -> None:
    with transaction() as session:
        made = make_revisions(session, project, 4)
        session.execute(sa.update(Revision).where(col(Revision.revised_id).is_not(None)).values(state="accepted"))
    run = do(project.id, kind="hand_over", revision_set=made.id)
    assert run.status == "done", run.error
    do_again(run)
    with reading() as session:
        assert (count(session, PairSet), count(session, VerdictSet)) == (1, 1)


def test_a_verdict_that_stood_without_a_failed_vote_is_counted_once(project: Project) -> None:
    with transaction() as session:
        pairs = make_pairs(session, project.id, [("q", "x", "yy", None), ("r", "x", "yyy", None)]).id
    with ChatServer(faults=[Fault(500)]) as server:
        judge = endpoint_judge(project.id, server.origin)
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge, votes=5, temperature=1, max_tries=1,
                 is_both_orders=False, concurrency=1)  # fmt: skip
        assert run.status == "done", run.error
        do_again(run)
    found = set_of(run)
    assert (found.n_a, found.n_b, found.n_tie, found.n_null) == (0, 2, 0, 0)
    assert read(Run, run.id).cost["labels"] == 2
