"""Completions from an endpoint go through the call ledger: killed runs, budgets, and what another run may reuse."""

import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from app.checkpoints.endpoints import make_endpoint
from app.checkpoints.models import Arm
from app.db import get, reading, transaction
from app.judging.models import Call
from app.pairs.models import Completion
from app.projects.models import Project
from app.runs.models import QUEUES, Run
from app.runs.queue import claim, give_back
from tests.benchmarks.rows import demo_prompts, fresh_project
from tests.chat_server import ChatServer
from tests.judging.rows import spawn
from tests.prompts.rows import again, do, made, start
from worker.ledger import Limits

IN_FLIGHT = Limits().concurrency


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about calls, not about databases."""
    return fresh_project()


def recipe(project: Project, server: ChatServer, n: int = 20, **values: Any) -> dict[str, Any]:
    with transaction() as session:
        endpoint = make_endpoint(session, project.id, origin=server.origin, model="m", usd_per_million_out=1e6).id
        prompts = demo_prompts(session, project, n, "train").id
    return {"prompt_set": prompts, "endpoint": endpoint, "pairing": "none", **values}


def echo(request: dict[str, Any]) -> str:
    return "re " + request["messages"][-1]["content"].split()[-1]


def texts(run: Run) -> list[tuple[int, int, str]]:
    with reading() as session:
        rows = session.exec(select(Completion).where(Completion.run_id == run.id)).all()
        return sorted((one.prompt_id, one.sample, one.text) for one in rows)


def n_stored(run: Run) -> int:
    with reading() as session:
        return session.scalar(sa.select(sa.func.count()).where(col(Completion.run_id) == run.id)) or 0


def test_killed_by_nine_it_writes_the_same_and_pays_only_for_what_was_in_flight(demo: Project) -> None:
    with ChatServer(echo, delay_s=0.05) as server:
        values = recipe(demo, server, 60, samples=2)
        run = start(demo.id, "generate", **values)
        child = spawn(run)
        deadline = time.monotonic() + 60
        while n_stored(run) < IN_FLIGHT and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait()
        n_before = n_stored(run)
        assert 0 < n_before < 120
        with transaction() as session:
            give_back(session, run.id, run.attempt, is_death=True, why="killed by the test")
        with transaction() as session:
            second = claim(session, QUEUES, "test", None)
        assert second is not None and spawn(second).wait(60) == 0
        n_asked = len(server.requests)
        run = again(run.id)
        assert run.status == "done", run.error
        server.delay_s = 0
        copy = do(demo.id, "generate", **values)
    assert n_asked - 120 <= IN_FLIGHT
    written = texts(run)
    assert [(key, sample) for key, sample, _ in written] == sorted({(key, sample) for key, sample, _ in written})
    assert len(written) == 120 and texts(copy) == written and len(server.requests) == n_asked, "the same again is free"
    assert run.cost["generated_tokens"] == run.cost["usd"] == 2 * 120, "each answer is counted once"
    assert run.cost["generation_calls"] == 120 and "judge_calls" not in run.cost and "usd" not in copy.cost
    with reading() as session:
        calls = session.exec(select(Call)).all()
        assert {one.state for one in calls} == {"answered"} and len(calls) == 120
        assert {one.sample for one in calls} == {0, 1}


def test_another_seed_asks_anew_and_a_greedy_request_does_not(demo: Project) -> None:
    numbers = iter(range(10**6))
    with ChatServer(lambda _: f"answer {next(numbers)}") as server:
        values = recipe(demo, server, 6, samples=2)
        first = do(demo.id, "generate", **values, seed=1)
        other = do(demo.id, "generate", **values, seed=2)
        assert len(server.requests) == 24
        assert not {text for *_, text in texts(first)} & {text for *_, text in texts(other)}
        more = do(demo.id, "generate", **{**values, "samples": 3}, seed=1)
        assert len(server.requests) == 30 and set(texts(first)) < set(texts(more)), "only the third sample was asked"
        greedy = {"decoding": {"temperature": 0.0}}
        once = do(demo.id, "generate", **values, **greedy, seed=1)
        again_greedy = do(demo.id, "generate", **values, **greedy, seed=2)
    assert len(server.requests) == 42 and texts(once) == texts(again_greedy)


def test_the_budget_stops_and_a_larger_one_pays_for_the_rest_only(demo: Project) -> None:
    with ChatServer(echo) as server:
        values = recipe(demo, server, 60, samples=1)
        stopped = do(demo.id, "generate", **values, budget_usd=10.0)
        assert stopped.status == "failed" and "The budget of $10 is spent" in str(stopped.error)
        n = len(server.requests)
        assert stopped.cost["usd"] == 2 * n and 5 <= n <= 5 + IN_FLIGHT
        assert len(texts(stopped)) == n, "what was paid for is stored"
        whole = do(demo.id, "generate", **values, budget_usd=1000.0)
    assert whole.status == "done", whole.error
    assert len(server.requests) == 60 and len(texts(whole)) == 60
    assert whole.cost["usd"] == 2 * (60 - n)


def test_a_grading_asks_arms_at_endpoints_within_its_budget(demo: Project) -> None:
    numbers = iter(range(10**6))
    with ChatServer(lambda _: f"answer {next(numbers)}") as server:
        values = recipe(demo, server, 4, samples=1)
        arms = [made(do(demo.id, "generate", **values, system=said), "arm") for said in ("", "Be brief.")]
        n = len(server.requests)
        grading = {"prompt_set": values["prompt_set"], "splits": ["train"], "arms": arms, "n_prompts": 4, "seed": 9}
        stopped = do(demo.id, "grading", **grading, budget_usd=0)
        assert stopped.status == "failed" and "budget of $0" in str(stopped.error)
        assert len(server.requests) == n
        done = do(demo.id, "grading", **grading)
    assert done.status == "done", done.error
    assert len(server.requests) == n + 8 and done.cost["usd"] == 16
    with reading() as session:
        assert {get(session, Arm, key).kind for key in arms} == {"endpoint"}
