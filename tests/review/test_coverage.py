"""A queue drawn from a judging that ended early, or that went on afterwards, says so wherever its figures stand."""

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.models import Account
from app.db import get, reading, transaction
from app.judging.models import Judge, RatingSet
from app.projects.models import Project
from app.report.limits import _people
from app.report.people import AuditLine
from app.review.agreement import read_agreement
from app.review.answers import give_answer
from app.review.coverage import read_part
from app.review.models import Queue
from app.review.queues import claim_place
from app.runs.models import LogLine, Run
from app.runs.queue import resume
from tests.chat_server import ChatServer, Fault
from tests.judging.rows import claim_next, do, endpoint_judge, made, make_pairs, read, set_of
from worker.child import work

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
DRAWN = "after 12 of 24 pairs"
ONLY = "This audit was drawn from those 12, whichever came first, and says nothing of the others"


def answer_all(queue_id: int) -> None:
    with transaction() as session:
        queue, me = get(session, Queue, queue_id), session.exec(select(Account.id)).first()
        assert me is not None
        while (place := claim_place(session, queue, me)) is not None:
            give_answer(session, place, queue, me, "left")


def test_an_audit_of_half_a_judging_speaks_of_that_half_alone(client: TestClient, project: Project) -> None:
    with transaction() as session:
        pairs = make_pairs(session, project.id, [(f"q {i}", f"x {i}", f"yy {i}", None) for i in range(24)]).id
    with ChatServer(faults=[*[None] * 12, Fault(401)]) as server:
        judge = endpoint_judge(project.id, server.origin)
        server.requests.clear()
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge, is_both_orders=False, concurrency=1)
        assert run.status == "failed" and set_of(run).n == 12, run.error
        drawn = do(project.id, kind="audit", verdict_set=set_of(run).id, n=20)
        early = made(drawn, "queue")
        answer_all(early)
        with reading() as session:
            said = session.exec(select(LogLine.text).where(LogLine.run_id == drawn.id)).all()
            assert any(DRAWN in line and "resume or repeat that run" in line for line in said)
            line = AuditLine(read_agreement(session, get(session, Queue, early)), get(session, Judge, judge), 0)
            assert any(ONLY in one for one in _people([], [line], True))  # the report
        for path in (f"review/{early}", "review", f"review/{early}/estimates"):
            page = client.get(f"/p/demo/{path}").text
            assert f"The judging failed {DRAWN}" in page and ONLY in page, path
        assert "stand for those" in client.get(f"/p/demo/review/{early}").text
        assert "all those judged pairs" in client.get(f"/p/demo/review/{early}/estimates").text
        with transaction() as session:
            resume(session, get(session, Run, run.id))
        again = claim_next()
        assert work(again.id, again.attempt) == "done", read(Run, run.id).error
    grown = "went on after this audit was drawn from 12 pairs; 24 are judged now"
    for path in (f"review/{early}", "review", f"review/{early}/estimates"):
        assert grown in client.get(f"/p/demo/{path}").text, path
    estimates = client.get(f"/p/demo/review/{early}/estimates").text
    assert "What people would say of all" not in estimates and "draw another audit" in estimates
    whole = made(do(project.id, kind="audit", verdict_set=set_of(run).id, n=20), "queue")
    answer_all(whole)
    page = client.get(f"/p/demo/review/{whole}").text + client.get(f"/p/demo/review/{whole}/estimates").text
    assert "stand for all of them" in page and "What people would say of all judged pairs" in page
    assert 'role="note"' not in page
    with transaction() as session:  # drawn by a version that did not keep what it drew from
        row = get(session, Run, drawn.id)
        row.cost = {name: value for name, value in row.cost.items() if name != "drawn_from"}
    assert "drawn from the pairs that were judged until then; 24" in client.get(f"/p/demo/review/{early}").text


def test_a_sample_of_half_the_scores_says_so_too(project: Project) -> None:
    with transaction() as session:
        judge = Judge(project_id=project.id, name="j", kind="rule")
        run = Run(project_id=project.id, kind="rate", queue="cpu", recipe={}, recipe_sha256="", status="cancelled",
                  total=10, attempt=1)  # fmt: skip
        session.add_all([judge, run])
        session.flush()
        ratings = RatingSet(project_id=project.id, name="r", judge_id=judge.id, run_id=run.id, n=4)
        session.add(ratings)
        session.flush()
        queue = Queue(project_id=project.id, name="s", rating_set_id=ratings.id, kind="scoring", n=4)
        session.add(queue)
        session.flush()
        said = read_part(session, queue).said
        assert "was cancelled after 4 of 10 completions" in said and "draw completions again" in said
        run.status = "done"
        assert read_part(session, queue).said == ""
