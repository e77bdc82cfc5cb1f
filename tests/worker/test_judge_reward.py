"""A judge as the reward of PPO and GRPO: through the ledger, never asked twice, what is unreadable dropped."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import func, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import reading, transaction
from app.judging.models import Call, Judge
from app.projects.models import Project
from app.prompts.demo_corpus import list_prompts
from app.prompts.models import Prompt, PromptSet
from app.runs.models import Metric, Run
from app.runs.queue import cancel, finish, resume
from app.training.judge_calls import count_judge_calls, say_judge_calls
from app.training.recipes import GrpoRecipe, PpoRecipe, SftRecipe
from tests.benchmarks.rows import fresh_project, stored_checkpoint
from tests.chat_server import ChatServer, Fault, Request
from tests.judging.rows import claim_next, do, endpoint_judge, error_of, made, read, start
from tests.worker.test_rate import completion_of, long_checkpoint, rubric, scores
from tests.worker.tiny import same, weights_in, write_tiny
from worker.child import work
from worker.grpo import weigh
from worker.job import Cancelled, Job
from worker.ppo import train_ppo

TINY: dict[str, Any] = {"max_new_tokens": 8, "lr": 3e-3, "save_every": 1, "sample_every": 2, "timeout_s": 5}
PPO: dict[str, Any] = {"kind": "ppo", "iterations": 4, "rollouts": 8, **TINY}
GRPO: dict[str, Any] = {"kind": "grpo", "steps": 3, "prompts_per_step": 2, "group_size": 4, **TINY}


def liking_a(request: Request) -> str:
    """Scores by how often the letter a stands in the completion, which chance varies."""
    n = completion_of(request).count("a")
    return scores(request, long=min(1 + 2 * n, 10), strict=min(1 + n, 10))


def half_unreadable(request: Request) -> str:
    """About half of the texts, fixed by their hash, get an answer off the scale."""
    is_odd = hashlib.sha256(completion_of(request).encode()).digest()[0] & 1
    return scores(request, long=99, strict=1) if is_odd else liking_a(request)


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    return fresh_project()


@pytest.fixture
def online(demo: Project) -> dict[str, Any]:
    """A tiny policy, a prompt set and a rubric, as fields of a recipe."""
    constitution = rubric(demo)
    folder = settings().folder("tiny", "base") / "model"
    base = stored_checkpoint(demo, Path(write_tiny(folder).place))
    with transaction() as session:
        prompts = PromptSet(project_id=demo.id, name="demo", state="ready")
        session.add(prompts)
        session.flush()
        rows = list_prompts()
        few = [row for row in rows if row["split"] == "train"][:6] + [row for row in rows if row["split"] == "dev"][:3]
        for position, row in enumerate(few):
            given = {k: row[k] for k in ("messages", "reference", "split")}
            digest = hashlib.sha256(str(row).encode()).hexdigest()
            session.add(Prompt(set_id=prompts.id, position=position, grp=row["group"], sha256=digest, **given))
        session.flush()
        return {"start": base, "reference": base, "prompt_set": prompts.id, "constitution": constitution}


def weights_of_run(run: Run) -> Any:
    assert run.status == "done", run.error
    return weights_in(settings().data_path / read(Checkpoint, made(run, "checkpoint")).path)


def curve(run: Run, name: str) -> list[float | None]:
    with reading() as session:
        query = select(Metric.value).where(Metric.run_id == run.id, Metric.name == name).order_by(Metric.step)  # type: ignore[arg-type]
        return list(session.exec(query))


def test_ppo_by_an_endpoint_judge_asks_once_for_a_text_and_resumes_bit_equal(
    demo: Project, online: dict[str, Any]
) -> None:
    with ChatServer(liking_a) as server:
        judge = endpoint_judge(demo.id, server.origin, usd_per_million_in=1.0)
        whole = do(demo.id, **PPO, **online, judge=judge)
        asked = [completion_of(r) + r["messages"][-1]["content"].split("prompt ends")[0][22:] for r in server.requests
                 if "completion begins" in r["messages"][-1]["content"]]  # fmt: skip
        first = weights_of_run(whole)
        n = len(server.requests)
        stopped = start(demo.id, **{**PPO, "name": "again"}, **online, judge=judge)

        class StopsAfterTwo(Job):
            def progress(self, done: int, total: int, note: str = "") -> None:
                if done == 2:
                    with transaction() as session:
                        cancel(session, session.get_one(Run, self.run_id))
                    self._checked = 0.0
                super().progress(done, total, note)

        with pytest.raises(Cancelled):
            train_ppo(StopsAfterTwo(stopped.id, stopped.attempt))
        with transaction() as session:
            finish(session, stopped.id, stopped.attempt, "cancelled")
            resume(session, session.get_one(Run, stopped.id))
        again = claim_next()
        work(again.id, again.attempt)
        assert len(server.requests) == n  # every text was scored before: no second call
    assert same(first, weights_of_run(read(Run, stopped.id)))
    assert len(asked) == len({re.sub(r"<<<\w+", "", one) for one in asked})
    assert whole.cost["judge_calls"] == len(asked) and whole.cost["usd"] > 0
    assert curve(whole, "unreadable") == [0, 0, 0, 0]
    assert all(value is not None and 0 <= value <= 1 for value in curve(whole, "reward"))
    assert len(set(curve(whole, "reward"))) > 1


def test_unreadable_scores_are_dropped_and_counted(demo: Project, online: dict[str, Any]) -> None:
    with ChatServer(half_unreadable) as server:
        judge = endpoint_judge(demo.id, server.origin)
        ppo = do(demo.id, **PPO, **online, judge=judge, max_null=0.95)
        grpo = do(demo.id, **GRPO, **online, judge=judge, reward_by="judge", max_null=0.95)
        strict = do(demo.id, **PPO, **online, judge=judge, max_null=0.05)
    for run in (ppo, grpo):
        assert run.status == "done", run.error
        shares = curve(run, "unreadable")
        assert len(shares) >= 3 and any(one is not None and 0 < one < 1 for one in shares)
        assert all(one is not None for one in curve(run, "reward"))
        assert all(one is not None for one in curve(run, "grad_norm"))
    assert strict.status == "failed" and "are unreadable, more than the 5%" in error_of(strict)
    assert "no whole number from 1 to 10" in error_of(strict)


def test_the_budget_stops_the_run_and_a_dead_key_says_so(demo: Project, online: dict[str, Any]) -> None:
    with ChatServer(liking_a) as server:
        judge = endpoint_judge(demo.id, server.origin, usd_per_million_in=1000.0)
        stopped = do(demo.id, **PPO, **online, judge=judge, budget_usd=0.5, concurrency=1)
        n = len(server.requests)
        with reading() as session:
            spent = session.exec(select(func.sum(Call.cost_usd)).where(Call.run_id == stopped.id)).one()
    assert stopped.status == "failed" and "The budget of $0.5 is spent" in error_of(stopped)
    assert 0.5 <= spent < 1 and n < 12
    with ChatServer(lambda _: Fault(401, {}, '{"error": {"message": "bad key"}}')) as server:
        judge = endpoint_judge(demo.id, server.origin)
        refused = do(demo.id, **PPO, **online, judge=judge)
    assert refused.status == "failed" and "refuses every call" in error_of(refused)


def test_a_local_checkpoint_judges_ppo_and_a_mix(demo: Project, online: dict[str, Any]) -> None:
    made_judge = do(demo.id, kind="new_judge", judge_kind="checkpoint", checkpoint=long_checkpoint(demo))
    judge = made(made_judge, "judge")
    with reading() as session:
        assert session.get_one(Judge, judge).frozen_at is None
    ppo = do(demo.id, **{**PPO, "iterations": 2}, **online, judge=judge, judge_weight=2.0, rule_weight=1.0)
    weights_of_run(ppo)
    assert ppo.cost["judge_calls"] > 0
    assert all(value is not None and 0 <= value <= 3 for value in curve(ppo, "reward"))
    mix = do(demo.id, **{**GRPO, "kind": "rloo"}, **online, judge=judge, reward_by="mix", rule_weight=0.5)
    weights_of_run(mix)
    with reading() as session:
        assert session.get_one(Judge, judge).frozen_at is not None


def test_a_mix_without_one_of_its_parts_is_no_reward() -> None:
    reward = weigh([(2.0, lambda **_: [1.0, None]), (0.5, lambda **_: [4.0, 4.0])])
    assert reward(prompts=[]) == [4.0, None]


@pytest.mark.parametrize(
    ("recipe", "fields", "why"),
    [
        (PpoRecipe, {"judge": 1}, "choose both, or neither"),
        (PpoRecipe, {"constitution": 1, "rule_weight": 1}, "choose both, or neither"),
        (PpoRecipe, {"judge": 1, "constitution": 1, "judge_weight": 0}, "nothing rewards"),
        (GrpoRecipe, {"judge": 1, "constitution": 1}, "choose a judge exactly when"),
        (GrpoRecipe, {"reward_by": "judge"}, "choose a judge exactly when"),
        (GrpoRecipe, {"reward_by": "mix", "rule_weight": 1}, "a mix needs two parts"),
        (GrpoRecipe, {"rule_weight": 0}, "nothing rewards"),
    ],
)
def test_what_rewards_is_said_whole(recipe: Any, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        recipe(start=1, reference=1, prompt_set=1, **fields)


def test_the_form_says_how_often_the_judge_is_asked() -> None:
    ppo = {"judge": "1", "iterations": "10", "rollouts": "8", "sample_every": "5"}
    assert count_judge_calls(PpoRecipe, ppo) == (80, 64 * 4)
    grpo = {"judge": "1", "steps": "10", "prompts_per_step": "2", "group_size": "4", "num_iterations": "3"}
    assert count_judge_calls(GrpoRecipe, {**grpo, "sample_every": "x"})[0] == 4 * 8
    assert (
        "up to 80 completions" in say_judge_calls(PpoRecipe, ppo)[0]
        and "No cost is set" in say_judge_calls(PpoRecipe, ppo)[0]
    )
    assert "No cost" not in say_judge_calls(PpoRecipe, {**ppo, "budget_usd": "3"})[0]
    assert say_judge_calls(PpoRecipe, {"iterations": "10"}) == say_judge_calls(SftRecipe, {"judge": "1"}) == []


def test_a_judge_that_cannot_score_is_refused_at_the_launch(demo: Project, online: dict[str, Any]) -> None:
    rule = made(do(demo.id, kind="new_judge", judge_kind="rule"), "judge")
    with pytest.raises(Exception, match="gives no scores by principle"):
        start(demo.id, **PPO, **online, judge=rule)
