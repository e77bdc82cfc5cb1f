"""Rollouts: sampling completions token by token, keeping what was said of each token as it was drawn.

Shapes: b completions, t tokens of prompt and completion, n tokens of the completion.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from app.errors import AppError
from worker.together import gather_rows


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


def pick(log_probs: Tensor, draws: Tensor) -> Tensor:
    """The token (b,) that each draw (b,) of [0, 1) falls on, of log-probabilities (b, vocabulary)."""
    heights = log_probs.double().exp().cumsum(-1)
    return torch.searchsorted(heights, (draws * heights[:, -1]).unsqueeze(1), right=True).squeeze(1)


@torch.no_grad()
def sample(
    policy: Any, prompts: list[list[int]], n: int, temperature: float, end_ids: list[int], pad_id: int,
    generator: torch.Generator, check: Callable[[], None], n_parts: int = 1, part: int = 0,
) -> Rollout:  # fmt: skip
    """Samples up to n tokens for every prompt at once, keeping keys and values between steps.

    A row that has ended leaves the batch at once, its keys and values with it. Each token has a draw of its own, so
    that a row's text depends neither on which others still go on nor on the device the draws are used on, nor on
    whether one process samples all rows or each of several its part: `part` of `n_parts` equal ones.
    """
    device = next(policy.parameters()).device
    ids, attention = pad_left(prompts, pad_id, device)
    draws = torch.rand(n, n_parts * len(prompts), generator=generator, dtype=torch.float64)
    draws = draws[:, part * len(prompts) : (part + 1) * len(prompts)].to(device)
    tokens = torch.full((len(prompts), n), pad_id, device=device)
    log_probs = torch.zeros(len(prompts), n, device=device)
    mask = torch.zeros_like(tokens)
    ends = torch.tensor(end_ids, device=device)
    rows = torch.arange(len(prompts), device=device)  # that still go on
    step_ids, seen, places, cache = ids, attention, positions(attention), None
    for at in range(n):
        check()
        out = policy(
            input_ids=step_ids, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        shares = torch.log_softmax(out.logits[:, -1].float() / temperature, -1)
        token = pick(shares, draws[at, rows])
        tokens[rows, at], mask[rows, at] = token, 1
        log_probs[rows, at] = shares.gather(1, token.unsqueeze(1)).squeeze(1)
        going = (~torch.isin(token, ends)).nonzero().squeeze(1)
        if at + 1 == n or not len(going):
            break
        if len(going) < len(rows):
            rows, seen, places, token = rows[going], seen[going], places[going], token[going]
            cache.batch_select_indices(going)
        step_ids, places = token.unsqueeze(1), places[:, -1:] + 1
        seen = torch.cat([seen, torch.ones_like(step_ids)], 1)
    length = at + 1
    return Rollout(
        torch.cat([ids, tokens[:, :length]], 1), torch.cat([attention, mask[:, :length]], 1), tokens[:, :length],
        mask[:, :length].float(), log_probs[:, :length],
    )  # fmt: skip


def join_parts(part: Rollout, pad_id: int) -> Rollout:
    """The rollout of which each process has sampled its part, padded as if one had sampled it all."""
    width = part.ids.shape[1] - part.n
    longest = gather_rows(torch.tensor([[width, part.n]], device=part.ids.device)).amax(0)
    left, right = int(longest[0]) - width, int(longest[1]) - part.n

    def join(column: Tensor, left: int, filling: int) -> Tensor:
        return gather_rows(pad(column, (left, right), value=filling))

    return Rollout(
        join(part.ids, left, pad_id), join(part.attention, left, 0), join(part.tokens, 0, pad_id),
        join(part.mask, 0, 0), join(part.log_probs, 0, 0),
    )  # fmt: skip


def end_ids_of(policy: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's and those of the model's generation settings."""
    stated = getattr(policy, "generation_config", None)
    more = getattr(stated, "eos_token_id", None) or []
    found = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}
    if not found:
        raise AppError("This checkpoint's tokenizer has no end token, so a completion could never end.")
    return sorted(int(token) for token in found)
