"""Loading checkpoints: a base, full weights, or an adapter on a base; safetensors only, never remote code.

What is loaded is checked first: a folder that has a manifest must match it, and an adapter is refused on a
base whose manifest has another hash than the one it was trained on.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.errors import AppError
from app.training.recipe_parts import NARROW
from worker.saving import MANIFEST, is_whole, read_manifest, sha256_of

if TYPE_CHECKING:
    from peft import LoraConfig

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class WrongBase(AppError):
    """An adapter and a base that do not belong together."""

    status_code = 422


@dataclass(frozen=True)
class Weights:
    """Where a checkpoint's files are. `base` is set for an adapter only; `place` is a folder or a hub id."""

    place: str
    manifest_sha256: str = ""
    base: "Weights | None" = None
    revision: str | None = None

    @property
    def folder(self) -> Path:
        return Path(self.place)

    @property
    def root(self) -> "Weights":
        """The full weights underneath."""
        return self.base.root if self.base else self


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_whole(weights: Weights) -> None:
    """Refuses a folder that differs from its manifest, or whose manifest differs from the row's."""
    folder = weights.folder
    if not (folder / MANIFEST).is_file():
        if weights.manifest_sha256:
            raise AppError(f"The checkpoint at {folder.name} has lost its manifest: make it again.")
        return
    if weights.manifest_sha256 and sha256_of(folder / MANIFEST) != weights.manifest_sha256:
        raise AppError(f"The manifest of the checkpoint at {folder.name} is not the one that was stored.")
    if not is_whole(folder):
        raise AppError(f"Files of the checkpoint at {folder.name} are missing or changed: make it again.")


def check_base(adapter: Weights, base: Weights) -> None:
    """Refuses an adapter on a base that has another hash than the one it was trained on."""
    manifest = read_manifest(adapter.folder) or {}
    wanted, found = manifest.get("base_sha256", ""), base.manifest_sha256
    if wanted and wanted != found:
        raise WrongBase(
            f"The adapter at {adapter.folder.name} was trained on a base with hash {wanted[:12]}, but this base has "
            f"{(found or 'none')[:12]}: choose the adapter's own base."
        )


# NARROW formats are of a frozen base, by bitsandbytes; what is computed is bfloat16.


def check_format(dtype: str) -> None:
    """Raises AppError where this machine cannot hold weights in a number format."""
    if dtype not in NARROW:
        return
    if not torch.cuda.is_available():
        raise AppError(f"{dtype} weights need an NVIDIA GPU, and this worker has none: choose float32 or bfloat16.")
    if find_spec("bitsandbytes") is None:
        raise AppError(f"{dtype} weights need bitsandbytes: `pip install bitsandbytes` into the worker's environment.")


def number_format(dtype: str) -> dict[str, Any]:
    """What `from_pretrained` is told of a number format; 8-bit and 4-bit weights compute in bfloat16.

    NF4 with doubly quantised scales is QLoRA's (2305.14314).
    """
    check_format(dtype)
    if dtype not in NARROW:
        return {"dtype": getattr(torch, dtype)}
    from transformers import BitsAndBytesConfig

    if dtype == "8-bit":
        narrow = BitsAndBytesConfig(load_in_8bit=True)
    else:
        narrow = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    return {"dtype": torch.bfloat16, "quantization_config": narrow, "device_map": {"": torch.cuda.current_device()}}


def on_device(model: Any, dtype: str) -> Any:
    """The model where it is to compute; bitsandbytes has put its own there already."""
    return model if dtype in NARROW else model.to(device())


def _known(weights: Weights) -> dict[str, Any]:
    return {"trust_remote_code": False, **({"revision": weights.revision} if weights.revision else {})}


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer of the full weights underneath, padding on the left, with a pad token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.root.place, **_known(weights.root))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_of(weights: Weights) -> int | None:
    """How many tokens the model was made for, if its configuration says."""
    from transformers import AutoConfig

    root = weights.root
    config = AutoConfig.from_pretrained(root.place, **_known(root)).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def load_full(weights: Weights, dtype: str = "float32") -> Any:
    """A causal language model with all weights in one; an adapter is merged into its base."""
    from transformers import AutoModelForCausalLM

    check_whole(weights)
    if weights.base is not None:
        if dtype in NARROW:
            raise AppError(f"An adapter cannot be merged into {dtype} weights without loss: choose LoRA or bfloat16.")
        check_base(weights, weights.base)
        from peft import PeftModel

        inner = load_full(weights.base, dtype)
        merged: Any = PeftModel.from_pretrained(inner, weights.place).merge_and_unload()
        return merged
    model = AutoModelForCausalLM.from_pretrained(
        weights.place, use_safetensors=True, **number_format(dtype), **_known(weights)
    )
    return on_device(model, dtype)


def lora_config(rank: int, task: str = "CAUSAL_LM") -> "LoraConfig":
    """LoRA on every linear layer, no dropout; a reward model also trains its score head."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def load_lora(weights: Weights, rank: int, dtype: str = "float32", name: str = "default") -> Any:
    """A PeftModel with one trainable adapter: the checkpoint's own where it is one, else a fresh one of `rank`."""
    from peft import PeftModel, get_peft_model

    inner = load_full(weights.base or weights, dtype)
    if weights.base is None:
        return get_peft_model(inner, lora_config(rank), adapter_name=name)
    check_whole(weights)
    check_base(weights, weights.base)
    return PeftModel.from_pretrained(inner, weights.place, adapter_name=name, is_trainable=True)


def load_trainable(weights: Weights, is_lora: bool, rank: int, dtype: str, seed: int) -> Any:
    """What a trainer is given: all weights, or a frozen base with one trainable adapter, drawn from the seed if new."""
    torch.manual_seed(seed)
    return load_lora(weights, rank, dtype) if is_lora else load_full(weights, dtype)


def load_reward(weights: Weights, dtype: str = "float32") -> Any:
    """A frozen reward model: a sequence classifier with one output, from full weights or from an adapter with its head,
    or a bi-encoder. read_scores (worker/bi_encoder.py) reads all of them."""
    from transformers import AutoModelForSequenceClassification

    from worker.bi_encoder import is_bi_encoder, load_bi_encoder

    if is_bi_encoder(weights):
        return load_bi_encoder(weights, "bfloat16" if dtype in NARROW else dtype).eval().requires_grad_(False)

    check_whole(weights)
    root = weights.base or weights
    if weights.base is not None:
        check_whole(weights.base)
        check_base(weights, weights.base)
    model = AutoModelForSequenceClassification.from_pretrained(
        root.place, num_labels=1, use_safetensors=True, **number_format(dtype), **_known(root)
    )
    if weights.base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, weights.place)
    # Where the score is read: at the last token that is no pad.
    model.config.pad_token_id = load_tokenizer(weights).pad_token_id
    return on_device(model, dtype).eval().requires_grad_(False)


def render_prompt(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The exact text a policy continues: the chat template where there is one, else the contents line by line."""
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return "\n\n".join(message["content"] for message in messages) + "\n\n"


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered prompt. A chat template writes its own special tokens, so none are added then."""
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return [int(i) for i in ids]
