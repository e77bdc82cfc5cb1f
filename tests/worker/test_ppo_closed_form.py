"""PPO on a policy small enough to know the answer: the KL-regularised optimum is π ∝ π_ref · exp(r / β)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from app.training.recipes import PpoRecipe
from tests.worker.tiny import IDS, Silent
from worker.ppo import Ppo, train

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
REWARDS = torch.tensor([0.0, 0.3, -0.2, 0.6])


class Table(nn.Module):
    """A policy that draws every token from one table, whatever came before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.cat([REFERENCE, torch.tensor([-30.0, -30.0])]))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logits = self.table.expand(*input_ids.shape, 6)
        return SimpleNamespace(logits=logits, past_key_values=None)


class TableModels:
    """A policy in a table, a constant value, and a reward for each last token."""

    def __init__(self) -> None:
        self.policy = Table()
        self.reference = Table()
        self.value = nn.Parameter(torch.zeros(1))

    def use_policy(self) -> None: ...

    def policy_logits(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return self.policy.table.expand(len(ids), n, 6)

    def reference_logits(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return self.reference.table.detach().expand(len(ids), n, 6)

    def values(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        return self.value.expand(len(ids), n)

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        return REWARDS[ids[:, -1]]

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.policy.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.value]

    def state(self) -> dict[str, Tensor]:
        return {"table": self.policy.table.detach().clone(), "value": self.value.detach().clone()}

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def save_policy(self, folder: Path) -> None: ...


def test_ppo_finds_the_known_optimum(tmp_path: Path) -> None:
    beta = 0.3
    recipe = PpoRecipe(
        **IDS, prompt_set=1, reward=1, iterations=250, rollouts=256, max_new_tokens=1, lr=0.05, value_lr=0.05,
        kl_coef=beta, ppo_epochs=2, is_reward_whitened=False, save_every=1000, max_grad_norm=10,
    )  # fmt: skip
    models = TableModels()
    tokenizer = SimpleNamespace(eos_token_id=4, pad_token_id=5, decode=lambda *_, **__: "")
    train(Ppo(recipe, 3, models, tokenizer), [[0]], [], tmp_path, Silent())
    found = torch.softmax(models.policy.table.detach(), -1)[:4]
    wanted = torch.softmax(REFERENCE + REWARDS / beta, -1)
    assert float((found - wanted).abs().max()) < 0.03
    assert float((found - REFERENCE.exp()).abs().max()) > 0.15
