"""PPO's equations against numbers worked by hand and against an independent version in numpy."""

import math

import numpy as np
import pytest
import torch

from worker.ppo import (
    adapt_kl_coef,
    estimate_advantages,
    explained_variance,
    pick_prompts,
    policy_loss,
    scale,
    token_rewards,
    value_loss,
    whiten,
)


def test_advantages_by_hand() -> None:
    # Three tokens, reward 1 at the end, gamma 0.9, lambda 0.5:
    # δ2 = 1 − 0.3 = 0.7; δ1 = 0.9·0.3 − 0.2 = 0.07; δ0 = 0.9·0.2 − 0.1 = 0.08
    # A2 = 0.7; A1 = 0.07 + 0.45·0.7 = 0.385; A0 = 0.08 + 0.45·0.385 = 0.25325
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    values = torch.tensor([[0.1, 0.2, 0.3, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    advantages, returns = estimate_advantages(rewards, values, mask, 0.9, 0.5)
    assert torch.allclose(advantages, torch.tensor([[0.25325, 0.385, 0.7, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.35325, 0.585, 1.0, 0.0]]))


def test_losses_by_hand() -> None:
    # Ratios e^0.5 = 1.6487 and e^−0.5 = 0.6065; clip 0.2.
    # A = +1, ratio 1.6487: −min(1.6487, 1.2) = −1.2 (clipped); A = +1, ratio 0.6065: −0.6065 (not clipped);
    # A = −1, ratio 1.6487: 1.6487 (not clipped)
    new = torch.tensor([[0.5, -0.5, 0.5, 3.0]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss, clipped, ratio = policy_loss(new, torch.zeros_like(new), advantages, mask, 0.2)
    assert float(loss) == pytest.approx((-1.2 - math.exp(-0.5) + math.exp(0.5)) / 3)
    assert float(clipped) == pytest.approx(1 / 3)
    assert float(ratio[0, 3]) == 1.0
    # Old 0, new 1, return 2, clip 0.2: the worse of (1−2)² = 1 and (0.2−2)² = 3.24.
    one = torch.ones(1, 1)
    assert float(value_loss(one, 0 * one, 2 * one, one, 0.2)) == pytest.approx(1.62)


def test_rewards_stand_at_the_right_tokens() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    log_ratio = torch.tensor([[0.1, 0.2, 7.0], [0.0, -0.1, 0.3]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), log_ratio, mask, 0.5)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 1.9, 0.0], [0.0, 0.05, -1.15]]))


def test_nothing_after_the_end_contributes() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(4, 6, generator=generator) for _ in range(3))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [1], [4]])).float()
    scores = torch.randn(4, generator=generator)

    def everything(junk: float) -> torch.Tensor:
        outside = (1 - mask) * junk
        rewards = scale(token_rewards(scores, a + outside, mask, 0.1), mask)
        advantages, returns = estimate_advantages(rewards, b + outside, mask, 0.99, 0.9)
        policy = policy_loss(c + outside, a + outside * 2, whiten(advantages, mask), mask, 0.2)[0]
        return torch.stack([policy, value_loss(b + outside, a, returns, mask, 0.2)])

    assert torch.equal(everything(0.0), everything(50.0))


def numpy_gae(r: np.ndarray, v: np.ndarray, n: int, gamma: float, lam: float) -> np.ndarray:
    """The sum Σ (γλ)^k δ_{t+k} written out, for one row of n tokens."""
    ahead = np.append(v[1:n], 0.0)
    delta = r[:n] + gamma * ahead - v[:n]
    return np.array([sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)])


def test_advantages_against_numpy() -> None:
    random = np.random.default_rng(5)
    rewards, values = random.normal(size=(2, 7, 9))
    lengths = random.integers(1, 10, size=7)
    mask = (np.arange(9) < lengths[:, None]).astype(float)
    r, v, m = torch.tensor(rewards * mask), torch.tensor(values), torch.tensor(mask)
    advantages, _ = estimate_advantages(r, v, m, 0.97, 0.93)
    for row, n in enumerate(lengths):
        wanted = numpy_gae(rewards[row], values[row], n, 0.97, 0.93)
        assert np.allclose(advantages[row, :n], wanted)
        assert not advantages[row, n:].any()


def test_losses_against_numpy() -> None:
    random = np.random.default_rng(6)
    new, old, advantages, returns = random.normal(size=(4, 5, 8))
    mask = (np.arange(8) < random.integers(1, 9, size=(5, 1))).astype(float)
    ratio = np.exp(new - old)
    chosen = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    n, o, a, m = (torch.tensor(x) for x in (new, old, advantages, mask))
    assert float(policy_loss(n, o, a, m, 0.2)[0]) == pytest.approx(-(chosen * mask).sum() / mask.sum())
    near = np.clip(new, old - 0.3, old + 0.3)
    squares = np.maximum((new - returns) ** 2, (near - returns) ** 2)
    found = value_loss(n, o, torch.tensor(returns), m, 0.3)
    assert float(found) == pytest.approx(0.5 * (squares * mask).sum() / mask.sum())


def test_whitening_ignores_padding() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 1000.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    white = whiten(x, mask)
    assert torch.allclose(white[0, :3], torch.tensor([-1.0, 0.0, 1.0]) * math.sqrt(1.5), atol=1e-4)
    assert white[0, 3] == 0
    assert torch.allclose(scale(x, mask)[0], torch.tensor([1.0, 2.0, 3.0, 0.0]) / math.sqrt(14 / 3), atol=1e-4)


def test_scaled_rewards_pay_nothing_for_length() -> None:
    mask = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    short, long = scale(token_rewards(torch.tensor([-3.0, -3.0]), torch.zeros(2, 4), mask, 0.1), mask).sum(-1)
    assert float(short) == pytest.approx(float(long)) and float(long) < 0
    assert not scale(torch.zeros(2, 4), mask).any()


def test_kl_coefficient_adapts_in_bounded_steps() -> None:
    assert adapt_kl_coef(0.1, 6.0, 6.0, 64, 1000) == pytest.approx(0.1)
    assert adapt_kl_coef(0.1, 60.0, 6.0, 64, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.064))
    assert adapt_kl_coef(0.1, 5.4, 6.0, 100, 1000) == pytest.approx(0.1 * (1 - 0.1 * 0.1))


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0.0)


def test_prompts_come_in_whole_epochs() -> None:
    picked = [i for iteration in range(6) for i in pick_prompts(9, 6, iteration, seed=1)]
    for epoch in range(4):
        assert sorted(picked[9 * epoch : 9 * epoch + 9]) == list(range(9))
    assert picked[:9] != picked[9:18]
    assert pick_prompts(9, 6, 3, seed=1) == picked[18:24]
