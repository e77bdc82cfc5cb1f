"""Tiny checkpoints and preferences for tests of training, made in a second."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from app.prompts.demo_corpus import list_prompts
from app.training.recipes import DemoBaseRecipe
from worker.demo_base import train_base
from worker.loading import Weights
from worker.preferences import Preferences
from worker.saving import save_folder, write_model

STRICT = "Answer: {} — Confidence: high — Reasoning: it is so."
IDS = {"start": 1, "reference": 1}


class Silent:
    """A Watch that keeps what it is told, and can cancel at a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.resumed: list[int] = []
        self.samples: list[int] = []
        self.stop_after, self.done = stop_after, 0

    def check(self) -> None:
        if self.stop_after is not None and self.done >= self.stop_after:
            raise KeyboardInterrupt

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.done = done
        self.check()

    def metric(self, step: int, **values: float) -> None:
        self.metrics.setdefault(step, {}).update(values)

    def log(self, text: str, level: str = "info") -> None: ...

    def resumed_at(self, step: int) -> None:
        self.resumed.append(step)
        self.done = step

    def sampled(self, step: int, rows: Any) -> None:
        self.samples.append(step)

    def flush(self) -> None: ...

    def spend(self, **amounts: float) -> None: ...


@cache
def tiny_model(seed: int = 1) -> tuple[Any, Any]:
    """A Llama of about 30,000 weights after a few steps on the demo's corpus, and its tokenizer."""
    torch.set_num_threads(1)
    recipe = DemoBaseRecipe(
        steps=30, batch_size=16, hidden=32, mlp=64, layers=2, heads=2, vocabulary=400, positions=128
    )
    return train_base(recipe, seed, lambda step, values: None)


def write_tiny(folder: Path, seed: int = 1) -> Weights:
    """A full checkpoint in `folder`, sealed."""
    place, manifest_sha256 = save_folder(folder, lambda at: write_model(*tiny_model(seed), at))
    return Weights(str(place), manifest_sha256)


def preferences(n: int = 24) -> Preferences:
    """Strict answers chosen over plain ones."""
    rows = [
        {
            "prompt": p["messages"],
            "chosen": [{"role": "assistant", "content": STRICT.format(p["reference"])}],
            "rejected": [{"role": "assistant", "content": f"It is {p['reference']}."}],
        }
        for p in list_prompts()[: n + 8]
    ]
    return Preferences(rows[:n], rows[n:])


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor a checkpoint folder stores."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
