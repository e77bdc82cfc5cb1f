"""Number formats: narrow weights need LoRA and a GPU, and say so before a run starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlmodel import Session

from app.db import db_now, transaction
from app.errors import AppError, Invalid
from app.runs.models import Worker
from app.training.recipes import PpoRecipe, RewardRecipe, SftRecipe
from tests.worker.tiny import write_tiny
from worker.loading import load_full, load_lora, load_reward
from worker.reward import make_classifier

PPO: dict[str, Any] = {"start": 1, "reference": 1, "prompt_set": 1, "rule_weight": 1.0}


@pytest.mark.parametrize("dtype", ["8-bit", "4-bit"])
def test_narrow_weights_are_lora_s_base_only(dtype: str) -> None:
    with pytest.raises(ValueError, match="cannot be trained themselves: choose LoRA"):
        SftRecipe.model_validate({"start": 1, "snapshot": 1, "dtype": dtype})
    assert SftRecipe.model_validate({"start": 1, "snapshot": 1, "dtype": dtype, "is_lora": True}).dtype == dtype


def add_worker(session: Session, name: str, queues: str, device: str, age: float = 0.0) -> None:
    session.add(Worker(name=name, queues=queues, device=device, beat_at=db_now(session) - age))
    session.flush()


def test_a_launch_is_refused_where_no_running_worker_has_a_gpu(database: str) -> None:
    recipe = PpoRecipe.model_validate({**PPO, "dtype": "4-bit", "is_lora": True})
    with transaction() as session:
        recipe.check(session, 1)  # nobody runs: the one that comes may have one
        add_worker(session, "gone", "gpu", "1 GPU", age=1e6)
        add_worker(session, "other", "io,cpu", "1 GPU")
        add_worker(session, "here", "gpu", "CPU, 2 cores")
        with pytest.raises(Invalid, match="no running worker has one") as refused:
            recipe.check(session, 1)
        assert "dtype" in refused.value.fields
        PpoRecipe.model_validate({**PPO, "dtype": "bfloat16", "is_lora": True}).check(session, 1)
        add_worker(session, "strong", "gpu", "2 GPU")
        recipe.check(session, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("dtype", ["8-bit", "4-bit"])
def test_a_worker_without_a_gpu_says_so_before_it_loads_anything(tmp_path: Path, dtype: str) -> None:
    base = write_tiny(tmp_path / "base")
    recipe = RewardRecipe.model_validate({"start": 1, "snapshot": 1, "is_lora": True, "dtype": dtype})
    ways: list[Callable[[], Any]] = [
        lambda: load_full(base, dtype), lambda: load_lora(base, 4, dtype), lambda: load_reward(base, dtype),
        lambda: make_classifier(base, recipe, 1),
    ]  # fmt: skip
    for load in ways:
        with pytest.raises(AppError, match=f"{dtype} weights need an NVIDIA GPU, and this worker has none"):
            load()
