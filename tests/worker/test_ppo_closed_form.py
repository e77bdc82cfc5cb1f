"""PPO and DPO on a policy small enough to know the answer: the KL-regularised optimum is π ∝ π_ref · exp(r / β).

Three steps of four tokens: 64 completions, each with a random reward, and a table with logits for each of 21 prefixes.
"""

import itertools
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from app.training.recipes import PpoRecipe
from tests.worker.tiny import IDS, Silent
from worker.ppo import Ppo, train
from worker.preference_losses import preference_loss

STEPS, TOKENS, BETA = 3, 4, 0.5
ALL = torch.tensor(list(itertools.product(range(TOKENS), repeat=STEPS)))  # (64, 3)
REWARDS = torch.randn(len(ALL), generator=torch.Generator().manual_seed(5))
START = torch.randn(21, TOKENS, generator=torch.Generator().manual_seed(6)) * 0.7


def places(tokens: Tensor) -> Tensor:
    """The prefix (b, n) in which each token (b, n) was chosen: none, then by the tokens before it."""
    found = torch.zeros_like(tokens)
    for step in range(1, tokens.shape[1]):
        before = tokens[:, :step].clamp(max=TOKENS - 1)
        number = sum(before[:, i] * TOKENS ** (step - 1 - i) for i in range(step))
        found[:, step] = sum(TOKENS**i for i in range(step)) + number
    return found


def log_probs_of_all(table: Tensor) -> Tensor:
    """log π (64,) of every completion."""
    return table.log_softmax(-1)[places(ALL), ALL].sum(-1)


def optimum() -> Tensor:
    return torch.softmax(log_probs_of_all(START) + REWARDS / BETA, -1)


def total_variation(table: Tensor) -> float:
    return float((log_probs_of_all(table).exp() - optimum()).abs().sum() / 2)


class Table(nn.Module):
    """A policy that looks each prefix up; its cache is the tokens so far. Tokens 4 and 5 (end, pad) never come."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(START.clone())

    def forward(self, input_ids: Tensor, past_key_values: Tensor | None = None, **_: Any) -> Any:
        ids = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], 1)
        ahead = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
        known = self.table[places(ahead)[:, -1:]]
        logits = torch.cat([known, torch.full((len(ids), 1, 2), -30.0)], -1)
        return SimpleNamespace(logits=logits, past_key_values=ids)


class TableModels:
    """A policy and a value in tables, and a reward for each whole completion."""

    def __init__(self) -> None:
        self.policy = Table()
        self.value = nn.Parameter(torch.zeros(21))

    def use_policy(self) -> None: ...

    def policy_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        shares = self.policy.table.log_softmax(-1)[places(tokens)]
        return shares.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(shares.exp() * shares).sum(-1).detach()

    def reference_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        return START.log_softmax(-1)[places(tokens), tokens]

    def values(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return self.value[places(ids[:, -n:])]

    def scores(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return REWARDS[ids[:, -3] * 16 + ids[:, -2] * 4 + ids[:, -1]]

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.policy.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.value]

    def state(self) -> dict[str, Tensor]:
        return {"table": self.policy.table.detach().clone(), "value": self.value.detach().clone()}

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def save_policy(self, folder: Path) -> None: ...


def test_ppo_finds_the_known_optimum(tmp_path: Path) -> None:
    recipe = PpoRecipe(
        **IDS, prompt_set=1, reward=1, iterations=80, rollouts=512, max_new_tokens=STEPS, lr=0.1, value_lr=0.1,
        kl_coef=BETA, ppo_epochs=2, is_reward_whitened=False, save_every=1000, max_grad_norm=10, lam=1.0,
    )  # fmt: skip
    models = TableModels()
    tokenizer = SimpleNamespace(eos_token_id=4, pad_token_id=5, decode=lambda *_, **__: "")
    train(Ppo(recipe, 3, models, tokenizer), [[0]], None, tmp_path, Silent())
    assert total_variation(START) > 0.3  # there was a way to go
    assert total_variation(models.policy.table.detach()) < 0.05


END, PAD = 3, 5  # of the policy whose completions may end early


class Kept:
    """What the ending policy keeps between steps: the tokens so far."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def batch_select_indices(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]


class EndingTable(Table):
    """The same, of which token 3 ends a completion."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **_: Any) -> Any:
        ids = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], 1)
        return SimpleNamespace(logits=super().forward(ids).logits, past_key_values=Kept(ids))


class EndingModels(TableModels):
    """The score is the mean reward of all that begin as the completion does, less three: none is worth anything."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = EndingTable()

    def policy_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return super().policy_log_probs(ids, mask, tokens.clamp(max=END), temperature)

    def reference_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        return super().reference_log_probs(ids, mask, tokens.clamp(max=END), temperature)

    def scores(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return torch.stack([_score_of(tuple(row[row != PAD].tolist())) for row in ids[:, 1:]])


@cache
def _score_of(completion: tuple[int, ...]) -> Tensor:
    begins_so = (ALL[:, : len(completion)] == torch.tensor(completion)).all(-1)
    return REWARDS[begins_so].mean() - 3


def _completions() -> list[tuple[int, ...]]:
    """Cut after the first end."""
    rows = [tuple(row) for row in ALL.tolist()]
    return list(dict.fromkeys(row[: row.index(END) + 1] if END in row else row for row in rows))


def log_probs_that_end(table: Tensor) -> Tensor:
    """log π of every completion that may end early."""
    found = []
    for row in _completions():
        ids = torch.tensor([row])
        found.append(table.log_softmax(-1)[places(ids), ids].sum())
    return torch.stack(found)


def test_ppo_with_scaled_rewards_finds_it_too_where_completions_end_early(tmp_path: Path) -> None:
    """Rewards that are shifted by 3 change nothing of what is best, so they must change nothing of what is learned."""
    recipe = PpoRecipe(
        **IDS, prompt_set=1, reward=1, iterations=80, rollouts=256, max_new_tokens=STEPS, lr=0.1, value_lr=0.1,
        kl_coef=BETA, ppo_epochs=2, save_every=1000, max_grad_norm=10, lam=1.0,
    )  # fmt: skip
    assert recipe.is_reward_whitened
    models = EndingModels()
    tokenizer = SimpleNamespace(eos_token_id=END, pad_token_id=PAD, decode=lambda *_, **__: "")
    train(Ppo(recipe, 3, models, tokenizer), [[0]], None, tmp_path, Silent())
    best = torch.softmax(log_probs_that_end(START) + torch.stack([_score_of(row) for row in _completions()]) / BETA, -1)
    learned = log_probs_that_end(models.policy.table.detach()).exp()
    assert (log_probs_that_end(START).exp() - best).abs().sum() / 2 > 0.3
    assert (learned - best).abs().sum() / 2 < 0.05


def test_dpo_finds_the_same_optimum() -> None:
    """With every pair judged by Bradley and Terry's share of the rewards, DPO's loss is least at the same policy."""
    table = START.clone().requires_grad_(True)
    i, j = torch.triu_indices(len(ALL), len(ALL), offset=1)
    p_chosen = torch.sigmoid(REWARDS[i] - REWARDS[j])
    reference = log_probs_of_all(START)
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        moved = log_probs_of_all(table) - reference
        preference_loss("sigmoid", moved[i] - moved[j], BETA, 0.0, p_chosen).mean().backward()
        optimizer.step()
    assert total_variation(table.detach()) < 0.01
