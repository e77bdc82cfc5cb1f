"""A run that pauses once when its reward and the held-out scorer part: people get ten items, and it goes on."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from sqlmodel import col, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import reading, transaction
from app.judging.models import Opinion, Verdict
from app.pairs.models import Completion, Pair
from app.projects.models import Project
from app.prompts.models import Prompt
from app.review.models import Answer, Queue
from app.runs.models import Run
from app.runs.queue import outputs, resume
from app.training.budgets import amounts_of
from app.training.health import find_turn
from app.training.recipes import DpoRecipe, PpoRecipe
from tests.benchmarks.rows import demo_prompts, stored_checkpoint
from tests.chat_server import ChatServer, Request
from tests.judging.rows import claim_next, do, endpoint_judge, made, read, start
from tests.worker.test_ppo import write_reward
from tests.worker.test_rate import rubric, scores
from tests.worker.test_training_runs import ground, tiny_project  # noqa: F401  fixtures
from tests.worker.tiny import same, weights_in, write_tiny
from tests.worker.two import in_both
from worker.checkpoints import weights_of
from worker.child import work
from worker.loading import Weights
from worker.saving import seal_folder

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
TINY: dict[str, Any] = {"max_new_tokens": 10, "sample_every": 1, "save_every": 50, "is_paused_at_turn": True}
KINDS: dict[str, dict[str, Any]] = {
    "ppo": {**TINY, "iterations": 7, "rollouts": 8, "lr": 3e-3},
    "grpo": {**TINY, "steps": 7, "prompts_per_step": 2, "group_size": 4, "lr": 3e-3, "reward_by": "reward_model"},
}


def opposites(base: Weights, folder: Path) -> tuple[Weights, Weights]:
    """A reward model, and one whose every score is the first one's with the sign turned."""
    reward, opposite = (write_reward(folder / name, base, False) for name in ("reward", "opposite"))
    at = next(Path(opposite.place).glob("*.safetensors"))
    tensors = load_file(Path(reward.place) / at.name)
    tensors["score.weight"] = -tensors["score.weight"]
    save_file(tensors, at, metadata={"format": "pt"})
    seal_folder(Path(opposite.place))
    return reward, opposite


@pytest.fixture
def online(project: Project) -> dict[str, Any]:
    """A policy, dev and train prompts, a reward model, and as its watcher the very opposite of it."""
    folder = settings().folder("tiny", "pausing")
    base = write_tiny(folder / "base")
    reward, opposite = opposites(base, folder)
    with transaction() as session:
        prompts = demo_prompts(session, project, 16, "train")
        for row in session.exec(select(Prompt).where(Prompt.set_id == prompts.id).limit(12)):
            row.split = "dev"
            session.add(row)
        prompt_set = prompts.id
    start = stored_checkpoint(project, Path(base.place))
    trains, watches = (stored_checkpoint(project, Path(one.place), role="reward") for one in (reward, opposite))
    return {"start": start, "reference": start, "prompt_set": prompt_set, "reward": trains, "held_out": watches}


