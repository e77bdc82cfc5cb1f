"""The form's memory forecast against counted bytes of real training steps, method by method, all weights and LoRA."""

from pathlib import Path

import pytest
import torch

from app.training.forecast import Method
from bench.forecast import LIMITS, forecast, measure
from bench.training_base import Shape, write_random_base
from worker.loading import Weights

# Activations decide; weights decide; half as wide numbers, whose copies in float32 are counted too.
BUSY = Shape(hidden=96, layers=3, heads=4, kv_heads=2, mlp=256, vocabulary=1000), 8, 64
HEAVY = Shape(hidden=192, layers=3, heads=4, kv_heads=4, mlp=768, vocabulary=4000, is_tied=False), 4, 32
METHODS: tuple[Method, ...] = ("sft", "reward", "dpo", "ppo", "grpo")
CASES = [(BUSY, "float32", method, rank) for method in METHODS for rank in (None, 4)]
CASES += [(HEAVY, "float32", method, rank) for method in ("sft", "reward", "ppo") for rank in (None, 4)]
CASES += [(BUSY, "bfloat16", method, 4) for method in ("dpo", "reward", "ppo")]
CASES += [(BUSY, "float32", "bi_encoder", 4)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, Weights]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        shape: write_random_base(folder / str(i), shape, "float32") for i, (shape, _, _) in enumerate((BUSY, HEAVY))
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on a CPU")
@pytest.mark.parametrize(("case", "dtype", "method", "rank"), CASES)
def test_the_forecast_is_near_what_training_holds(
    bases: dict[Shape, Weights],
    tmp_path: Path,
    case: tuple[Shape, int, int],
    dtype: str,
    method: Method,
    rank: int | None,
) -> None:
    shape, texts, length = case
    held = measure(method, bases[shape], texts, length, rank, dtype, tmp_path)
    found = forecast(bases[shape], method, texts, length, rank, dtype)
    low, high = LIMITS
    assert low <= found.n_bytes / held.peak <= high, (found, held)
