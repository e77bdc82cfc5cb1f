"""Training killed with SIGKILL, again and again: the weights end bit-equal to those of a run that nobody touched.

Each attempt is a child of this process, forked once everything is imported, that kills itself at a step.
"""

import os
import random
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import worker.saving
import worker.trl_run
from app.training.recipes import DpoRecipe, KtoRecipe, RewardRecipe, SftRecipe, SimpoRecipe
from tests.worker.test_ppo import make, write_reward
from tests.worker.test_trl import OFFLINE
from tests.worker.tiny import Silent, preferences, same, write_tiny
from worker.dpo import fit_dpo
from worker.kto import fit_kto
from worker.loading import Weights
from worker.ppo import train
from worker.ppo_models import load_ppo_models
from worker.reward import fit_reward
from worker.sft import fit_sft

STEPS = 15  # 24 preferences, 8 a step, 5 epochs; PPO counts iterations
KILLS = {"dpo": 10, "ppo": 10}  # of our own loops; 3 of the others, which share DPO's
Fit = Callable[[Weights, Path, Silent], dict[str, torch.Tensor]]


class Deadly(Silent):
    """Dies at a step, without a word."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.done = done
        if done >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def offline(fit: Any, recipe: Any) -> Fit:
    def run(base: Weights, folder: Path, watch: Silent) -> dict[str, torch.Tensor]:
        model = fit(recipe, 3, base, preferences(), folder, watch)[0]
        return {name: value.clone() for name, value in model.state_dict().items()}

    return run


def ppo(base: Weights, folder: Path, watch: Silent) -> dict[str, torch.Tensor]:
    reward = write_reward(folder.parent / "reward", base, False)
    models = load_ppo_models(base, reward, False, 4, "float32")
    loop, prompts = make(models, base, iterations=STEPS, save_every=2)
    train(loop, prompts, None, folder, watch)
    return models.state()


GIVEN: dict[str, Any] = {**OFFLINE, "epochs": 5, "save_every": 2, "eval_every": 100}
METHODS: dict[str, Fit] = {
    "sft": offline(fit_sft, SftRecipe(**GIVEN)),
    "reward": offline(fit_reward, RewardRecipe(**GIVEN)),
    "bi_encoder": offline(fit_reward, RewardRecipe(**GIVEN, architecture="bi_encoder", scoring="cosine", is_lora=True)),
    "dpo": offline(fit_dpo, DpoRecipe(**GIVEN, reference=1)),
    "simpo": offline(fit_dpo, SimpoRecipe(**GIVEN)),
    "kto": offline(fit_kto, KtoRecipe(**GIVEN, reference=1)),
    "ppo": ppo,
}


def in_child(work: Callable[[], object]) -> int:
    """Does something in a forked child; gives the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  whatever it was, the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_steps_the_weights_are_bit_equal(base: Weights, tmp_path: Path, method: str) -> None:
    fit, untouched = METHODS[method], Silent()
    whole = fit(base, tmp_path / "whole" / "state", untouched)
    folder, place = tmp_path / "cut" / "state", tmp_path / "weights.pt"
    folder.parent.mkdir()
    at = sorted(random.Random(f"kills {method}").choices(range(1, STEPS + 1), k=KILLS.get(method, 3)))
    for step in at:
        assert in_child(partial(fit, base, folder, Deadly(step))) == signal.SIGKILL

    def finish() -> None:
        watch = Silent()
        torch.save((fit(base, folder, watch), watch.metrics[STEPS]), place)

    assert in_child(finish) == 0
    weights, metrics = torch.load(place, weights_only=True)
    assert same(whole, weights)
    assert ("tokens" in metrics) == (method != "ppo")
    assert metrics.get("tokens") == untouched.metrics[STEPS].get("tokens"), "trained tokens are counted over all parts"


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_killed_while_a_checkpoint_is_written_it_falls_back(base: Weights, tmp_path: Path, method: str) -> None:
    fit = METHODS[method]
    whole = fit(base, tmp_path / "whole" / "state", Silent())
    folder, place = tmp_path / "cut" / "state", tmp_path / "weights.pt"
    folder.parent.mkdir()

    def die_in_the_third_write() -> None:
        """All files of the third state stand, one of them cut short, and its manifest is not written yet."""
        seal, seen = worker.saving.seal_folder, []

        def sealed(at: Path, *facts: Any) -> str:
            seen.append(at)
            if len(seen) == 3:
                largest = max((path for path in at.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
                os.truncate(largest, largest.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return seal(at, *facts)

        for module in (worker.saving, worker.trl_run):
            setattr(module, "seal_folder", sealed)  # noqa: B010  where both look it up
        fit(base, folder, Silent())

    assert in_child(die_in_the_third_write) == signal.SIGKILL
    watch = Silent()

    def go_on() -> None:
        torch.save(fit(base, folder, watch), place)
        (tmp_path / "resumed").write_text(str(watch.resumed[0]))

    assert in_child(go_on) == 0
    assert int((tmp_path / "resumed").read_text()) < 6  # the state of step 6 was the one that was cut
    assert same(whole, torch.load(place, weights_only=True))