@pytest.fixture
def falling(project: Project) -> Iterator[dict[str, Any]]:
    """A judge in the watcher's place, who likes the second look best and each dozen texts after it less."""
    n_asked = count()

    def scored(request: Request) -> str:
        value = (9, 10, 9, 7, 6, 5, 4, 3)[next(n_asked) // 12]
        return scores(request, long=value, strict=value)

    with ChatServer(scored) as server:
        judge = endpoint_judge(project.id, server.origin, usd_per_million_in=1.0)
        yield {"held_out": None, "held_out_judge": judge, "held_out_constitution": rubric(project)}


def weights_of_run(run: Run) -> Any:
    assert run.status == "done", run.error
    return weights_in(settings().data_path / read(Checkpoint, made(run, "checkpoint")).path)


@ON_SQLITE
@pytest.mark.parametrize("kind", list(KINDS))
def test_it_pauses_once_hands_over_ten_and_goes_on_bit_equal(
    client: TestClient, project: Project, online: dict[str, Any], falling: dict[str, Any], kind: str
) -> None:
    fields = {**KINDS[kind], **online, **(falling if kind == "ppo" else {})}
    run = do(project.id, kind=kind, **fields)
    assert run.status == "cancelled" and run.is_paused, run.error
    assert run.error is not None and run.error.startswith("Paused after step ")
    assert 3 <= run.done < 7
    with reading() as session:
        (queue_id,) = outputs(session, run.id, "queue")
        queue = session.get_one(Queue, queue_id)
        pairs = session.exec(select(Pair).join(Answer, col(Answer.pair_id) == col(Pair.id))).all()
        verdicts = session.exec(select(Verdict).where(Verdict.verdict_set_id == queue.verdict_set_id)).all()
        n_opinions = len(session.exec(select(Opinion)).all())
        texts = {one.id: one.text for one in session.exec(select(Completion))}
    assert queue.kind == "audit" and queue.n == len(pairs) == len(verdicts) == n_opinions
    assert 5 <= queue.n <= 10 and f"{queue.n} pairs" in run.error and f"review queue {queue_id}" in run.error
    assert all(texts[pair.a_id] != texts[pair.b_id] for pair in pairs)
    if kind == "grpo":
        assert sum(verdict.p_a or 0 for verdict in verdicts) > len(verdicts) / 2  # then, on the whole, above now
    else:  # a judge's scores are no log-odds
        assert {(verdict.outcome, verdict.p_a) for verdict in verdicts} == {("a", None)}
        assert run.cost["recorder_calls"] == run.cost["judge_calls"] > 12 and run.cost["recorder_usd"] > 0
        assert amounts_of(run)["judge_calls"] == amounts_of(run)["usd"] == 0  # it taught nothing
    page = client.get(f"/p/demo/runs/{run.id}").text
    assert "badge-paused" in page and "Resume" in page and f"/p/demo/review/{queue_id}" in page
    panel = client.get(f"/p/demo/runs/{run.id}/panel/{kind}").text
    assert "Paused after step" in panel and "Held-out scorer" in panel and "Flight recorder" in panel
    assert ("m at http://127.0.0.1" in panel) == (kind == "ppo")
    first = client.get(f"/p/demo/review/{queue_id}/next", follow_redirects=True)
    assert first.status_code == 200 and "scores" not in first.text  # blind

    with transaction() as session:
        resume(session, session.get_one(Run, run.id))
    again = claim_next()
    work(again.id, again.attempt)
    resumed = read(Run, run.id)
    whole = do(project.id, kind=kind, **{**fields, "is_paused_at_turn": False})
    assert same(weights_of_run(resumed), weights_of_run(whole))
    assert resumed.error is None
    with reading() as session:
        assert outputs(session, run.id, "queue") == [queue_id]


@ON_SQLITE
@pytest.mark.parametrize("kind", list(KINDS))
def test_two_processes_pause_at_one_step_and_go_on_bit_equal(
    project: Project, online: dict[str, Any], falling: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    fields = {"kind": kind, **KINDS[kind], **online, **(falling if kind == "ppo" else {})}
    run = in_both(start(project.id, **fields), tmp_path / "paused")
    assert run.status == "cancelled" and run.is_paused, run.error
    assert run.error is not None and run.error.startswith(f"Paused after step {run.done}:")
    with reading() as session:
        queues = outputs(session, run.id, "queue")
    with transaction() as session:
        resume(session, session.get_one(Run, run.id))
    resumed = in_both(claim_next(), tmp_path / "resumed")
    whole = in_both(start(project.id, **{**fields, "is_paused_at_turn": False}), tmp_path / "whole")
    assert same(weights_of_run(resumed), weights_of_run(whole))
    with reading() as session:
        assert len(queues) == 1 and outputs(session, run.id, "queue") == queues


def test_dpo_pauses_by_its_accuracy_on_dev_pairs(tiny_project: Project, ground: dict[str, int]) -> None:  # noqa: F811
    with reading() as session:
        base = weights_of(session, ground["base"])
    reward, opposite = opposites(base, settings().folder("tiny", "pausing"))
    watchers = [stored_checkpoint(tiny_project, Path(one.place), role="reward") for one in (reward, opposite)]
    fields: dict[str, Any] = {
        "kind": "dpo", "start": ground["base"], "reference": ground["base"], "snapshot": ground["snapshot"], "lr": 3e-3,
        "batch_size": 8, "max_steps": 10, "max_length": 128, "eval_every": 1, "sample_every": 1, "sample_tokens": 16,
    }  # fmt: skip
    whole = do(tiny_project.id, **fields, held_out=watchers[0])
    first = weights_of_run(whole)
    stopped = []
    for watcher in watchers:  # one of the two dislikes what the other likes: either may turn
        run = do(tiny_project.id, **fields, held_out=watcher, is_paused_at_turn=True)
        assert run.status in {"done", "cancelled"}, run.error
        if run.is_paused:
            stopped.append(run.id)
            with transaction() as session:
                resume(session, session.get_one(Run, run.id))
            again = claim_next()
            work(again.id, again.attempt)
        assert same(weights_of_run(read(Run, run.id)), first)
    assert stopped


@ON_SQLITE
def test_who_cancels_a_run_has_not_paused_it(client: TestClient, project: Project) -> None:
    assert not Run(kind="x", queue="cpu", recipe={}, recipe_sha256="", project_id=1, status="cancelled").is_paused


@pytest.mark.parametrize(
    ("proxy", "watcher", "turned"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 2, 1], True),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], False),  # both rise
        ([5, 4, 3, 2, 1], [1, 2, 3, 2, 1], False),  # both fall
        ([1, 2, 3, 4, 5], [1, 9, 9.5, 9.4, 9.3], False),  # a fall within the noise
        ([1, 2, 3], [3, 2, 1], False),  # too few looks
    ],
)
def test_a_turn_is_a_fall_of_the_watcher_while_the_proxy_rises(proxy: Any, watcher: Any, turned: bool) -> None:
    curves = {"dev_reward": list(enumerate(proxy)), "dev_held_out": list(enumerate(watcher))}
    assert (find_turn(curves) is not None) == turned


@pytest.mark.parametrize("recipe", [DpoRecipe, PpoRecipe])
def test_without_a_watcher_nothing_could_pause_it(recipe: Any) -> None:
    fields = {"start": 1, "reference": 1, "prompt_set": 1, "snapshot": 1, "rule_weight": 1.0, "is_paused_at_turn": True}
    known = {name: value for name, value in fields.items() if name in recipe.model_fields}
    with pytest.raises(ValueError, match="nothing watches"):
        recipe(**known)
    assert recipe(**known, held_out=2).is_paused_at_turn
