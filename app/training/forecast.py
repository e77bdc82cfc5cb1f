"""How much memory a training run will need, before it starts. Pure arithmetic on a model's configuration.

Full fine-tuning keeps a separate copy of the weights for every model of the method; LoRA keeps one frozen base and
small adapters. Counted: weights, gradients, AdamW's two moments (float32), activations kept for the backward pass
(Korthikanti et al. 2022, 2205.05198, equation 1, without attention scores, which fused attention does not keep), tiles
of logits, and rollouts. What is not there at the same time is not added up: gradients grow as activations go, so the
larger of the two counts, and a rollout is over before the first step. Not counted: the framework itself, fragmentation,
and what a kernel sets aside. `python -m bench.forecast` prints it beside counted bytes, and tests hold it to 0.8 to 1.5
times those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["sft", "reward", "bi_encoder", "dpo", "simpo", "kto", "ppo", "grpo", "rloo"]
Reward = Literal["none", "adapter", "copy"]
ONLINE = {"ppo", "grpo", "rloo"}
BODIES = {"reward", "value", "prompt tower", "completion tower"}  # models without an output layer
TILE, SMALL_TILE = 2**24, 2**22  # logits at once in worker/tiled.py; the small one on a CPU under a frozen head
TRL_TOKENS, TRL_VOCABULARY = 4096, 32_768  # of TRL's tile, which is as wide whatever the vocabulary
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


def _body(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model without an output layer of its own."""
    return {**config, "tie_word_embeddings": True}


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


@dataclass(frozen=True)
class Load:
    """What a step reads: `texts` texts of `length` tokens, of which the last `new` are scored."""

    texts: int
    length: int
    new: int
    rollouts: int = 0  # texts sampled and read at once before the steps, of online methods
    width: int = 4  # bytes of a computed number
    on_cpu: bool = False


def _activations(config: Mapping[str, Any], load: Load, method: str, rank: int | None) -> list[Part]:
    """What the way back needs, and the slopes of the layer that it has reached."""
    hidden, layers, mlp, _, q, kv = _sizes(config)
    # Per layer: the inputs of both norms, of q/k/v, of the output and of the MLP, and the MLP's three products.
    per_token = layers * (4 * hidden + 2 * q + 2 * kv + 4 * mlp) + 3 * mlp + 2 * hidden
    tokens = load.texts * load.length
    wide = 7 * layers * rank if rank else 0  # between the two halves of each adapter, in float32
    if load.width < 4:
        wide += layers * 2 * hidden  # in norms
        # peft's copy of each adapted layer's input, which PPO does without (worker/ppo_models.py).
        wide += layers * (5 * hidden + q + mlp) if rank and method != "ppo" else 0
    return [Part("activations of one step", tokens * (per_token * load.width + wide * 4))]


def _tiles(config: Mapping[str, Any], load: Load, method: str, *, is_lora: bool) -> list[Part]:
    """Log-probabilities: logits are held tile by tile. Reward models have none."""
    hidden, _, _, vocabulary, _, _ = _sizes(config)
    if method in {"reward", "bi_encoder"}:
        return []
    if method == "ppo":  # worker/tiled.py
        most = SMALL_TILE if is_lora and load.on_cpu else TILE
        return [Part("tiles of logits", 4 * 4 * min(load.texts * load.new * vocabulary, max(most, vocabulary)))]
    # TRL: on a GPU one tile of scored tokens, worked on in place; on a CPU of all tokens, with copies.
    tokens = min(TRL_TOKENS, load.texts * (load.length if load.on_cpu else load.new))
    tile = tokens * TRL_VOCABULARY * load.width
    copies = 7 * tokens * min(vocabulary, TRL_VOCABULARY) * 4 if load.on_cpu else 0
    slopes = tokens * hidden * 4 + (0 if is_lora else vocabulary * hidden * 4)  # summed up in float32
    return [Part("tiles of logits", tile + copies + slopes)]


def _rollout(config: Mapping[str, Any], load: Load) -> list[Part]:
    """Sampling with keys and values kept, or one model's reading of all that was sampled: the larger of the two."""
    hidden, layers, mlp, vocabulary, q, kv = _sizes(config)
    tokens = load.rollouts * load.length
    sampling = tokens * layers * 2 * kv * load.width + load.rollouts * vocabulary * 24
    reading = tokens * (3 * mlp + 3 * hidden + 2 * q) * load.width
    if sampling >= reading:
        return [Part("keys and values of the rollout, and one step's probabilities", sampling)]
    return [Part("a model's pass over the whole rollout", reading)]


