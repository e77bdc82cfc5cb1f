"""Log-probabilities of given tokens from hidden states, tile by tile, so that no table of all logits is ever held.

With a vocabulary of 128,000 and 64 completions of 512 tokens, that table and its gradient would take 34 GB in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = 2**24  # logits held at once: 64 MB in float32
SMALL_TILE = 2**22  # the same on a CPU under a frozen head, where a tile costs nothing but itself


class Head:
    """A model's way from hidden states to logits, whatever it does after the last matrix."""

    def __init__(self, model: Any) -> None:
        self.matrix = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
        self.times = getattr(config, "logit_scale", None) or 1.0  # Cohere
        self.over = getattr(config, "logits_scaling", None) or 1.0  # Granite

    @property
    def vocabulary(self) -> int:
        return int(self.matrix.weight.shape[0])

    @property
    def is_frozen(self) -> bool:
        """Whether nothing in it is trained, as under LoRA."""
        return not any(parameter.requires_grad for parameter in self.matrix.parameters())

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) in float32 of hidden states (…, hidden)."""
        logits = self.matrix(hidden).float() * self.times / self.over
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def tiled_log_probs(
    head: Head, hidden: Tensor, tokens: Tensor, temperature: float, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability (b, n) of each token under softmax(logits / temperature), and the entropy (b, n) there.

    hidden (b, n, h) are the states that predict the tokens (b, n). Under a frozen head each state's slope is taken
    while its tile is at hand, so that nothing else is kept. A trained head needs its logits again for its own gradient:
    where more than one tile is needed, they are computed once more on the way back instead of being kept.
    """
    flat, wanted = hidden.flatten(0, 1), tokens.flatten()
    is_frozen = head.is_frozen
    default = SMALL_TILE if is_frozen and flat.device.type == "cpu" else TILE
    size = max(1, (tile or default) // head.vocabulary)
    if is_frozen:
        log_probs, entropy = _FrozenHead.apply(flat, wanted, head, temperature, size)
        return log_probs.view(tokens.shape), entropy.view(tokens.shape)
    if len(flat) <= size:
        found = [_one_tile(head, flat, wanted, temperature)]
    else:
        found = [
            checkpoint(_one_tile, head, part, its, temperature, use_reentrant=False)
            for part, its in zip(flat.split(size), wanted.split(size), strict=True)
        ]
    log_probs, entropy = (torch.cat([one[side] for one in found]).view(tokens.shape) for side in (0, 1))
    return log_probs, entropy


def _one_tile(head: Head, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    shares = torch.log_softmax(head(hidden) / temperature, -1)
    with torch.no_grad():
        entropy = -shares.exp().mul_(shares).sum(-1)
    return shares.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy


class _FrozenHead(torch.autograd.Function):
    """The tiles of a head that is not trained. A token's log-probability depends on its own hidden state alone, so the
    slope (n, h) of each is all that the way back needs."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: Head, temperature: float, size: int
    ) -> tuple[Tensor, Tensor]:
        needs_slope = ctx.needs_input_grad[0]
        said, entropies, slopes = [], [], []
        for part, its in zip(hidden.split(size), tokens.split(size), strict=True):
            part = part.detach().requires_grad_(needs_slope)
            with torch.set_grad_enabled(needs_slope):
                log_probs, entropy = _one_tile(head, part, its, temperature)
                if needs_slope:
                    slopes += torch.autograd.grad(log_probs.sum(), part)
            said.append(log_probs.detach())
            entropies.append(entropy)
        if needs_slope:
            ctx.save_for_backward(torch.cat(slopes))
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(said), entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradients[0].unsqueeze(-1)).to(slopes.dtype), None, None, None, None
