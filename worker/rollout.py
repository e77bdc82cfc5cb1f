"""Rollouts: sampling completions token by token, keeping what was said of each token as it was drawn.

Shapes: b completions, t tokens of prompt and completion, n tokens of the completion.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.errors import AppError


@dataclass
class Rollout:
    """What was sampled and what each model said of it; rows are completions."""

    ids: Tensor  # (b, t): prompts padded on the left, completions on the right
    attention: Tensor  # (b, t)
    tokens: Tensor  # (b, n)
    mask: Tensor  # (b, n): up to and with the end token
    log_probs: Tensor  # (b, n), as sampled

    @property
    def n(self) -> int:
        return self.tokens.shape[1]


def positions(mask: Tensor) -> Tensor:
    """Place of each token among the real ones; padding on either side does not count."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def seeded(*parts: Any) -> torch.Generator:
    """A CPU generator from any parts: the same parts, the same numbers."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def pad_left(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (b, longest)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(row)
        mask[place, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
def sample(
    policy: Any, prompts: list[list[int]], n: int, temperature: float, end_ids: list[int], pad_id: int,
    generator: torch.Generator, check: Callable[[], None],
) -> Rollout:  # fmt: skip
    """Samples up to n tokens for every prompt at once, keeping keys and values between steps."""
    device = next(policy.parameters()).device
    ids, attention = pad_left(prompts, pad_id, device)
    step_ids, step_positions, cache = ids, positions(attention), None
    alive = torch.ones(len(prompts), dtype=torch.long, device=device)
    ends = torch.tensor(end_ids, device=device)
    tokens, log_probs = [], []
    for _ in range(n):
        check()
        out = policy(
            input_ids=step_ids, attention_mask=attention, position_ids=step_positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        shares = torch.log_softmax(out.logits[:, -1].float() / temperature, -1)
        # Drawn on the CPU, so that the generator's stream does not depend on the device.
        drawn = torch.multinomial(shares.exp().cpu(), 1, generator=generator).to(device)
        token = torch.where(alive.bool(), drawn.squeeze(1), pad_id)
        tokens.append(token)
        log_probs.append(shares.gather(1, token.unsqueeze(1)).squeeze(1) * alive)
        ids = torch.cat([ids, token.unsqueeze(1)], 1)
        attention = torch.cat([attention, alive.unsqueeze(1)], 1)
        step_ids, step_positions = token.unsqueeze(1), positions(attention)[:, -1:]
        alive = alive * (~torch.isin(token, ends)).long()
        if not alive.any():
            break
    drawn_tokens = torch.stack(tokens, 1)
    mask = attention[:, -len(tokens) :].float()
    return Rollout(ids, attention, drawn_tokens, mask, torch.stack(log_probs, 1))


def end_ids_of(policy: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's and those of the model's generation settings."""
    stated = getattr(policy, "generation_config", None)
    more = getattr(stated, "eos_token_id", None) or []
    found = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}
    if not found:
        raise AppError("This checkpoint's tokenizer has no end token, so a completion could never end.")
    return sorted(int(token) for token in found)