def forecast_memory(
    config: Mapping[str, Any], method: Method, *, is_lora: bool, rank: int, dtype: str, batch: int, length: int,
    new: int | None = None, rollouts: int | None = None, is_accumulated: bool = False, has_reference: bool = True,
    reward: Reward = "adapter", on_cpu: bool = False,
) -> Forecast:  # fmt: skip
    """Bytes of one training step of `batch` texts of `length` tokens (a DPO, SimPO or reward row is two texts).

    `new`: tokens of each text that are scored; `rollouts`: texts sampled before PPO's steps (`batch` where not told);
    `reward`: whether a reward model is there and, under LoRA, whether it is an adapter on the same base.
    """
    width = BYTES.get(dtype, 2)  # 8-bit and 4-bit weights compute in bfloat16
    texts = 2 * batch if method in {"dpo", "simpo", "reward", "bi_encoder"} else batch
    sampled = (rollouts or texts) if method in ONLINE else 0
    load = Load(texts, length, min(new or length, length), sampled, width, on_cpu)
    trained, read = FULL_COPIES[method]
    if not has_reference:
        read = tuple(name for name in read if name != "reference")
    if reward == "none":
        read = tuple(name for name in read if name != "reward")
    if method in {"grpo", "rloo"} and reward == "copy":
        read = (*read, "reward")
    kept = _kept_lora if is_lora else _kept_full
    always, gradients, copies, sentence = kept(config, method, trained, read, rank, dtype, reward)
    step = [
        *_activations(config, load, method, rank if is_lora else None),
        *_tiles(config, load, method, is_lora=is_lora),
        # PPO's value pass comes with the policy's gradients at hand, a step in parts with those of the parts before.
        *(gradients if is_accumulated else []),
    ]
    moments = [step, gradients, *([_rollout(config, load)] if sampled else [])]
    if method == "ppo":
        moments.append([*_activations(config, load, method, rank if is_lora else None), *gradients[:1]])
    return Forecast(always + max(moments, key=lambda parts: sum(part.n_bytes for part in parts)), copies, sentence)


def _kept_lora(
    config: Mapping[str, Any], method: str, trained: tuple[str, ...], read: tuple[str, ...], rank: int, dtype: str,
    reward: Reward,
) -> tuple[list[Part], list[Part], int, str]:  # fmt: skip
    """What is held all the time, gradients beside it, sets of weights, and a sentence."""
    adapter = count_adapter(config, rank)
    base = _body(config) if trained[0] in BODIES else config
    always = [Part("one frozen base", count_base_bytes(base, dtype))]
    # Adapters are kept in float32: weight, gradient and two moments.
    always += [Part(f"{name} adapter, its gradients and AdamW's moments", adapter * 16) for name in trained]
    copies = 1
    if "reward" in read and reward == "copy":
        always.append(Part("reward model: weights of its own", count_base_bytes(_body(config), dtype)))
        copies = 2
    elif "reward" in read:
        always.append(Part("reward adapter", adapter * 4))
    if method in {"dpo", "simpo", "kto", "grpo", "rloo"}:  # TRL keeps one more, frozen
        always.append(Part("start's adapter", adapter * 4))
    sentence = "LoRA: all models share one frozen base; each trained one is a small adapter on it."
    if copies > 1:
        sentence = (
            "LoRA: what is trained are small adapters on one frozen base; the reward model is no adapter on it, and "
            "keeps weights of its own."
        )
    return always, [], copies, sentence


def _kept_full(
    config: Mapping[str, Any], method: str, trained: tuple[str, ...], read: tuple[str, ...], rank: int, dtype: str,
    reward: Reward,
) -> tuple[list[Part], list[Part], int, str]:  # fmt: skip
    width = BYTES.get(dtype, 2)
    sizes = {name: width * count_parameters(_body(config) if name in BODIES else config) for name in (*trained, *read)}
    always = [Part(f"{name}: weights", n) for name, n in sizes.items()]
    always += [Part(f"{name}: AdamW's moments", 2 * sizes[name]) for name in trained]
    gradients = [Part(f"{name}: gradients", sizes[name]) for name in trained]
    copies = len(trained) + len(read)
    names = ", ".join((*trained, *read))
    plural = f"{copies} separate copies of the weights ({names})" if copies > 1 else "one copy of the weights"
    sentence = f"Full fine-tuning keeps {plural}; each trained one also needs gradients and AdamW's two moments."
    return always, gradients, copies, sentence
