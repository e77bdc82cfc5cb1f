"""Two processes over gloo against one: the same steps, going on after a kill, and what one of them alone runs into."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlmodel import func, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import reading
from app.errors import AppError
from app.judging.models import Call
from app.projects.models import Project
from app.runs.models import Metric, Sampled
from app.training.recipes import DpoRecipe, GrpoRecipe, KtoRecipe, RewardRecipe, RlooRecipe, SftRecipe
from tests.chat_server import ChatServer
from tests.judging.rows import do, endpoint_judge, made, read, start
from tests.worker import test_judge_reward as judged
from tests.worker.test_judge_reward import demo, online
from tests.worker.test_kills import Deadly
from tests.worker.test_ppo import make, write_reward
from tests.worker.test_trl import OFFLINE, online_prompts, share_even
from tests.worker.tiny import IDS, Silent, preferences, same, weights_in, write_tiny
from tests.worker.two import in_both, in_two
from worker.dpo import fit_dpo, make_trainer
from worker.grpo import fit_grpo
from worker.kto import fit_kto
from worker.loading import Weights
from worker.ppo import train
from worker.ppo_models import load_ppo_models
from worker.reward import fit_reward
from worker.sft import fit_sft
from worker.trl_run import dry_step

__all__ = ["demo", "online"]  # fixtures

STEPS = 4
GIVEN: dict[str, Any] = {**OFFLINE, "max_steps": STEPS, "save_every": 2, "eval_every": 2}
ONLINE: dict[str, Any] = {"prompt_set": 1, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 10, "beta": 0.05}
Fit = Callable[[Weights, Path, Silent], dict[str, torch.Tensor]]


def offline(fit: Any, recipe: Any) -> Fit:
    def run(base: Weights, folder: Path, watch: Silent) -> dict[str, torch.Tensor]:
        return dict(fit(recipe, 3, base, preferences(), folder, watch)[0].state_dict())

    return run


def grouped(recipe: Any) -> Fit:
    def run(base: Weights, folder: Path, watch: Silent) -> dict[str, torch.Tensor]:
        prompts = online_prompts(base)  # six: the fourth step begins another pass over them
        return dict(fit_grpo(recipe, 3, base, prompts, None, share_even, folder, watch)[0].state_dict())

    return run


def ppo(is_lora: bool) -> Fit:
    def run(base: Weights, folder: Path, watch: Silent) -> dict[str, torch.Tensor]:
        folder.mkdir(parents=True, exist_ok=True)
        reward = write_reward(folder / f"reward {os.getpid()} {id(watch)}", base, is_lora)
        torch.manual_seed(0)
        models = load_ppo_models(base, reward, is_lora, 4, "float32")
        changes = {"iterations": STEPS, "rollouts": 8, "lr": 1e-3, "kl_target": 1.0, "kl_horizon": 20}
        loop, prompts = make(models, base, **changes)
        train(loop, prompts, None, folder, watch)
        return models.state()

    return run


METHODS: dict[str, Fit] = {
    "sft": offline(fit_sft, SftRecipe(**GIVEN)),
    "reward": offline(fit_reward, RewardRecipe(**GIVEN)),
    "dpo": offline(fit_dpo, DpoRecipe(**GIVEN, reference=1, sft_weight=0.5, accumulate=2)),
    "kto": offline(fit_kto, KtoRecipe(**GIVEN, reference=1)),
    "grpo": grouped(GrpoRecipe(**IDS, **ONLINE, steps=STEPS, lr=1e-3, save_every=2)),
    "rloo": grouped(RlooRecipe(**IDS, **ONLINE, steps=STEPS, lr=1e-3, save_every=2)),
    "ppo": ppo(is_lora=False),
    "ppo_lora": ppo(is_lora=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one_and_go_on_after_a_kill(base: Weights, tmp_path: Path, method: str) -> None:
    fit, alone = METHODS[method], Silent()
    one = fit(base, tmp_path / "one", alone)

    def work(folder: Path, kill_at: int, rank: int) -> Any:
        watch = Deadly(kill_at) if rank == 1 and kill_at else Silent()
        return fit(base, folder, watch), watch

    two, watch = in_two(functools.partial(work, tmp_path / "two", 0), tmp_path / "a")[0]
    # The same rows, draws and means: equal up to the order in which floats are added.
    moved = max(float((one[name] - value).abs().max()) for name, value in base_weights(base, one).items())
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 0.01 * moved
    assert alone.metrics.keys() == watch.metrics.keys()
    for step, curves in alone.metrics.items():
        assert curves.keys() == watch.metrics[step].keys()
        for name in curves.keys() - {"tokens_per_s"}:
            assert watch.metrics[step][name] == pytest.approx(curves[name], rel=1e-4, abs=1e-4), (step, name)

    if method not in {"kto", "grpo", "ppo"}:  # the others go on as these do
        return
    assert in_two(functools.partial(work, tmp_path / "cut", 3), tmp_path / "b") == [None, None]
    resumed, again = in_two(functools.partial(work, tmp_path / "cut", 0), tmp_path / "b")[0]
    assert again.resumed == [2]
    assert same(two, resumed)


def base_weights(base: Weights, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each tensor began as, where the base has it; what is fresh began near zero."""
    stored = weights_in(base.folder)
    return {name: stored.get(name.removeprefix("policy."), torch.zeros_like(value)) for name, value in like.items()}


