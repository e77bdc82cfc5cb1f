"""What every TRL trainer here has in common: quiet arguments, rows as data sets, live metrics, cancel and resume.

Imported only inside functions of the files that train with TRL: it takes six seconds to import.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback

from app.errors import AppError
from app.training.recipe_parts import OfflineRecipe, SampledRecipe, TrainingRecipe
from worker.distance import Measure, StartReference
from worker.job import Watch
from worker.keeping_best import BestCallback
from worker.loading import Weights, context_of, device, render_prompt
from worker.pausing import Pauser, has_turned, may_pause, stop_paused
from worker.recorder import Recorder
from worker.saving import seal_folder, take_newest_whole
from worker.several import LONGEST_WAIT_S, Released, is_first, n_processes, rank, share_rows
from worker.together import alone, gather_list

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

# TRL's and transformers' names → ours. What is missing here and in KEPT is not a curve.
NAMES = {
    "loss": "loss",
    "eval_loss": "dev_loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "eval_entropy": "dev_entropy",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "dev_token_accuracy",
    "accuracy": "accuracy",
    "eval_accuracy": "dev_accuracy",
    "margin": "margin",
    "eval_margin": "dev_margin",
    "mean_reward": "reward",
    "eval_mean_reward": "dev_reward",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "eval_rewards/chosen": "dev_reward_chosen",
    "eval_rewards/rejected": "dev_reward_rejected",
    "eval_rewards/margins": "dev_margin",
    "eval_rewards/accuracies": "dev_accuracy",
    "logps/chosen": "log_prob_chosen",
    "logps/rejected": "log_prob_rejected",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "unended",
    "clip_ratio/region_mean": "clip_fraction",
    "frac_reward_zero_std": "groups_without_spread",
    "unreadable": "unreadable",
    "num_tokens": "tokens",
    "epoch": "epoch",
}


class WatchCallback(TrainerCallback):
    """Passes metrics on, asks for a cancel at every step, and seals each resume state once it is written."""

    def __init__(self, watch: Watch, folder: Path) -> None:
        self.watch, self.folder = watch, folder
        self.latest: dict[str, float] = {}
        self._tokens: tuple[float, float] | None = None  # how many, and when
        self._length = 0.0  # tokens of a rollout's completions on average, where any are sampled

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.check()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.check()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {NAMES[k]: float(v) for k, v in (logs or {}).items() if k in NAMES and isinstance(v, int | float)}
        self._length = values.get("length", self._length)
        if (
            "kl" in values and self._length
        ):  # GRPO's and RLOO's is TRL's mean over tokens: in nats a completion, as PPO's
            values["kl"] *= self._length
        if "tokens" in values and "loss" in values:
            at = time.monotonic()
            if self._tokens is not None and values["tokens"] > self._tokens[0]:
                values["tokens_per_s"] = (values["tokens"] - self._tokens[0]) / (at - self._tokens[1])
            self._tokens = values["tokens"], at
        if values:
            self.latest |= values
            self.watch.metric(state.global_step, **values)
        self.latest["step"] = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.flush()  # who goes on from here never says these steps again
        # The manifest comes last: a state without one was cut off while it was written, and is passed over.
        PartialState().wait_for_everyone()  # each process writes the state of its own random numbers
        if is_first():
            seal_folder(self.folder / f"checkpoint-{state.global_step}")


class TokensCallback(TrainerCallback):
    """Keeps TRL's count of trained tokens with the resume state, where TRL begins at 0 again (GRPO and RLOO do not)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._total_train_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.num_input_tokens_seen = self.trainer._total_train_tokens


