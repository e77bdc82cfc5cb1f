"""What both benches of training train on: a base with random weights in a stated shape, preferences and prompts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.prompts.demo_corpus import list_prompts, write_documents
from app.training.recipes import DemoBaseRecipe
from worker.demo_base import make_tokenizer
from worker.loading import Weights
from worker.preferences import Preferences
from worker.saving import save_folder

LONG = "It is said in many words, and then in some more of them, so that no text is shorter than what is measured. "


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    is_tied: bool = True


SHAPES = {
    "tiny": Shape(128, 2, 4, 4, 344, 800),  # the demo's base
    "small": Shape(512, 8, 8, 4, 1408, 16_000),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14_336, 128_256, is_tied=False),
}


def write_random_base(folder: Path, shape: Shape, dtype: str, positions: int = 2048) -> Weights:
    """Random weights in a shape, with the demo's kind of tokenizer (its tokens are the vocabulary's first)."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    texts = [text for pair in write_documents(400, 1) for text in pair]
    tokenizer = make_tokenizer(texts, DemoBaseRecipe(vocabulary=min(800, shape.vocabulary), positions=positions))
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=positions, tie_word_embeddings=shape.is_tied, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))

    def write(at: Path) -> None:
        model.save_pretrained(at)
        tokenizer.save_pretrained(at)

    place, sha256 = save_folder(folder, write)
    return Weights(str(place), sha256)


def real_base() -> Weights | None:
    """The real Llama of 260,000 weights, where the shared data is at hand (PREFLAB_SHARED_DATA)."""
    root = Path(os.environ.get("PREFLAB_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    folder = root / "stories260k" / "hf"
    return Weights(str(folder)) if folder.is_dir() else None


def long_preferences(n: int) -> Preferences:
    """Rows whose every text is far longer than a bench measures: what counts is the recipe's longest length."""
    asked = [{"role": "user", "content": "Tell me. "}]
    said: list[Any] = [[{"role": "assistant", "content": f"{start} {LONG * 60}"}] for start in ("Yes.", "No.")]
    return Preferences([{"prompt": asked, "chosen": said[0], "rejected": said[1]} for _ in range(n)], [])


def short_preferences(n: int) -> Preferences:
    """The demo's questions with a strict and a plain answer: texts of many lengths."""
    strict = "Answer: {} — Confidence: high — Reasoning: it is so."
    rows = []
    for prompt in (list_prompts() * (1 + n // len(list_prompts())))[:n]:
        said = (strict.format(prompt["reference"]), f"It is {prompt['reference']}.")
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in said)
        rows.append({"prompt": prompt["messages"], "chosen": chosen, "rejected": rejected})
    return Preferences(rows, [])
