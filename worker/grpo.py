"""Group-relative policy optimisation with TRL (Shao et al. 2024, 2402.03300), rewarded by the rule or a reward model.

Simplified: one update per rollout unless the recipe says more; the reference, kept only where beta is above zero, is
the starting checkpoint, which TRL loads again from where the policy came from.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.prompts.strict_format import score_by_rule
from app.training.recipes import GrpoRecipe
from worker.loading import Weights, encode_prompt, load_reward, load_tokenizer, load_trainable, render_prompt
from worker.ppo import Watch, pad_left
from worker.ppo_models import positions

RewardFunction = Callable[..., list[float]]


@dataclass(frozen=True)
class RlPrompt:
    """A prompt to train on: its messages and, for the rule, its reference answer."""

    messages: list[dict[str, str]]
    reference: str | None = None


def rule_reward(flip_rate: float, seed: int) -> RewardFunction:
    """The rule's score in [0, 1]. An oracle's errors: a share of texts, fixed by hash, has its reward turned round."""

    def by_rule(prompts: list[Any], completions: list[Any], reference: list[str | None], **_: Any) -> list[float]:
        rewards = []
        for prompt, completion, gold in zip(prompts, completions, reference, strict=True):
            text = _text_of(completion)
            best = score_by_rule("Answer: x — Confidence: low — Reasoning: x", "x" if gold is not None else None)
            share = score_by_rule(text, gold) / best
            digest = hashlib.sha256(f"{seed}\0{prompt}\0{text}".encode()).digest()
            is_flipped = int.from_bytes(digest[:6], "big") / 2**48 < flip_rate
            rewards.append(1 - share if is_flipped else share)
        return rewards

    return by_rule


def model_reward(weights: Weights, dtype: str) -> RewardFunction:
    """The reward model's score of prompt and completion, with the end token where the completion ended."""
    model = load_reward(weights, dtype).eval().requires_grad_(False)
    tokenizer = load_tokenizer(weights)

    @torch.no_grad()
    def by_model(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [
            encode_prompt(tokenizer, prompt if isinstance(prompt, str) else render_prompt(tokenizer, prompt))
            + list(ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        ids, mask = pad_left(rows, tokenizer.pad_token_id, model.device)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        return [float(score) for score in logits[:, 0]]

    return by_model


def _text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def make_trainer(
    recipe: GrpoRecipe, seed: int, start: Weights, prompts: list[RlPrompt], reward: RewardFunction, folder: Path
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from worker.trl_run import quiet_arguments

    tokenizer = load_tokenizer(start)
    rows = [
        {
            "prompt": p.messages if tokenizer.chat_template else render_prompt(tokenizer, p.messages),
            "reference": p.reference,
        }
        for p in prompts
    ]
    return GRPOTrainer(
        model=load_trainable(start, recipe.is_lora, recipe.lora_rank, recipe.dtype),
        reward_funcs=reward,
        args=GRPOConfig(
            **quiet_arguments(recipe, folder, seed),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.prompts_per_step * recipe.group_size,
            num_generations=recipe.group_size,
            num_iterations=recipe.num_iterations,
            max_completion_length=recipe.max_new_tokens,
            temperature=recipe.temperature,
            top_k=0,
            top_p=1.0,
            beta=recipe.beta,
            epsilon=recipe.clip,
            lr_scheduler_type="linear",
            adam_beta2=0.95,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def fit_grpo(
    recipe: GrpoRecipe, seed: int, start: Weights, prompts: list[RlPrompt], reward: RewardFunction, folder: Path,
    watch: Watch,
) -> tuple[Any, Any, dict[str, float]]:  # fmt: skip
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from worker.trl_run import run_trainer

    trainer = make_trainer(recipe, seed, start, prompts, reward, folder)
    return trainer.model, trainer.processing_class, run_trainer(trainer, watch, folder)