def test_want_of_memory_in_one_process_ends_both_with_the_remedy(base: Weights, tmp_path: Path) -> None:
    def work(rank: int) -> str:
        trainer = make_trainer(DpoRecipe(**GIVEN, reference=1), 3, base, preferences(), tmp_path / "state")
        original = trainer.compute_loss

        def smaller(model: Any, inputs: Any, **given: Any) -> Any:
            loss = original(model, inputs, **given)  # it has met the other process by then, if it ever does
            if rank == 1 and len(inputs["input_ids"]) > 4:  # two texts a pair
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        trainer.compute_loss = smaller
        with pytest.raises(AppError) as told:
            dry_step(trainer)
        return told.value.message

    first, second = in_two(work, tmp_path / "out")
    assert first == second
    assert first.startswith("4 rows of the longest texts do not fit") and "2 fit: split a step into 2 parts" in first


@pytest.mark.parametrize(("given", "more"), [(judged.PPO, {}), (judged.GRPO, {"reward_by": "judge"})])
def test_the_first_process_asks_the_judge_for_both_and_alone_writes(
    demo: Project, online: dict[str, Any], tmp_path: Path, given: dict[str, Any], more: dict[str, Any]
) -> None:
    recipe = {**given, **more, **online}
    with ChatServer(judged.liking_a) as server:
        recipe["judge"] = endpoint_judge(demo.id, server.origin, usd_per_million_in=1.0)
        both = in_both(start(demo.id, **recipe), tmp_path / "both")
        n = len(server.requests)
        alone = do(demo.id, **recipe, name="alone")
        assert len(server.requests) == n  # it drew the very texts that were scored already
    one, two = (weights_in(settings().data_path / read(Checkpoint, made(run, "checkpoint")).path)
                for run in (alone, both))  # fmt: skip
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    with reading() as session:
        assert session.exec(select(func.count()).where(Call.run_id == both.id)).one() == both.cost["judge_calls"] > 8
        points = {run.id: session.exec(select(Metric.step, Metric.name).where(Metric.run_id == run.id)).all()
                  for run in (alone, both)}  # fmt: skip
        samples = session.exec(select(Sampled.step, Sampled.place).where(Sampled.run_id == both.id)).all()
    assert sorted(points[both.id]) == sorted(points[alone.id])
    assert samples and len(samples) == len(set(samples))
    assert both.cost["generated_tokens"] == alone.cost["generated_tokens"]


def test_what_goes_wrong_in_one_process_alone_is_the_run_s_error(
    demo: Project, online: dict[str, Any], tmp_path: Path
) -> None:
    rule = {**judged.PPO, **online, "constitution": None, "rule_weight": 1.0}

    def broken(job: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    failed = in_both(start(demo.id, **rule), tmp_path / "memory", do=broken)
    assert failed.status == "failed"
    assert failed.error is not None and failed.error.startswith("Process 1: Out of memory: CUDA out of memory.")
    refused = in_both(start(demo.id, **{**rule, "minibatches": 8}), tmp_path / "rows")
    assert refused.status == "failed" and "8 rows per step do not divide into 8 parts on 2" in (refused.error or "")
