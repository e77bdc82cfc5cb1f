"""The counters of who has done how much equal a recount, whatever was answered, changed, skipped or taken back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlmodel import Session, col, select
from starlette.testclient import TestClient

from app import db
from app.accounts.logins import COOKIE
from app.db import get, reading, transaction
from app.errors import Conflict
from app.judging.models import Judge, Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.projects.models import Project
from app.review import agreement
from app.review.answers import change_answer, give_answer, withdraw
from app.review.leases import claim, give_back
from app.review.models import Answer, Mark, Override, Queue, Tally
from app.review.queues import claim_place, make_queue, read_progress
from app.review.recipes import AuditRecipe
from app.review.scoring import give_scores, take_back
from tests.review.rows import make_pairs, make_person, make_run
from tests.review.test_scoring import draw, make_ratings

Counts = dict[tuple[int, int], tuple[int, int]]


def kept(session: Session) -> Counts:
    return {(row.queue_id, row.account_id): (row.n, row.n_skipped) for row in session.exec(select(Tally)) if row.n}


def recounted(session: Session) -> Counts:
    found: Counts = {}
    for kind, is_skip in ((Answer, col(Answer.first) == "skip"), (Mark, col(Mark.is_skipped))):
        n_skipped = sa.func.sum(sa.case((is_skip, 1), else_=0))
        rows = session.execute(
            sa.select(col(kind.queue_id), col(kind.account_id), sa.func.count(), n_skipped)
            .where(col(kind.answered_at).is_not(None))
            .group_by(col(kind.queue_id), col(kind.account_id))
        )
        found |= {(row[0], row[1]): (row[2], row[3]) for row in rows}
    return found


def check() -> Counts:
    """That each person's counter and each queue's equal what is stored."""
    with reading() as session:
        counts = recounted(session)
        assert kept(session) == counts
        for queue in session.exec(select(Queue)):
            assert queue.n_answered == sum(n for (of, _), (n, _) in counts.items() if of == queue.id)
    return counts


def audit_of(session: Session, project: Project, pairs: PairSet, n: int) -> Queue:
    judge = Judge(project_id=project.id, name="a rule", kind="rule")
    session.add(judge)
    session.flush()
    verdicts = VerdictSet(project_id=project.id, name="by rule", pair_set_id=pairs.id, judge_id=judge.id)
    session.add(verdicts)
    session.flush()
    for pair in session.exec(select(Pair.id).where(Pair.pair_set_id == pairs.id)).all():
        session.add(Verdict(verdict_set_id=verdicts.id, pair_id=pair, outcome="a"))
    session.flush()
    recipe = AuditRecipe(verdict_set=verdicts.id, n=n)
    return make_queue(session, recipe, project.id, make_run(session, project, "audit").id)


def test_whatever_is_done_the_counters_equal_a_recount(project: Project) -> None:
    ratings = make_ratings(project)
    marks = draw(project, ratings, n=4)
    with transaction() as session:
        queue = audit_of(session, project, get(session, PairSet, ratings.pair_set_id or 0), 6)
        ann, bob = (make_person(session, project, name, "grader")[0].id for name in ("ann", "bob"))
    for person, choice in ((ann, "tie"), (bob, "left"), (ann, "skip"), (bob, "both_bad"), (ann, "right")):
        with transaction() as session:
            place = claim_place(session, queue, person)
            assert place is not None
            give_answer(session, place, queue, person, choice)
            give_answer(session, place, queue, person, choice)  # the same key twice
        check()
    assert place is not None
    with transaction() as session:
        change_answer(session, get(session, Answer, place.id), queue, ann, "skip")  # what was first stays
        withdraw(session, session.exec(select(Override).where(col(Override.withdrawn_at).is_(None))).all()[-1], bob)
        assert claim_place(session, queue, bob) is not None
        give_back(session, Answer, queue, bob)
    for step in ("score", "skip", "open a skip", "skip", "take scores back", "take them back again"):
        with transaction() as session:
            if step in {"score", "skip"}:
                mark = claim(session, Mark, marks, ann)
                assert mark is not None
                give_scores(session, mark, marks, ann, {"true": 3.0, "brief": 4.0} if step == "score" else None)
            else:
                is_skip = step == "open a skip"
                of = select(Mark).where(col(Mark.answered_at).is_not(None), Mark.account_id == ann)
                mark = next(one for one in session.exec(of) if bool(one.scores) != is_skip)
                take_back(session, mark, ann)
        check()
    assert check() == {(queue.id, ann): (3, 1), (queue.id, bob): (2, 0), (marks.id, ann): (2, 2)}
    with reading() as session:
        shown = [(one.name, one.n, one.n_skipped) for one in read_progress(session, queue)]
        assert shown == [("ann", 3, 1), ("bob", 2, 0)]
        before = kept(session)
    with transaction() as session:  # the same as the migration counts in a database of before
        session.execute(sa.delete(Tally))
        module = ScriptDirectory.from_config(db._alembic()).get_revision("0005").module
        for statement in module.FILL:
            session.execute(sa.text(statement))
        assert kept(session) == before


def test_answers_and_undos_at_one_moment_lose_no_count(project: Project) -> None:
    ratings = make_ratings(project, n=24)
    marks = draw(project, ratings, n=4)
    with transaction() as session:
        queue = audit_of(session, project, get(session, PairSet, ratings.pair_set_id or 0), 24)
        people = [make_person(session, project, f"person {i}", "grader")[0].id for i in range(3)]
        mark = claim(session, Mark, marks, people[0])
        assert mark is not None
        give_scores(session, mark, marks, people[0], None)

    def answer(number: int) -> None:
        person = people[number % 3]
        try:
            with transaction() as session:
                place = claim_place(session, queue, person)
                if place is not None:
                    give_answer(session, place, queue, person, "skip" if number % 4 == 0 else "tie")
            with transaction() as session:
                take_back(session, get(session, Mark, mark.id), people[0])
        except Conflict:
            pass  # another press of the same person was quicker

    with ThreadPoolExecutor(8) as many:
        for done in [many.submit(answer, number) for number in range(24)]:
            done.result()
    counts = check()
    assert sum(n for (of, _), (n, _) in counts.items() if of == queue.id) > 3
    assert (marks.id, people[0]) not in counts


def test_the_page_of_a_queue_counts_no_answers(client: TestClient, project: Project) -> None:
    with transaction() as session:
        queue = audit_of(session, project, make_pairs(session, project, 3), 3)
        ann, _ = make_person(session, project, "ann", "grader")
    for _ in range(2):
        with transaction() as session:
            place = claim_place(session, queue, ann.id)
            assert place is not None
            give_answer(session, place, queue, ann.id, "tie")
    assert COOKIE in client.cookies
    first = client.get(f"/p/demo/review/{queue.id}").text
    assert "ann" in first
    sent: list[str] = []
    sa.event.listen(db.engine(), "before_cursor_execute", lambda *given: sent.append(given[2]))
    assert client.get(f"/p/demo/review/{queue.id}").text == first
    of_answers = [one for one in sent if "FROM answer" in one]
    assert of_answers and all("LIMIT" in one for one in of_answers), of_answers


def test_a_page_of_a_large_audit_may_show_the_agreement_of_a_moment_ago(
    client: TestClient, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        queue = audit_of(session, project, make_pairs(session, project, 4), 4)
        ann, _ = make_person(session, project, "ann", "grader")

    def answer_one() -> None:
        with transaction() as session:
            place = claim_place(session, queue, ann.id)
            assert place is not None
            give_answer(session, place, queue, ann.id, "tie")

    url = f"/p/demo/review/{queue.id}"
    for n in (1, 2):
        answer_one()
        assert f"{n} of 4 pairs by 1 person" in client.get(url).text  # a small audit is always of this moment
    monkeypatch.setattr(agreement, "MANY", 3)
    monkeypatch.setattr(agreement, "REST", 1e9)
    answer_one()
    assert "3 of 4 pairs by 1 person" in client.get(url).text
    answer_one()
    assert "3 of 4 pairs by 1 person" in client.get(url).text
    with reading() as session:
        assert agreement.read_agreement(session, queue).n_audited == 4  # reports are of this moment
    assert "4 of 4 pairs by 1 person" in client.get(url).text
