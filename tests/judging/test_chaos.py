"""An endpoint of which three calls in ten go wrong in ten ways: every pair ends judged, or failed with a reason."""

from collections import Counter

import pytest
from sqlmodel import select

from app import db
from app.judging.models import Call, Opinion, Verdict
from app.projects.models import Project
from tests.chat_server import GARBAGE, HALF_JSON, NO_CHOICES, RESET, ChatServer, Fault, wait
from tests.judging.rows import do, endpoint_judge, make_pairs, set_of

TEN_KINDS = [
    Fault(408), Fault(409), wait(0), Fault(500), Fault(503), RESET, GARBAGE, HALF_JSON, NO_CHOICES, Fault(hang_s=2.2),
]  # fmt: skip
N = 60


@pytest.mark.parametrize("max_tries", [9, 1], ids=["tried again", "tried once"])
def test_a_chaotic_endpoint_leaves_no_pair_without_a_verdict_or_a_reason(project: Project, max_tries: int) -> None:
    with db.transaction() as session:
        texts = [(f"question {i}", "x" * (1 + i % 4), "y" * 3, None) for i in range(N)]
        pairs = make_pairs(session, project.id, texts).id
    with ChatServer(any_of=TEN_KINDS, fault_rate=0.3) as server:
        judge = endpoint_judge(project.id, server.origin)
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge, max_tries=max_tries, timeout_s=2,
                 concurrency=32, max_null=1)  # fmt: skip
    assert run.status == "done", run.error
    found = set_of(run)
    with db.reading() as session:
        verdicts, calls = session.exec(select(Verdict)).all(), session.exec(select(Call)).all()
        n_opinions = len(session.exec(select(Opinion)).all())
    assert found.n == len(verdicts) == N and n_opinions == 2 * N, "nothing lost, nothing doubled"
    assert {one.state for one in calls} <= {"answered", "failed"}
    assert sum(one.tries for one in calls) == len(server.requests), "every request is in the ledger"
    failed = [one for one in verdicts if one.outcome is None]
    assert all("no answer after" in one.reason for one in failed)
    assert all(one.failure for one in calls if one.state == "failed")
    if max_tries == 1:
        kinds = Counter(one.failure.partition(":")[0] for one in calls if one.state == "failed")
        assert len(failed) > N / 4 and len(kinds) >= 6, kinds
    else:
        assert len(server.requests) > 2 * N * 1.2
        # a call ends unanswered after nine faults in a row, or at its deadline, which a busy machine may reach sooner
        assert len(failed) <= N / 10, [one.reason for one in failed]
