"""How far a policy has moved, along its own samples: two estimates of KL(π‖π_ref) for each completion, in nats.

After Schulman, “Approximating KL divergence” (2020, joschu.net/blog/kl-approx.html), with ρ_t = π_ref/π of the token
that π sampled at t:  k1 = Σ_t −log ρ_t, unbiased, of either sign;  k3 = Σ_t (ρ_t − 1 − log ρ_t), unbiased too where
nothing is cut away in sampling, never negative, and mostly less noisy. Both distributions are taken at the temperature
of the samples, so that this is the KL of what is sampled.

Shapes: b completions, n tokens of the completion.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.training.recipe_parts import NARROW
from worker.loading import Weights, device, load_full
from worker.rollout import Rollout, positions
from worker.tiled import Head, tiled_log_probs

ROWS = 16  # completions read at once

# (model, rollout, temperature) → the estimates
Measure = Callable[[Any, Rollout, float], "Distance"]


@dataclass(frozen=True)
class Distance:
    """The estimates of each completion."""

    k1: list[float]
    k3: list[float]


def estimate_kl(policy: Tensor, reference: Tensor, mask: Tensor) -> Distance:
    """Of the log-probabilities (b, n) that each of the two gives to the sampled tokens, where the mask (b, n) is 1."""
    log_ratio = ((policy - reference) * mask).double()
    k3 = (torch.expm1(-log_ratio) + log_ratio).clamp(min=0)  # below zero by rounding alone
    return Distance(log_ratio.sum(-1).tolist(), k3.sum(-1).tolist())


@torch.no_grad()
def read_log_probs(model: Any, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities (b, n) of a rollout's tokens, a few completions at a time and never all logits at once."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, found = Head(inner), []
    for rows in torch.arange(len(rollout.ids)).split(ROWS):
        ids, mask, tokens = rollout.ids[rows], rollout.attention[rows], rollout.tokens[rows]
        out = inner.base_model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
        hidden = out.last_hidden_state[:, -rollout.n - 1 : -1]
        found.append(tiled_log_probs(head, hidden, tokens, temperature)[0])
    return torch.cat(found)


class StartReference:
    """The weights that training began with. They wait in the machine's memory, so that the device holds one model while
    it trains, and take the trained ones' place while they read. Make it before the first step."""

    def __init__(self, model: Any) -> None:
        self.start = {
            name: one.detach().to("cpu", copy=True) for name, one in model.named_parameters() if one.requires_grad
        }

    @contextmanager
    def _in_place(self, model: Any) -> Iterator[None]:
        places = {name: one for name, one in model.named_parameters() if name in self.start}
        trained = {name: one.data for name, one in places.items()}
        try:
            for name, one in places.items():
                one.data = self.start[name].to(one.device)
            yield
        finally:
            for name, one in places.items():
                one.data = trained[name]

    def __call__(self, model: Any, rollout: Rollout, temperature: float) -> Distance:
        """The distance of `model` from where it began."""
        policy = read_log_probs(model, rollout, temperature)
        with self._in_place(model):
            reference = read_log_probs(model, rollout, temperature)
        return estimate_kl(policy, reference, rollout.mask)


class OtherReference:
    """A checkpoint that training did not begin with: a later round's reference. It waits in the machine's memory."""

    def __init__(self, weights: Weights, dtype: str) -> None:
        self.model = load_full(weights, "bfloat16" if dtype in NARROW else dtype).eval().requires_grad_(False).cpu()

    def __call__(self, model: Any, rollout: Rollout, temperature: float) -> Distance:
        """The distance of `model` from it."""
        policy = read_log_probs(model, rollout, temperature)
        reference = read_log_probs(self.model.to(device()), rollout, temperature)
        self.model.cpu()
        return estimate_kl(policy, reference, rollout.mask)
