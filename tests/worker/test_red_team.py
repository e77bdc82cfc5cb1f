"""A red team written by an endpoint: its answers stand in the call ledger, and a budget stops it."""

from sqlmodel import select

from app.checkpoints.endpoints import make_endpoint
from app.checkpoints.models import Endpoint
from app.db import get, reading, transaction
from app.judging.models import Call
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import Run
from app.runs.queue import outputs, resume
from tests.chat_server import ChatServer
from tests.judging.rows import claim_next, do, make_pairs, read
from worker.child import work


def test_a_budget_stops_the_writing_and_nothing_written_is_paid_for_again(project: Project) -> None:
    said = iter(f"How would one go about number {word}?" for word in ["one", "two", "three", "four", "five", "six"])
    with ChatServer(lambda _: next(said)) as server:
        with transaction() as session:
            seeds = make_pairs(session, project.id, [(f"seed {i}", "a", "b", None) for i in range(4)]).prompt_set_id
            # an answer of seven words costs 7 dollars
            endpoint = make_endpoint(session, project.id, origin=server.origin, model="m", usd_per_million_out=1e6).id
        recipe = {"prompt_set": seeds, "way": "model", "endpoint": endpoint, "n": 6, "near": 1.0, "concurrency": 1}
        stopped = do(project.id, kind="red_team", budget_usd=20, **recipe)
        assert stopped.status == "failed"
        assert "The budget of $20 is spent ($21.0000): 3 of 6 prompts are written" in str(stopped.error)
        with transaction() as session:
            get(session, Endpoint, endpoint).usd_per_million_out = 0.0
        whole = do(project.id, kind="red_team", **recipe)
        assert whole.status == "done", whole.error
        assert len(server.requests) == 6, "what was written before the budget's end was asked for again"
        with reading() as session:
            (made,) = outputs(session, whole.id, "prompt_set")
            assert {one.run_id for one in session.exec(select(Call))} == {stopped.id, whole.id}
        assert (read(PromptSet, made).n, whole.cost["generation_calls"]) == (6, 3)
    assert "judge_calls" not in stopped.cost | whole.cost  # nobody judged
    assert (stopped.cost["usd"], stopped.cost["generated_tokens"], whole.cost["generated_tokens"]) == (21, 21, 42)


def test_failed_calls_are_asked_again_when_the_run_is_resumed(project: Project) -> None:
    with ChatServer(lambda _: f"Prompt number {len(server.requests)}, please", refuses=("max_tokens",)) as server:
        with transaction() as session:
            seeds = make_pairs(session, project.id, [(f"seed {i}", "a", "b", None) for i in range(2)]).prompt_set_id
            endpoint = make_endpoint(session, project.id, origin=server.origin, model="m").id
        run = do(project.id, kind="red_team", prompt_set=seeds, way="model", endpoint=endpoint, n=2, near=1.0)
        assert (
            run.status == "failed" and "2 of 2 calls failed" in str(run.error) and "resume this run" in str(run.error)
        )
        server.refuses = ()
        with transaction() as session:
            resume(session, get(session, Run, run.id))
        again = claim_next()
        assert work(again.id, again.attempt) == "done", read(Run, run.id).error
    assert len(server.requests) == 4
