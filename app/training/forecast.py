"""How much memory a training run will need, before it starts. Pure arithmetic on a model's configuration.

Full fine-tuning keeps a separate copy of the weights for every model of the method; LoRA keeps one frozen base and
small adapters. Counted: weights, gradients, AdamW's two moments (float32), activations kept for the backward pass
(Korthikanti et al. 2022, 2205.05198, section 4, without attention scores, which fused attention does not keep) and the
logits. Not counted: the framework itself, fragmentation, and what a particular kernel sets aside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["sft", "reward", "bi_encoder", "dpo", "simpo", "kto", "ppo", "grpo", "rloo"]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A linear layer's weight by bitsandbytes: LLM.int8() (2208.07339); NF4, doubly quantised scales (2305.14314, sec. 3).
NARROW_BYTES = {"8-bit": 1.0, "4-bit": 4.127 / 8}

# method → (models that are trained, models that are only read)
FULL_COPIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sft": (("policy",), ()),
    "reward": (("reward",), ()),
    "bi_encoder": (("prompt tower", "completion tower"), ()),
    "dpo": (("policy",), ()),  # the reference is read before the first step, by the same weights
    "simpo": (("policy",), ()),
    "kto": (("policy",), ("reference",)),
    "ppo": (("policy", "value"), ("reference", "reward")),
    "grpo": (("policy",), ("reference",)),
    "rloo": (("policy",), ("reference",)),
}


@dataclass(frozen=True)
class Part:
    """One thing that takes memory, in bytes."""

    name: str
    n_bytes: int


@dataclass(frozen=True)
class Forecast:
    parts: list[Part]
    copies: int  # whole sets of weights held at once
    sentence: str

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    """hidden, layers, MLP, vocabulary, width of q, width of k and v."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config.get("num_attention_heads") or 1)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or hidden // heads)
    mlp = int(config.get("intermediate_size") or 4 * hidden)
    return hidden, layers, mlp, int(config["vocab_size"]), heads * head, kv_heads * head


def count_parameters(config: Mapping[str, Any]) -> int:
    """Weights of a decoder with gated MLPs and no biases (Llama, Mistral, Qwen, Gemma; others to a few percent)."""
    hidden, layers, mlp, vocabulary, q, kv = _sizes(config)
    layer = 2 * hidden * q + 2 * hidden * kv + 3 * hidden * mlp + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * layer + embeddings + hidden


def count_base_bytes(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes of a frozen base; in 8-bit and 4-bit its embeddings and output layer stay bfloat16."""
    n = count_parameters(config)
    if dtype in BYTES:
        return n * BYTES[dtype]
    hidden, _, _, vocabulary, _, _ = _sizes(config)
    wide = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return wide * 2 + int((n - wide) * NARROW_BYTES[dtype])


def count_adapter(config: Mapping[str, Any], rank: int) -> int:
    """Weights of one LoRA adapter on every linear layer: rank × (in + out) each."""
    hidden, layers, mlp, _, q, kv = _sizes(config)
    return layers * rank * (2 * (hidden + q) + 2 * (hidden + kv) + 3 * (hidden + mlp))


def _working_memory(config: Mapping[str, Any], batch: int, length: int, width: int) -> list[Part]:
    hidden, layers, mlp, vocabulary, q, kv = _sizes(config)
    tokens = batch * length
    # Per layer: the inputs of both norms, of q/k/v, of the output and of the MLP, and the MLP's three products.
    per_token = layers * (4 * hidden + 2 * q + 2 * kv + 4 * mlp)
    return [
        Part("activations of one step", tokens * per_token * width),
        Part("logits and their gradient", 2 * tokens * vocabulary * 4),
    ]


def forecast_memory(
    config: Mapping[str, Any], method: Method, *, is_lora: bool, rank: int, dtype: str, batch: int, length: int,
    has_reference: bool = True,
) -> Forecast:  # fmt: skip
    """Bytes of one training step of `batch` texts of `length` tokens (a DPO, SimPO or reward row is two texts)."""
    width, n = BYTES.get(dtype, 2), count_parameters(config)  # 8-bit and 4-bit weights compute in bfloat16
    trained, read = FULL_COPIES[method]
    read = read if has_reference else tuple(name for name in read if name != "reference")
    texts = 2 * batch if method in {"dpo", "simpo", "reward", "bi_encoder"} else batch
    if is_lora:
        adapter = count_adapter(config, rank)
        parts = [Part("one frozen base", count_base_bytes(config, dtype))]
        # Adapters are kept in float32: weight, gradient and two moments.
        parts += [Part(f"{name} adapter, its gradients and AdamW's moments", adapter * 16) for name in trained]
        parts += [Part(f"{name} adapter", adapter * 4) for name in read if name == "reward"]
        copies = 1
        sentence = "LoRA: all models share one frozen base; each trained one is a small adapter on it."
    else:
        parts = [Part(f"{name}: weights", n * width) for name in (*trained, *read)]
        parts += [Part(f"{name}: gradients", n * width) for name in trained]
        parts += [Part(f"{name}: AdamW's moments", n * 2 * width) for name in trained]
        copies = len(trained) + len(read)
        names = ", ".join((*trained, *read))
        plural = f"{copies} separate copies of the weights ({names})" if copies > 1 else "one copy of the weights"
        sentence = f"Full fine-tuning keeps {plural}; each trained one also needs gradients and AdamW's two moments."
    return Forecast(parts + _working_memory(config, texts, length, width), copies, sentence)
