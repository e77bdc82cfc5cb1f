"""KTO with TRL (Ethayarajh et al. 2024, 2402.01306, equation 7): chosen completions are good, rejected ones bad.

Several processes estimate the KL over all rows of a step's part, from the pairs that one process would have made.
The reference is the starting checkpoint: loaded a second time for full training, the base without its adapter (or TRL's
frozen copy of the adapter that training starts from) for LoRA.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from app.training.recipes import KtoRecipe
from worker.checkpoints import store_trained, weights_of
from worker.fitting import count_whole, facts_of_rows, keep_fitting, note_fit
from worker.job import Job, Watch
from worker.loading import Weights, load_full, load_tokenizer, load_trainable
from worker.preferences import Preferences, Row, preferences_of
from worker.recorder import Recorder, recorder_of_rows
from worker.several import n_processes


def unpair(rows: list[Row]) -> list[Row]:
    """Two rows a pair: a completion, and whether it is a good one. A completion that stands in several pairs on the
    same side is one row. First comes one row of each prompt, then a second of each, and so on: rows that stand beside
    each other are of different prompts."""
    found: dict[str, Row] = {}
    places: Counter[str] = Counter()
    placed = []
    for row in rows:
        for side in ("chosen", "rejected"):
            one = {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            if repr(one) not in found:
                found[repr(one)] = one
                placed.append((places[repr(row["prompt"])], one))
                places[repr(row["prompt"])] += 1
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def mismatch(part: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """For the KL: each prompt of a part of a step with the completion of the nearest row before of another prompt.

    TRL takes the row before, whatever it is; a completion of the same prompt is no mismatch, and the estimate would
    follow what training does to that very text.
    """
    prompts, texts = part["prompt_ids"], part["completion_ids"]
    n = len(prompts)
    others = [
        next((at for at in range(place - 1, place - n, -1) if prompts[at] != prompts[place]), place - 1)
        for place in range(n)
    ]
    return {**part, "KL_completion_ids": [texts[at] for at in others]}


def make_trainer(recipe: KtoRecipe, seed: int, start: Weights, preferences: Preferences, folder: Path) -> Any:
    """TRL's, with its rows ready."""
    from trl import KTOConfig, KTOTrainer

    from worker.dev_means import LoneMeans
    from worker.trl_run import as_dataset, offline_arguments

    class Trainer(LoneMeans, KTOTrainer):
        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
            """TRL mismatches completions within a process's rows; here within those of all processes."""
            ready = super()._prepare_dataset(dataset, processing_class, args, name)
            return ready.map(mismatch, batched=True, batch_size=args.per_device_train_batch_size * n_processes())

    tokenizer = load_tokenizer(start)
    return Trainer(
        model=load_trainable(start, recipe.is_lora, recipe.lora_rank, recipe.dtype, seed),
        ref_model=None if recipe.is_lora else load_full(start, recipe.dtype).requires_grad_(False),
        args=KTOConfig(
            **offline_arguments(recipe, folder, seed, start, has_dev=bool(preferences.dev)),
            beta=recipe.beta,
            desirable_weight=recipe.good_weight,
            undesirable_weight=recipe.bad_weight,
            disable_dropout=True,
        ),
        train_dataset=as_dataset(unpair(preferences.train), tokenizer),
        eval_dataset=as_dataset(unpair(preferences.dev), tokenizer),
        processing_class=tokenizer,
    )


def fit_kto(
    recipe: KtoRecipe,
    seed: int,
    start: Weights,
    preferences: Preferences,
    folder: Path,
    watch: Watch,
    recorder: Recorder | None = None,
) -> tuple[Any, Any, dict[str, float]]:
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from worker.trl_run import record, run_trainer

    trainer = make_trainer(recipe, seed, start, preferences, folder)
    record(trainer, recorder, recipe, seed)
    curves = run_trainer(trainer, watch, folder, patience=recipe.patience)
    return trainer.model, trainer.processing_class, curves


def train_kto(job: Job) -> None:
    """Trains on the recipe's snapshot and stores the checkpoint."""
    recipe: KtoRecipe = job.recipe
    preferences = preferences_of(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
    recorder = recorder_of_rows(job, preferences.dev, start)
    preferences = keep_fitting(job, recipe, start, preferences, count_whole(load_tokenizer(start)))
    note_fit(job, preferences)
    model, tokenizer, curves = fit_kto(recipe, job.seed, start, preferences, job.folder, job, recorder)
    job.spend(labels=len(preferences.train), trained_tokens=curves.get("tokens", 0))
    store_trained(job, model, tokenizer, curves, step=int(curves.get("step", 0)), facts=facts_of_rows(preferences))
