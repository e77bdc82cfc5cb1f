"""Two estimates of how far a policy has moved: against exact sums, and with the start's weights put in its place."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.test_ppo import of_tokens
from tests.worker.tiny import same, write_tiny
from worker.distance import OtherReference, StartReference, estimate_kl, read_log_probs
from worker.loading import Weights, load_full, load_tokenizer, load_trainable
from worker.rollout import Rollout, end_ids_of, sample, seeded


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def test_both_estimates_are_unbiased_and_k3_is_never_negative() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    found = estimate_kl(policy.log().unsqueeze(1), reference.log().unsqueeze(1), torch.ones(3, 1))
    for each in (found.k1, found.k3):
        assert float(policy.double() @ torch.tensor(each).double()) == pytest.approx(exact, abs=1e-6)
    assert min(found.k1) < 0 <= min(found.k3)


def test_tokens_are_summed_up_to_the_end_of_each_completion() -> None:
    policy, reference = torch.full((2, 3), -1.0), torch.full((2, 3), -1.5)
    found = estimate_kl(policy, reference, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert found.k1 == pytest.approx([1.0, 1.5])
    each = torch.tensor(-0.5).exp().item() - 1 + 0.5
    assert found.k3 == pytest.approx([2 * each, 3 * each])


def moved(model: Any) -> None:
    """Steps in some direction."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def rolled(model: Any, base: Weights) -> Rollout:
    tokenizer = load_tokenizer(base)
    ends = end_ids_of(model, tokenizer)
    return sample(model, [[5, 6, 7]] * 3 + [[9]] * 17, 8, 1.0, ends, tokenizer.pad_token_id, seeded(1), lambda: None)


@pytest.mark.parametrize("is_lora", [False, True])
def test_the_start_takes_the_policy_s_place_and_gives_it_back_to_the_last_bit(base: Weights, is_lora: bool) -> None:
    model = load_trainable(base, is_lora, 4, "float32", 1).eval()
    start = StartReference(model)
    before = start(model, rolled(model, base), 1.0)
    assert before.k1 == [0.0] * 20 == before.k3
    moved(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rollout = rolled(model, base)
    found = start(model, rollout, 1.0)
    assert same(weights, dict(model.state_dict()))
    exact = ((of_tokens(model, rollout) - of_tokens(load_full(base), rollout)) * rollout.mask).sum(-1)
    assert found.k1 == pytest.approx(exact.tolist(), abs=1e-3) and min(found.k3) > 0
    assert OtherReference(base, "float32")(model, rollout, 1.0).k1 == pytest.approx(found.k1, abs=1e-4)


def test_a_temperature_is_that_of_both_distributions(base: Weights, tmp_path: Path) -> None:
    model = load_full(base).eval()
    rollout = rolled(model, base)
    hot = read_log_probs(model, rollout, 2.0)
    given = (rollout.attention.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=given).logits
    wanted = (logits[:, -rollout.n - 1 : -1] / 2).log_softmax(-1).gather(-1, rollout.tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(hot * rollout.mask, wanted * rollout.mask, atol=1e-4)
