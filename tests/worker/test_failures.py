"""Want of memory and of disk space: named, with a remedy, before the run has cost anything."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import AppError
from app.training.recipes import DpoRecipe, RewardRecipe, SftRecipe
from tests.worker.test_trl import OFFLINE
from tests.worker.tiny import Silent, preferences, same, write_tiny
from worker.dpo import make_trainer
from worker.failures import remedy_for
from worker.loading import Weights
from worker.reward import fit_reward
from worker.sft import fit_sft
from worker.trl_run import dry_step


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def test_a_full_disk_is_named_however_it_is_wrapped() -> None:
    with pytest.raises(OSError) as found, open("/dev/full", "w") as file:  # the system's own device without space
        file.write("x")
        file.flush()
    assert "disk is full" in (remedy_for(found.value) or "")
    try:
        try:
            raise found.value
        except OSError as error:
            raise RuntimeError("could not write the file") from error
    except RuntimeError as wrapped:
        assert "disk is full" in (remedy_for(wrapped) or "")
    with pytest.raises(RuntimeError) as told:  # torch keeps no error code
        torch.save({"x": torch.zeros(100_000)}, "/dev/full")
    assert "disk is full" in (remedy_for(told.value) or "")


def test_want_of_memory_is_named_and_other_errors_are_not() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        assert "bfloat16" in (remedy_for(error) or "")
    assert remedy_for(ValueError("no such thing")) is None
    assert remedy_for(KeyError("x")) is None


def test_the_dry_step_takes_the_longest_rows_and_leaves_no_trace(base: Weights, tmp_path: Path) -> None:
    trainer = make_trainer(DpoRecipe(**OFFLINE, reference=1), 3, base, preferences(), tmp_path / "state")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    seen: list[int] = []
    original = trainer.compute_loss

    def watched(model: Any, inputs: Any, **given: Any) -> Any:
        seen.append(inputs["input_ids"].shape[1])
        return original(model, inputs, **given)

    trainer.compute_loss = watched
    dry_step(trainer)
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset
    )
    assert seen == [longest]
    assert same(before, dict(trainer.model.state_dict()))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert not trainer._metrics["train"]


def test_what_would_fit_is_said(base: Weights, tmp_path: Path) -> None:
    trainer = make_trainer(DpoRecipe(**OFFLINE, reference=1), 3, base, preferences(), tmp_path / "state")
    original = trainer.compute_loss

    def small(model: Any, inputs: Any, **given: Any) -> Any:
        if len(inputs["input_ids"]) > 4:  # two texts a pair
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, inputs, **given)

    trainer.compute_loss = small
    with pytest.raises(AppError, match="2 fit: split a step into 4 parts"):
        dry_step(trainer)

    def never(model: Any, inputs: Any, **given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.compute_loss = never
    with pytest.raises(AppError, match="not even one fits"):
        dry_step(trainer)


@pytest.mark.parametrize(("fit", "recipe"), [(fit_sft, SftRecipe), (fit_reward, RewardRecipe)])
def test_every_offline_trainer_tries_first(base: Weights, tmp_path: Path, fit: Any, recipe: Any) -> None:
    import worker.trl_run

    tried: list[Any] = []
    original = worker.trl_run.dry_step
    worker.trl_run.dry_step = lambda trainer: (tried.append(trainer), original(trainer))  # type: ignore[assignment,func-returns-value]
    try:
        fit(recipe(**{**OFFLINE, "max_steps": 1}), 3, base, preferences(8), tmp_path / "state", Silent())
    finally:
        worker.trl_run.dry_step = original
    assert len(tried) == 1
