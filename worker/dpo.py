"""Direct preference optimisation and SimPO: our losses (worker/preference_losses.py) on TRL's trainer.

DPO's reference is the starting checkpoint or, in a later round, one that it was trained from. Its log-probabilities are
looked up or, once for all runs against the same weights, computed before the first step; no second model is kept on the
device while training. SimPO has no reference.
"""

from pathlib import Path
from typing import Any

from app.training.recipes import DpoRecipe, SimpoRecipe
from worker.checkpoints import store_trained, weights_of
from worker.distance import OtherReference
from worker.fitting import count_whole, facts_of_rows, keep_fitting, note_fit
from worker.job import Job, Watch
from worker.loading import Weights, load_tokenizer, load_trainable
from worker.preferences import Preferences, preferences_of
from worker.recorder import Recorder, recorder_of_rows
from worker.reference_cache import Cache, MemoryCache, RowCache, say_reads, weights_key

PairRecipe = DpoRecipe | SimpoRecipe


def make_trainer(
    recipe: PairRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path, cache: Cache | None = None,
    reference: Weights | None = None,
) -> Any:  # fmt: skip
    from trl import DPOConfig

    from worker.preference_trainer import PreferenceTrainer, SimpoTrainer
    from worker.trl_run import as_dataset, offline_arguments

    tokenizer = load_tokenizer(start)
    make = PreferenceTrainer if isinstance(recipe, DpoRecipe) else SimpoTrainer
    wanted = (recipe.is_lora, recipe.lora_rank, recipe.dtype, seed)
    return make(
        recipe, cache or MemoryCache(), reference=load_trainable(reference, *wanted) if reference else None,
        model=load_trainable(start, *wanted),
        args=DPOConfig(
            **offline_arguments(recipe, folder, seed, start, has_dev=bool(preferences.dev)),
            precompute_ref_log_probs=True,  # the reference is the start itself: asked before the first step
            disable_dropout=True,
        ),
        train_dataset=as_dataset(preferences.train, tokenizer),
        eval_dataset=as_dataset(preferences.dev, tokenizer),
        processing_class=tokenizer,
    )  # fmt: skip


def fit_dpo(
    recipe: PairRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path, watch: Watch,
    cache: Cache | None = None, recorder: Recorder | None = None, reference: Weights | None = None,
) -> tuple[Any, Any, dict[str, float]]:  # fmt: skip
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from worker.trl_run import record, run_trainer

    trainer = make_trainer(recipe, seed, start, preferences, folder, cache, reference)
    if isinstance(recipe, DpoRecipe):
        fit, n = preferences.fit, 2 * (len(preferences.train) + len(preferences.dev))
        n_left_out = 2 * (fit.left_out + fit.dev_left_out) if fit else 0
        watch.log(say_reads(n, len(trainer.own), trainer.n_known, n_left_out))
        watch.spend(reference_passes=trainer.n_reference_passes)
    record(trainer, recorder, recipe, seed, OtherReference(reference, recipe.dtype) if recorder and reference else None)
    return trainer.model, trainer.processing_class, run_trainer(trainer, watch, folder, patience=recipe.patience)


def _train(job: Job) -> None:
    recipe: PairRecipe = job.recipe
    preferences = preferences_of(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
        other = getattr(recipe, "reference", recipe.start)  # SimPO has none
        reference = weights_of(session, other) if other != recipe.start else None
    name = weights_key(reference or start, recipe.dtype, is_merged=not recipe.is_lora)
    cache = RowCache(job, name) if name else None
    recorder = recorder_of_rows(job, preferences.dev, start)
    preferences = keep_fitting(job, recipe, start, preferences, count_whole(load_tokenizer(start)))
    note_fit(job, preferences)
    model, tokenizer, curves = fit_dpo(
        recipe, job.seed, start, preferences, job.folder, job, cache, recorder, reference
    )
    job.spend(labels=len(preferences.train), trained_tokens=curves.get("tokens", 0))
    store_trained(job, model, tokenizer, curves, step=int(curves.get("step", 0)), facts=facts_of_rows(preferences))


def train_dpo(job: Job) -> None:
    """Trains on the recipe's snapshot by DPO and stores the checkpoint."""
    _train(job)


def train_simpo(job: Job) -> None:
    """Trains on the recipe's snapshot by SimPO and stores the checkpoint."""
    _train(job)
