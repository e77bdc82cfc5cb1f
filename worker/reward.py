"""The reward model with TRL: one output, −log σ(r(chosen) − r(rejected)) (Bradley and Terry 1952).

A classifier that reads prompt and completion together, or SAWYER's bi-encoder (worker/bi_encoder.py).
"""

from pathlib import Path
from typing import Any

import torch

from app.training.recipe_parts import NARROW
from app.training.recipes import RewardRecipe
from worker.bi_encoder import make_bi_encoder
from worker.checkpoints import store_trained, weights_of
from worker.fitting import count_parts, count_whole, facts_of_rows, keep_fitting, note_fit
from worker.job import Job, Watch
from worker.llm import RewardScorer
from worker.loading import Weights, device, load_full, load_tokenizer, lora_config, number_format
from worker.preferences import Preferences, preferences_of
from worker.reward_measure import measure_reward


def make_classifier(start: Weights, recipe: RewardRecipe, seed: int) -> Any:
    """A classifier with one output on the body of the starting policy; its head is drawn from the seed."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(start.root.place, num_labels=1, trust_remote_code=False)
    config.pad_token_id = load_tokenizer(start).pad_token_id
    if recipe.dtype in NARROW:  # with LoRA only; a body of 8 or 4 bits is read as it is, not copied into another
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            start.root.place, config=config, use_safetensors=True, trust_remote_code=False,
            **number_format(recipe.dtype),
        )  # fmt: skip
    else:
        policy = load_full(start, recipe.dtype) if not recipe.is_lora else load_full(start.root, recipe.dtype)
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, recipe.dtype))
        getattr(model, model.base_model_prefix).load_state_dict(policy.base_model.state_dict())
        model.to(device())
    if recipe.is_lora:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(recipe.lora_rank, "SEQ_CLS"))
    return model


def fit_reward(
    recipe: RewardRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path, watch: Watch
) -> tuple[Any, Any, dict[str, float]]:
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from trl import RewardConfig

    from worker.reward_trainer import SureRewardTrainer, in_parts
    from worker.trl_run import as_dataset, offline_arguments, run_trainer

    tokenizer = load_tokenizer(start)
    if recipe.architecture == "bi_encoder":
        rank = recipe.lora_rank if recipe.is_lora else None
        model, read = make_bi_encoder(start, recipe.scoring, rank, recipe.dtype, seed), in_parts
    else:
        model, read = make_classifier(start, recipe, seed), as_dataset
    trainer = SureRewardTrainer(
        recipe,
        model=model,
        args=RewardConfig(
            **offline_arguments(recipe, folder, seed, start, has_dev=bool(preferences.dev)),
            center_rewards_coefficient=recipe.center or None,
        ),
        train_dataset=read(preferences.train, tokenizer),
        eval_dataset=read(preferences.dev, tokenizer),
        processing_class=tokenizer,
    )
    return trainer.model, tokenizer, run_trainer(trainer, watch, folder, patience=recipe.patience)


def train_reward(job: Job) -> None:
    """Trains on the recipe's snapshot and stores the checkpoint."""
    recipe: RewardRecipe = job.recipe
    preferences = preferences_of(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
    if recipe.is_lora and start.base is not None:  # so that PPO's policy and its reward model can share that base
        job.log("a LoRA reward model begins at the base under its start: the start's adapter is not read", "warning")
    read = count_parts if recipe.architecture == "bi_encoder" else count_whole
    preferences = keep_fitting(job, recipe, start, preferences, read(load_tokenizer(start)))
    note_fit(job, preferences)
    model, tokenizer, curves = fit_reward(recipe, job.seed, start, preferences, job.folder, job)
    job.spend(labels=len(preferences.train), trained_tokens=curves.get("tokens", 0))
    facts = {
        "architecture": model.describe() if recipe.architecture == "bi_encoder" else "sequence classifier, one output",
        "dtype": recipe.dtype,
        **facts_of_rows(preferences),
        **measure_reward(job, RewardScorer(start, model=model), preferences),
    }
    store_trained(job, model, tokenizer, curves, role="reward", step=int(curves.get("step", 0)), facts=facts)
