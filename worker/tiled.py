"""Log-probabilities of given tokens from hidden states, tile by tile, so that no table of all logits is ever held.

With a vocabulary of 128,000 and 64 completions of 512 tokens, that table and its gradient would take 34 GB in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = 2**24  # logits held at once: 64 MB in float32


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

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) in float32 of hidden states (…, hidden)."""
        logits = self.matrix(hidden).float() * self.times / self.over
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def tiled_log_probs(
    head: Head, hidden: Tensor, tokens: Tensor, temperature: float, tile: int = TILE
) -> tuple[Tensor, Tensor]:
    """Log-probability (b, n) of each token under softmax(logits / temperature), and the entropy (b, n) there.

    hidden (b, n, h) are the states that predict the tokens (b, n). Where more than one tile is needed, a tile's logits
    are computed again on the way back instead of being kept.
    """
    flat, wanted = hidden.flatten(0, 1), tokens.flatten()
    size = max(1, tile // head.vocabulary)
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
        entropy = -(shares.exp() * shares).sum(-1)
    return shares.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy
