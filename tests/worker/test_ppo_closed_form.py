"""PPO and DPO on a policy small enough to know the answer: the KL-regularised optimum is π ∝ π_ref · exp(r / β).

Three steps of four tokens: 64 completions, each with a random reward, and a table with logits for each of 21 prefixes.
"""

import itertools
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
        **IDS, prompt_set=1, reward=1, iterations=300, rollouts=1024, max_new_tokens=STEPS, lr=0.05, value_lr=0.05,
        kl_coef=BETA, ppo_epochs=2, is_reward_whitened=False, save_every=1000, max_grad_norm=10, lam=1.0,
    )  # fmt: skip
    models = TableModels()
    tokenizer = SimpleNamespace(eos_token_id=4, pad_token_id=5, decode=lambda *_, **__: "")
    train(Ppo(recipe, 3, models, tokenizer), [[0]], None, tmp_path, Silent())
    assert total_variation(START) > 0.3  # there was a way to go
    assert total_variation(models.policy.table.detach()) < 0.05


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
