"""Bytes that training holds: the counter itself, and PPO's four models beside DPO's one on the same base."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from app.training.forecast import count_adapter, count_parameters
from bench.held import Held, bytes_of
from bench.memory import measure
from bench.training_base import Shape, write_random_base

SHAPE = Shape(hidden=192, layers=4, heads=4, kv_heads=2, mlp=512, vocabulary=2000)
CONFIG = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 2000, "tie_word_embeddings": True,
}  # fmt: skip


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    x = torch.zeros(1000)
    held = Held([x, x.view(10, 100)])
    assert held.now == 4000
    with held:
        y = x + 1
        views = y.view(10, 100)[:5], y.detach()
        assert held.now == 8000
        del y
        assert held.now == 8000  # its views hold it
        del views
        assert held.now == 4000
        z = (x * 2).requires_grad_()
        (z * z).sum().backward()
        assert z.grad is not None and held.now == 4000 + 4000 + 4000
    assert held.peak >= 4 * 4000
    assert bytes_of([x, x[:5], torch.zeros(3)]) == 4012


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on a CPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ppo_holds_at_most_a_tenth_more_than_dpo(tmp_path: Path, dtype: str) -> None:
    base = write_random_base(tmp_path / "base", SHAPE, "float32")
    asked = Namespace(texts=4, length=64, rank=2)
    dpo, ppo = (measure(name, base, asked, dtype) for name in ("dpo", "ppo"))
    assert ppo.peak <= 1.10 * dpo.peak
    # Four models are one base: beside it nothing but adapters in float32, and a head each for value and reward.
    width = {"float32": 4, "bfloat16": 2}[dtype]
    base_bytes, adapter_bytes = count_parameters(CONFIG) * width, count_adapter(CONFIG, asked.rank) * 4
    assert ppo.weights < base_bytes + 3.1 * adapter_bytes
    assert ppo.optimizer == pytest.approx(2 * ppo.gradients, rel=0.01)
    assert ppo.gradients == pytest.approx(2 * adapter_bytes, rel=0.05)
