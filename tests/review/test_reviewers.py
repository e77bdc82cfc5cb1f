"""Eight reviewers at once against the real server: nobody gets what another has, and no answer is lost."""

import subprocess
import time

import httpx
import pytest
import sqlalchemy as sa

from app.db import get, transaction
from app.launcher import web_command
from app.projects.models import Project
from app.review.leases import claim_statement
from app.review.models import Answer, Queue
from app.review.queues import make_queue
from app.review.recipes import AuditRecipe
from bench.reviewers import doubles, lost, review
from tests.review.rows import make_pairs, make_person, make_run, make_verdicts
from tests.servers import free_port


@pytest.mark.parametrize("overlap", [1, 2])
def test_eight_reviewers_for_some_seconds(project: Project, overlap: int) -> None:
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 300), ["tie"])
        recipe = AuditRecipe(verdict_set=verdicts.id, n=300, overlap=overlap)
        queue = make_queue(session, recipe, project.id, make_run(session, project, "audit").id)
        cookies = [make_person(session, project, f"reviewer {i}", "grader")[1] for i in range(8)]
    port = free_port()
    server = subprocess.Popen(web_command("127.0.0.1", port))
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                httpx.get(f"{url}/login")
                break
            except httpx.TransportError:
                assert server.poll() is None
                time.sleep(0.1)
        done = review(url, f"/p/demo/review/{queue.id}", cookies, 8)  # a busy machine serves few in four seconds
    finally:
        server.terminate()
        server.wait(20)
    assert not done.failures
    assert len(done.acknowledged) > 50
    assert len({cookie for cookie, _ in done.shown}) == 8
    assert (doubles(done, overlap), lost(done)) == (0, 0)
    with transaction() as session:
        assert get(session, Queue, queue.id).n_answered == len(done.acknowledged)


def test_taking_a_place_sorts_no_queue(project: Project) -> None:
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 2_000), ["tie"])
        queue = make_queue(session, AuditRecipe(verdict_set=verdicts.id, n=2_000), project.id,
                           make_run(session, project, "audit").id)  # fmt: skip
        session.flush()
        session.execute(sa.text("ANALYZE"))
        bind = session.get_bind()
        compiled = claim_statement(Answer, bind.dialect.name).compile(bind)
        given = compiled.construct_params({"queue": queue.id, "person": 1, "moment": 0.0, "until": 1.0})
        values = tuple(given[name] for name in compiled.positiontup or ()) if compiled.positional else given
        explain = "EXPLAIN " if bind.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        steps = session.connection().exec_driver_sql(explain + str(compiled), values)
        plan = "\n".join(str(tuple(row)) for row in steps)
    assert "ix_answer_queue_open" in plan
    assert "Sort" not in plan and "TEMP B-TREE" not in plan, plan
