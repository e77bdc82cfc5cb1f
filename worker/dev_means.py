"""Dev metrics as means over rows or tokens. TRL takes the mean of its batches' means, and the last batch is smaller.

With 29 rows in batches of 16 and 13 the mean of 6/16 and 8/13 is 0.495, where 14 of 29 are right: 0.483. A loss over
tokens, as SFT's, is off even where batches have equally many rows.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch


class DevMeans:
    """Goes before one of TRL's trainers. `weigh` says how many rows or tokens a batch's mean of a metric stands for."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self._dev_weights: dict[str, list[float]] = defaultdict(list)
        super().__init__(*given, **named)

    def weigh(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        """By metric; "rows" for those that are not named."""
        raise NotImplementedError

    def add_loss(self, loss: torch.Tensor, weight: float) -> None:
        """Takes a batch's loss; the trainer's own mean of it, over rows, is right where nothing is done here."""

    def prediction_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        own = self.weigh(inputs)
        weights = dict(zip(own, self._sum(list(own.values())), strict=True))
        notes = self._metrics["eval"]  # type: ignore[attr-defined]
        before = {name: len(values) for name, values in notes.items()}
        found = super().prediction_step(model, inputs, *given, **named)  # type: ignore[misc]
        if found[0] is not None:
            self.add_loss(found[0], own["rows"])
        for name, values in notes.items():
            if len(values) > before.get(name, 0):
                self._dev_weights[name].append(weights.get(name, weights["rows"]))
        return found

    def _sum(self, values: list[float]) -> list[float]:
        """Over all processes."""
        accelerator = self.accelerator  # type: ignore[attr-defined]
        share = torch.tensor([values], dtype=torch.float64 if accelerator.device.type == "cpu" else torch.float32)
        total: list[float] = accelerator.gather(share.to(accelerator.device)).sum(0).tolist()
        return total

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
        if not self.model.training:  # type: ignore[attr-defined]
            notes: dict[str, list[float]] = self._metrics["eval"]  # type: ignore[attr-defined]
            for name, weights in self._dev_weights.items():
                if len(weights) == len(notes.get(name, ())) and sum(weights) > 0:
                    values = zip(weights, notes[name], strict=True)
                    notes[name] = [sum(weight * value for weight, value in values) / sum(weights)]
            self._dev_weights.clear()
            self.complete(notes)
        super().log(logs, *given, **named)  # type: ignore[misc]

    def complete(self, notes: dict[str, list[float]]) -> None:
        """Metrics that are made of others."""


class TokenMeans(DevMeans):
    """SFT's: loss, entropy and accuracy are means over the tokens that are learned."""

    def weigh(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        return {"rows": float((inputs["labels"][:, 1:] != -100).sum())}

    def add_loss(self, loss: torch.Tensor, weight: float) -> None:
        total, n = self._sum([float(loss) * weight, weight])
        self._metrics["eval"]["loss"].append(total / n if n else 0.0)  # type: ignore[attr-defined]


class RewardMeans(DevMeans):
    """A reward model's: over pairs."""

    def weigh(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        return {"rows": len(inputs["input_ids"]) / 2}


class PairMeans(DevMeans):
    """DPO's and SimPO's: over pairs, but what is said of tokens over tokens."""

    def weigh(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        kept = inputs["completion_mask"][:, 1:]
        return {
            "rows": len(kept) / 2, "entropy": float(kept.sum()),
            "mean_token_accuracy": float(kept.chunk(2)[0].sum()),
        }  # fmt: skip


class LoneMeans(DevMeans):
    """KTO's: over good or bad completions; the margin is the difference of the two means."""

    def weigh(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        labels = inputs["label"]
        n_good = float(sum(bool(one) for one in labels))
        n_bad = len(labels) - n_good
        sides = {f"{name}/{side}": n for name in ("rewards", "logps")
                 for side, n in (("chosen", n_good), ("rejected", n_bad))}  # fmt: skip
        return {"rows": float(len(labels)), "entropy": float(inputs["completion_mask"].sum()), **sides}

    def complete(self, notes: dict[str, list[float]]) -> None:
        good, bad = notes.get("rewards/chosen"), notes.get("rewards/rejected")
        if good and bad:
            notes["rewards/margins"] = [good[0] - bad[0]]
