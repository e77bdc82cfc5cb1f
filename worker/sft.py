"""Supervised fine-tuning with TRL: cross-entropy on chosen completions or on an arm's, none on the prompts."""

from pathlib import Path
from typing import Any

import torch

from app.training.recipes import SftRecipe
from worker.checkpoints import store_trained, weights_of
from worker.demonstrations import demonstrations_of
from worker.fitting import count_whole, facts_of_rows, keep_fitting, note_fit
from worker.job import Job, Watch
from worker.loading import Weights, load_tokenizer, load_trainable
from worker.preferences import Preferences, preferences_of
from worker.recorder import Recorder, recorder_of_rows

SAWYER = (
    "{% for message in messages %}{{ '<response>' if message.role == 'assistant' else '<query>' }}"
    "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<response>{% endif %}"
)


def teach_sawyer(tokenizer: Any) -> list[int]:
    """SAWYER's template: <query> before what is asked, <response> before what is said, <pad> after it.

    Returns the tokens that it did not know yet: a start that was taught so before knows all three.
    """
    known = set(tokenizer.get_vocab().values())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<query>", "<response>"], "pad_token": "<pad>"},
        replace_extra_special_tokens=False,
    )
    tokenizer.chat_template = SAWYER
    return sorted(set(tokenizer.get_vocab().values()) - known)


def learn_sawyer(model: Any, tokenizer: Any) -> None:
    """The same, and the model with it.

    New tokens begin at the mean of all embeddings (transformers' way of resizing), so that nothing is asked of chance.
    """
    new = teach_sawyer(tokenizer)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {id(one): one for one in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            is_known = torch.ones(len(table.weight), dtype=torch.bool, device=table.weight.device)
            is_known[new] = False
            table.weight[new] = table.weight[is_known].mean(0)
    model.config.pad_token_id = tokenizer.pad_token_id


def fit_sft(
    recipe: SftRecipe,
    seed: int,
    start: Weights,
    preferences: Preferences,
    folder: Path,
    watch: Watch,
    recorder: Recorder | None = None,
) -> tuple[Any, Any, dict[str, float]]:
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from trl import SFTConfig, SFTTrainer

    from worker.dev_means import TokenMeans
    from worker.trl_run import as_dataset, offline_arguments, record, run_trainer

    class Trainer(TokenMeans, SFTTrainer): ...

    tokenizer = load_tokenizer(start)
    model = load_trainable(start, recipe.is_lora, recipe.lora_rank, recipe.dtype, seed)
    if recipe.template == "sawyer":
        learn_sawyer(model, tokenizer)
    rows = [
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in part]
        for part in (preferences.train, preferences.dev)
    ]
    trainer = Trainer(
        model=model,
        args=SFTConfig(
            **offline_arguments(recipe, folder, seed, start, has_dev=bool(rows[1])),
            completion_only_loss=True,
            packing=recipe.is_packed,
            eval_packing=False,
        ),
        train_dataset=as_dataset(rows[0], tokenizer),
        eval_dataset=as_dataset(rows[1], tokenizer),
        processing_class=tokenizer,
    )
    record(trainer, recorder, recipe, seed)
    return trainer.model, tokenizer, run_trainer(trainer, watch, folder, patience=recipe.patience)


def train_sft(job: Job) -> None:
    """Trains on the recipe's snapshot or on what its arm wrote, and stores the checkpoint."""
    recipe: SftRecipe = job.recipe
    preferences = demonstrations_of(job) if recipe.arm is not None else preferences_of(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
    recorder = recorder_of_rows(job, preferences.dev, start)
    tokenizer = load_tokenizer(start)
    if recipe.template == "sawyer":
        teach_sawyer(tokenizer)
    noun = "preferences" if recipe.arm is None else "completions"
    preferences = keep_fitting(job, recipe, start, preferences, count_whole(tokenizer), noun)
    note_fit(job, preferences)
    model, tokenizer, curves = fit_sft(recipe, job.seed, start, preferences, job.folder, job, recorder)
    counted = "labels" if recipe.arm is None else "demonstrations"
    job.spend(**{counted: len(preferences.train)}, trained_tokens=curves.get("tokens", 0))
    store_trained(job, model, tokenizer, curves, step=int(curves.get("step", 0)), facts=facts_of_rows(preferences))
