"""Tiled log-probabilities equal transformers' own, value and gradient, for heads that do more than multiply."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from worker.tiled import Head, tiled_log_probs

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=2.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.3),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tile", [2**24, 96 * 4])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_tiles_equal_the_whole(name: str, tile: int, is_frozen: bool) -> None:
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    if is_frozen:  # as under LoRA: the body is trained, the head (and what is tied to it) is not
        model.get_output_embeddings().requires_grad_(False)
    ids = torch.randint(3, 96, (3, 9))
    tokens = ids[:, 4:]
    weights = torch.linspace(-1, 2, tokens.numel()).view(tokens.shape)  # each token's own share of the gradient
    logits = model(input_ids=ids, use_cache=False).logits[:, 3:-1].float()
    shares = torch.log_softmax(logits / 0.7, -1)
    wanted = shares.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (wanted * weights).sum().backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, 3:-1]
    found, entropy = tiled_log_probs(Head(model), hidden, tokens, 0.7, tile)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(entropy, -(shares.exp() * shares).sum(-1), atol=1e-5)
    (found * weights).sum().backward()
    seen = 0
    for key, value in model.named_parameters():
        if value.grad is not None:
            seen += 1
            assert torch.allclose(value.grad, gradients[key], atol=1e-5), key
    assert seen == len(gradients) > 0


def test_no_table_of_all_logits_is_held() -> None:
    model: Any = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    head = Head(model)
    widest = 0

    class Watched(torch.nn.Module):
        weight = model.get_output_embeddings().weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            nonlocal widest
            widest = max(widest, hidden.shape[0])
            return hidden @ self.weight.T

    head.matrix = Watched()
    hidden = torch.randn(8, 50, 16, requires_grad=True)
    tiled_log_probs(head, hidden, torch.zeros(8, 50, dtype=torch.long), 1.0, 96 * 32)[0].sum().backward()
    assert widest == 32