class SpendCallback(TrainerCallback):
    """Calls `spend()` whenever a resume state is stored, so that what was spent before a crash stays counted."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.spend = spend

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.spend()


class LookCallback(TrainerCallback):
    """Calls `look(step)` before the first step, every few steps and after the last; has the run paused where asked.

    Of several processes the first alone looks, and all of them pause. `whole_every`: steps after which a state can be
    gone on from exactly; a pause waits for the next.
    """

    def __init__(
        self, every: int, look: Callable[[int], None], may_pause: bool, pauser: Pauser | None, whole_every: int
    ) -> None:
        self.every, self.look, self.whole_every = every, look, whole_every
        self.may_pause, self.pauser = may_pause, pauser
        self.is_pausing = self.has_looked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.look(state.global_step)
            self.has_looked = True
        if self.has_looked and state.global_step % self.whole_every == 0 and state.global_step < state.max_steps:
            self.has_looked = False
            if self.may_pause and has_turned(self.pauser):
                self.is_pausing = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_pausing:
            control.should_training_stop = True  # only now, so that the state just stored does not say so

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_pausing:
            raise stop_paused(self.pauser, state.global_step)


def look_every(
    trainer: Any, recipe: Any, recorder: Recorder | None, look: Callable[[int], None], whole_every: int = 1
) -> None:
    """Adds the LookCallback. Every process but the first is without a recorder, and has to learn when to pause."""
    pauser = recorder.pauser if recorder is not None else None
    if recorder is not None or may_pause(recipe):
        seen = look if recorder is not None else lambda step: None
        trainer.add_callback(LookCallback(recipe.sample_every, seen, may_pause(recipe), pauser, whole_every))


def record(
    trainer: Any, recorder: Recorder | None, recipe: SampledRecipe, seed: int, measure: Measure | None = None
) -> None:
    """Has the recorder look at the policy while it trains; its distance is that to the start, or as `measure` says."""
    if recorder is not None:
        measure = measure or StartReference(trainer.model)

    def look(step: int) -> None:
        assert recorder is not None
        recorder.look(step, trainer.model, recipe.sample_tokens, seed, measure)

    look_every(trainer, recipe, recorder, look)


def quiet_arguments(recipe: TrainingRecipe, folder: Path, seed: int) -> dict[str, Any]:
    """Arguments shared by all trainers: nothing leaves the machine, nothing that the recipe does not say."""
    return {
        "output_dir": str(folder),
        "learning_rate": recipe.lr,
        # Below 1 this is a share of all steps.
        "warmup_steps": min(recipe.warmup_share, 0.999),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": seed,
        "data_seed": seed,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": device().type == "cpu",
        "ddp_timeout": LONGEST_WAIT_S,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def offline_arguments(recipe: OfflineRecipe, folder: Path, seed: int, start: Weights, has_dev: bool) -> dict[str, Any]:
    """Arguments of the trainers that read a snapshot. No text is longer than the model was made for."""
    size = share_rows(recipe.batch_size, recipe.accumulate)
    return {
        **quiet_arguments(recipe, folder, seed),
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": max(1, max(8, size * n_processes()) // n_processes()),
        "gradient_accumulation_steps": recipe.accumulate,
        "lr_scheduler_type": recipe.schedule,
        "max_length": min(recipe.max_length, context_of(start) or recipe.max_length),
        "eval_strategy": "steps" if has_dev else "no",
        "eval_steps": recipe.eval_every,
    }


def as_dataset(rows: list[dict[str, Any]], tokenizer: Any) -> datasets.Dataset | None:
    """A data set of messages where there is a chat template, else of rendered text; None without rows."""
    if not rows:
        return None
    if tokenizer.chat_template:
        return datasets.Dataset.from_list(rows)
    plain = [{name: _plain(tokenizer, name, value) for name, value in row.items()} for row in rows]
    return datasets.Dataset.from_list(plain)


def _plain(tokenizer: Any, name: str, value: Any) -> Any:
    """Messages as text; a label or a probability as it is."""
    if not isinstance(value, list):
        return value
    return render_prompt(tokenizer, value) if name == "prompt" else value[0]["content"]


def dry_step(trainer: Any) -> None:
    """One forward and backward pass on the longest batch, thrown away: want of memory shows in the first seconds.

    Raises AppError with the rows per step that fit. Weights, curves and random numbers are left as they were. Each of
    several processes tries by itself, and where one has no room all of them end.
    """
    rows = trainer.train_dataset
    size = min(trainer.args.per_device_train_batch_size, len(rows))
    lengths = [sum(len(value) for name, value in row.items() if name.endswith("_ids") and value) for row in rows]
    longest = sorted(range(len(rows)), key=lengths.__getitem__)[-size:]
    fitting, failed = size, None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), alone():
        while fitting:
            try:
                _pass_once(trainer, [rows[place] for place in longest[-fitting:]])
                break
            except torch.OutOfMemoryError as error:
                fitting, failed = fitting // 2, error
                trainer.model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
    fitting = min(gather_list([fitting]))
    if fitting < size:
        parts = -(-size * trainer.args.gradient_accumulation_steps // max(fitting, 1))
        remedy = (
            f"{fitting} fit: split a step into {parts} parts"
            if fitting else "not even one fits: choose shorter texts, LoRA, bfloat16 or a smaller model"
        )  # fmt: skip
        raise AppError(f"{size} rows of the longest texts do not fit into this device's memory. {remedy}.") from failed


def _pass_once(trainer: Any, rows: list[dict[str, Any]]) -> None:
    trainer._set_signature_columns_if_needed()
    kept = [{name: value for name, value in row.items() if name in trainer._signature_columns} for row in rows]
    batch = trainer._prepare_inputs(trainer.data_collator(kept))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.model.zero_grad(set_to_none=True)
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0


def run_trainer(
    trainer: Any, watch: Watch, folder: Path, is_tried: bool = True, patience: int = 0
) -> dict[str, float]:  # fmt: skip
    """Trains, going on from the newest whole state in `folder`; returns the last value of every curve.

    `is_tried`: the longest batch is tried first (not where batches are sampled as training goes). With `patience` the
    model holds the best weights afterwards, and the values on dev are theirs. Raises Released in every process but the
    first, which alone goes on to measure and store.
    """
    callback = WatchCallback(watch, folder)
    trainer.remove_callback(PrinterCallback)  # the curves are rows, not prints
    best = make_best(trainer, patience, folder, watch)
    if best is not None:
        trainer.add_callback(best)  # before the one that seals
    trainer.add_callback(callback)
    with trainer.accelerator.main_process_first():  # the first one clears away what is broken
        newest = take_newest_whole(folder, "checkpoint")
    if n_processes() > 1:
        torch.manual_seed(trainer.args.seed + rank())  # dropout differs between processes
    if is_tried:
        trainer.add_callback(TokensCallback(trainer))
        dry_step(trainer)
    if newest is not None:
        watch.resumed_at(newest[0])
    # Step 0, where the curves begin. By the trainer and not before it: a model that was evaluated first counts as
    # prepared, and several processes would then each train a model of their own.
    trainer.args.eval_on_start = newest is None and trainer.eval_dataset is not None
    if best is not None:
        best.go_on(newest[1] if newest else None)
    if best is not None and best.is_over:  # the state was stored when patience had run out
        callback.latest["tokens"] = best.n_tokens
    else:
        trainer.train(resume_from_checkpoint=str(newest[1]) if newest else None)
    if best is None and trainer.eval_dataset is not None:
        trainer.evaluate()
    kept = keep_best(trainer, best, watch) if best is not None else {}
    if not is_first():
        raise Released
    return callback.latest | kept


def make_best(trainer: Any, patience: int, folder: Path, watch: Watch) -> BestCallback | None:
    """What keeps the best weights, where that is asked for; raises AppError where nothing measures them."""
    if not patience:
        return None
    if trainer.eval_dataset is None:
        raise AppError(
            "Early stopping needs a dev loss, and these preferences have no dev row: freeze some with a dev split, or "
            "set the patience to 0."
        )
    return BestCallback(trainer, patience, folder, watch)


def keep_best(trainer: Any, best: BestCallback, watch: Watch) -> dict[str, float]:
    """Measures the last weights if that was not done, then puts the best ones into the model; their values on dev."""
    if not best.is_over and best.best.last != trainer.state.global_step:
        trainer.evaluate()
    found = best.restore()
    if best.is_over:
        watch.progress(best.best.last, best.best.last, f"stopped early, step {best.best.step} kept")
    return {NAMES[name]: value for name, value in best.curves.items() if name in NAMES} | found if found else {}
