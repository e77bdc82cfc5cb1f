"""The memory forecast: parameters against a real model, copies by method, LoRA against full."""

import pytest

from app.training.forecast import Method, count_adapter, count_parameters, forecast_memory

LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
DEMO = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 344,
    "vocab_size": 800, "tie_word_embeddings": True,
}  # fmt: skip


def test_parameters_are_those_of_the_real_models() -> None:
    assert count_parameters(LLAMA_8B) == 8_030_261_248  # as its model card says
    assert count_parameters(DEMO) == 498_304  # as transformers counts the demo's base
    assert count_adapter(LLAMA_8B, 16) == 41_943_040  # as peft counts it on every linear layer


@pytest.mark.parametrize(
    ("method", "copies"),
    [("sft", 1), ("reward", 1), ("dpo", 1), ("simpo", 1), ("kto", 2), ("ppo", 4), ("grpo", 2), ("rloo", 2)],
)
def test_full_fine_tuning_keeps_separate_copies_and_says_so(method: Method, copies: int) -> None:
    found = forecast_memory(LLAMA_8B, method, is_lora=False, rank=16, dtype="bfloat16", batch=1, length=512)
    assert found.copies == copies
    assert sum(part.name.endswith(": weights") for part in found.parts) == copies
    if copies > 1:
        assert f"{copies} separate copies" in found.sentence
    assert found.n_bytes > copies * 8_030_261_248 * 2


def test_lora_keeps_one_base_and_needs_far_less() -> None:
    given = {"rank": 16, "dtype": "bfloat16", "batch": 1, "length": 512}
    full = forecast_memory(LLAMA_8B, "ppo", is_lora=False, **given)  # type: ignore[arg-type]
    lora = forecast_memory(LLAMA_8B, "ppo", is_lora=True, **given)  # type: ignore[arg-type]
    assert lora.copies == 1 and "share one frozen base" in lora.sentence
    assert lora.n_bytes < full.n_bytes / 4


def test_without_a_reference_grpo_keeps_one_copy() -> None:
    found = forecast_memory(
        DEMO, "grpo", is_lora=False, rank=16, dtype="float32", batch=64, length=80, has_reference=False
    )
    assert found.copies == 1 and "one copy" in found.sentence


def part(method: Method, name: str, **values: object) -> int:
    given = {"is_lora": False, "rank": 16, "dtype": "float32", "batch": 8, "length": 100, **values}
    parts = forecast_memory(LLAMA_8B, method, **given).parts  # type: ignore[arg-type]
    return sum(one.n_bytes for one in parts if one.name.startswith(name))


def test_a_pair_is_two_texts() -> None:
    given = {"is_lora": True, "length": 400}
    assert part("dpo", "activations", **given) == 2 * part("sft", "activations", **given)


def test_logits_are_held_by_tiles_and_a_reward_model_has_none() -> None:
    given = {"is_lora": True, "batch": 64, "length": 512}
    whole = 64 * 512 * 128_256 * 4  # 17 GB of logits alone
    assert 0 < part("ppo", "tiles", **given) < whole / 50
    assert 0 < part("sft", "tiles", **given) < whole / 20
    assert part("reward", "tiles", **given) == 0


def test_a_reward_model_that_is_no_adapter_is_another_set_of_weights() -> None:
    given = {"is_lora": True, "rank": 16, "dtype": "bfloat16", "batch": 1, "length": 512}
    shared, copied, none = (
        forecast_memory(LLAMA_8B, "ppo", reward=reward, **given)  # type: ignore[arg-type]
        for reward in ("adapter", "copy", "none")
    )
    assert (shared.copies, copied.copies) == (1, 2) and "no adapter on it" in copied.sentence
    assert copied.n_bytes - none.n_bytes == 2 * (8_030_261_248 - 128_256 * 4096)  # without an output layer
    assert shared.n_bytes - none.n_bytes == 4 * 41_943_040


def test_many_rollouts_are_the_highest_moment_of_small_minibatches() -> None:
    given = {"is_lora": True, "rank": 16, "dtype": "bfloat16", "batch": 1, "length": 1024, "new": 512}
    few = forecast_memory(LLAMA_8B, "ppo", rollouts=1, **given)  # type: ignore[arg-type]
    many = forecast_memory(LLAMA_8B, "ppo", rollouts=512, **given)  # type: ignore[arg-type]
    assert few.parts[-1].name == "tiles of logits" and "rollout" in many.parts[-1].name
    assert many.n_bytes > few.n_bytes


def test_narrow_weights_shrink_the_base_but_not_its_embeddings_or_adapters() -> None:
    given = {"is_lora": True, "rank": 16, "batch": 1, "length": 512}
    found = {
        dtype: forecast_memory(LLAMA_8B, "ppo", dtype=dtype, **given)  # type: ignore[arg-type]
        for dtype in ("bfloat16", "8-bit", "4-bit")
    }
    embeddings = 2 * 128_256 * 4096
    layers = 8_030_261_248 - embeddings
    bases = {dtype: one.parts[0].n_bytes for dtype, one in found.items()}
    assert bases["bfloat16"] == 2 * (layers + embeddings)
    assert bases["8-bit"] == layers + 2 * embeddings
    assert bases["4-bit"] == pytest.approx(0.516 * layers + 2 * embeddings, rel=0.001)
    assert len({one.n_bytes - one.parts[0].n_bytes for one in found.values()}) == 1  # all else is bfloat16's
