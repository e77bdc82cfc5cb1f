"""Makes the demo's base model: a byte-level BPE and a tiny Llama, trained on the demo's own corpus.

A plain next-token loop (cross-entropy over all tokens, AdamW, warm-up then cosine); about half a million
weights, so that the whole study fits a laptop's afternoon tea. It needs no resume state: it takes half a minute.
"""

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.prompts.demo_corpus import four_choice_items, stream_documents, write_documents
from app.training.recipes import DemoBaseRecipe
from worker.checkpoints import store_checkpoint
from worker.job import Job
from worker.saving import write_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(texts: list[str], recipe: DemoBaseRecipe) -> "PreTrainedTokenizerFast":
    """A byte-level BPE learned from `texts`; every byte has a token, so nothing is unknown."""
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL[2:],
        model_max_length=recipe.positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(recipe: DemoBaseRecipe, tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _encode_documents(tokenizer: Any, documents: list[tuple[str, str]]) -> list[list[int]]:
    texts = [f"<|user|>{prompt}{END}<|assistant|>{completion}{END}" for prompt, completion in documents]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _pad(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (b, t) and labels with -100 on padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = labels[place, : len(row)] = torch.tensor(row)
    return ids, labels


def _rate(step: int, steps: int, warmup: int = 20) -> float:
    """Warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_base(
    recipe: DemoBaseRecipe, seed: int, on_step: Callable[[int, dict[str, float]], None]
) -> tuple["LlamaForCausalLM", "PreTrainedTokenizerFast"]:
    """Trains the base; calls `on_step(step, metrics)` after each of `recipe.steps` steps (from 1)."""
    first = write_documents(min(4000, recipe.steps * recipe.batch_size), seed)
    tokenizer = make_tokenizer([text for pair in first for text in pair], recipe)
    documents = stream_documents(seed)
    model = make_model(recipe, tokenizer, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(recipe.steps):
        rows = _encode_documents(tokenizer, list(islice(documents, recipe.batch_size)))
        ids, labels = _pad(rows, tokenizer.pad_token_id)
        # Right padding under a causal mask: no real token sees a pad, so no attention mask is needed.
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        lr = recipe.lr * _rate(step, recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, {"loss": loss.item(), "lr": lr, "grad_norm": norm.item(), "tokens": float(ids.numel())})
    return model.eval(), tokenizer


def make_demo_base(job: Job) -> None:
    """Trains the base and stores it as a checkpoint, with the 4-choice items (items.jsonl) beside the weights."""
    recipe: DemoBaseRecipe = job.recipe

    n_tokens = 0.0

    def on_step(step: int, values: dict[str, float]) -> None:
        nonlocal n_tokens
        n_tokens += values["tokens"]
        if step % 5 == 0 or step in {1, recipe.steps}:
            job.metric(step, **values)
        job.progress(step, recipe.steps, f"loss {values['loss']:.2f}")

    model, tokenizer = train_base(recipe, job.seed, on_step)
    job.spend(trained_tokens=n_tokens)
    items = four_choice_items()

    def write(folder: Path) -> None:
        write_model(model, tokenizer, folder)
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (folder / "items.jsonl").write_text(lines, encoding="utf-8")

    n = sum(p.numel() for p in model.parameters())
    facts = {"context": recipe.positions, "has_chat_template": True, "items": len(items)}
    store_checkpoint(job, write, method="base", step=recipe.steps, n_parameters=n, facts=facts)
    job.log(f"base with {n:,} weights; four-choice items: items.jsonl ({len(items)})")
