"""Direct preference optimisation with TRL (Rafailov et al. 2023, 2305.18290, equation 7).

The reference is the starting checkpoint: loaded a second time from disk for full training; for LoRA the base with
its adapters off, or TRL's frozen copy of the adapter that training starts from.
"""

from pathlib import Path
from typing import Any

from app.training.recipes import DpoRecipe
from worker.checkpoints import store_trained, weights_of
from worker.job import Job
from worker.loading import Weights, load_full, load_tokenizer, load_trainable
from worker.ppo import Watch
from worker.preferences import Preferences, preferences_of


def make_trainer(recipe: DpoRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path) -> Any:
    from trl import DPOConfig, DPOTrainer

    from worker.trl_run import as_dataset, offline_arguments

    tokenizer = load_tokenizer(start)
    has_sft = recipe.sft_weight > 0
    return DPOTrainer(
        model=load_trainable(start, recipe.is_lora, recipe.lora_rank, recipe.dtype),
        ref_model=None if recipe.is_lora else load_full(start, recipe.dtype).requires_grad_(False),
        args=DPOConfig(
            **offline_arguments(recipe, folder, seed, start, has_dev=bool(preferences.dev)),
            beta=recipe.beta,
            loss_type=[recipe.loss, "sft"] if has_sft else [recipe.loss],
            loss_weights=[1.0, recipe.sft_weight] if has_sft else None,
            label_smoothing=recipe.label_smoothing,
            disable_dropout=True,
        ),
        train_dataset=as_dataset(preferences.train, tokenizer),
        eval_dataset=as_dataset(preferences.dev, tokenizer),
        processing_class=tokenizer,
    )


def fit_dpo(
    recipe: DpoRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path, watch: Watch
) -> tuple[Any, Any, dict[str, float]]:
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from worker.trl_run import run_trainer

    trainer = make_trainer(recipe, seed, start, preferences, folder)
    return trainer.model, trainer.processing_class, run_trainer(trainer, watch, folder)


def train_dpo(job: Job) -> None:
    """Trains on the recipe's snapshot and stores the checkpoint."""
    recipe: DpoRecipe = job.recipe
    preferences = preferences_of(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
    model, tokenizer, curves = fit_dpo(recipe, job.seed, start, preferences, job.folder, job)
    job.spend(labels=len(preferences.train), trained_tokens=curves.get("tokens", 0))
    store_trained(job, model, tokenizer, curves, step=int(curves.get("step", 0)))
