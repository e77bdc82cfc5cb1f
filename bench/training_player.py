"""One trainer of bench/training.py in a process of its own, taking turns: ours as a run does it, or a plain script.

One argument, JSON: who (ours, plain), kind (ppo, sft, reward, dpo) and sizes.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from app.training.recipes import DpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from bench.training_base import short_preferences
from bench.turns import Turns
from worker.loading import Weights, load_full, load_tokenizer

RECIPES = {"sft": SftRecipe, "reward": RewardRecipe, "dpo": DpoRecipe}
FOR_EVER = 1_000_000  # steps: the bench closes the pipe when it has seen enough


def make_job(folder: str) -> Any:
    """A running run in a database of its own, as a worker's child holds it."""
    os.environ["PREFLAB_DATA"] = folder
    from app import db
    from app.accounts.logins import make_account
    from app.projects.projects import make_project
    from app.runs.queue import claim, launch
    from app.training.recipes import DemoBaseRecipe
    from worker.job import Job

    db.upgrade()
    with db.transaction() as session:
        project = make_project(session, "bench", "bench", make_account(session, "bench"))
        launch(session, DemoBaseRecipe(), project_id=project.id)
    with db.transaction() as session:
        run = claim(session, ["gpu"], "bench", None)
        assert run is not None
        return Job(run.id, run.attempt)


class TurnsWatch:
    """A job whose steps are turns, and whose callbacks are timed."""

    def __init__(self, job: Any, turns: Turns) -> None:
        self._job, self._turns = job, turns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def metric(self, step: int, **values: float) -> None:
        with self._turns.timing("callbacks"):
            self._job.metric(step, **values)

    def progress(self, done: int, total: int, note: str = "") -> None:
        with self._turns.timing("callbacks"):
            self._job.progress(done, total, note)
        self._turns.step()


def play_ppo(given: dict[str, Any], job: Any, turns: Turns) -> None:
    """Our PPO, on prompts of token ids."""
    from worker.ppo import Ppo, train
    from worker.ppo_models import load_ppo_models
    from worker.reward import make_classifier

    base = Weights(*given["base"])
    rank = int(given["rank"])
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(1)
        make_classifier(base, RewardRecipe(start=1, snapshot=1), 1).save_pretrained(scratch)
        load_tokenizer(base).save_pretrained(scratch)
        models = load_ppo_models(base, Weights(scratch), bool(rank), rank, given["dtype"])
        recipe = PpoRecipe(
            start=1, reference=1, prompt_set=1, reward=1, is_lora=bool(rank), lora_rank=max(rank, 1), lr=1e-5,
            value_lr=1e-5, iterations=FOR_EVER, rollouts=given["rollouts"], ppo_epochs=given["epochs"],
            minibatches=given["rollouts"] // given["texts"], max_new_tokens=given["new"], is_reward_whitened=False,
            save_every=FOR_EVER,
        )  # fmt: skip
        ppo = Ppo(recipe, 1, models, load_tokenizer(base))
        plain = ppo.roll_out

        def timed(*args: Any) -> Any:
            with turns.timing("rollout"):
                rollout = plain(*args)
            turns.count(tokens=int(rollout.mask.sum()), samples=len(rollout.ids))
            return rollout

        ppo.roll_out = timed  # type: ignore[method-assign]
        turns.watch(*(getattr(models, name, None) for name in ("policy", "reference", "reward", "value_body")))
        train(ppo, given["prompts"], None, Path(scratch), TurnsWatch(job, turns))  # type: ignore[arg-type]


def play_offline(given: dict[str, Any], job: Any, turns: Turns, folder: Path) -> None:
    """Our SFT, reward model or DPO."""
    from worker import dpo, reward, sft, trl_run

    fit: Any = {"sft": sft.fit_sft, "reward": reward.fit_reward, "dpo": dpo.fit_dpo}[given["kind"]]
    more = {"reference": 1} if given["kind"] == "dpo" else {}
    recipe = RECIPES[given["kind"]](
        start=1, snapshot=1, batch_size=given["texts"], max_length=given["length"], epochs=1000, lr=1e-5,
        save_every=FOR_EVER, **more,
    )  # fmt: skip
    _time(trl_run.WatchCallback, "on_log", turns)
    _count(turns)
    fit(recipe, 1, Weights(*given["base"]), short_preferences(given["rows"]), folder, TurnsWatch(job, turns))


def _time(kind: Any, name: str, turns: Turns) -> None:
    """Times the rest of a callback too: what it does beside telling the job."""
    plain = getattr(kind, name)

    def timed(self: Any, *args: Any, **more: Any) -> Any:
        with turns.timing("log"):
            return plain(self, *args, **more)

    setattr(kind, name, timed)


def _count(turns: Turns) -> None:
    """Counts the tokens that every embedding of this process reads."""
    plain = torch.nn.Embedding.forward

    def counted(self: Any, ids: Any) -> Any:
        turns.count(forward_tokens=ids.numel())
        return plain(self, ids)

    torch.nn.Embedding.forward = counted


def play_plain(given: dict[str, Any], turns: Turns, folder: Path) -> None:
    """What a careful person writes with TRL 1.16 alone: no curves but its own every ten steps, nothing stored."""
    import trl
    from transformers import TrainerCallback

    from worker.trl_run import as_dataset

    class TakeTurns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.step()

    kind, base = given["kind"], Weights(*given["base"])
    tokenizer = load_tokenizer(base)
    rows = short_preferences(given["rows"]).train
    more: dict[str, Any] = {"precompute_ref_log_probs": True} if kind == "dpo" else {}
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        more = {"completion_only_loss": True}
    config, trainer = {
        "sft": (trl.SFTConfig, trl.SFTTrainer), "reward": (trl.RewardConfig, trl.RewardTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[kind]  # fmt: skip
    if kind == "reward":
        from worker.reward import make_classifier

        model = make_classifier(base, RewardRecipe(start=1, snapshot=1), 1)
    else:
        model = load_full(base)
    _count(turns)
    is_cpu = not torch.cuda.is_available()
    trainer(
        model=model,
        args=config(
            output_dir=str(folder), learning_rate=1e-5, num_train_epochs=1000, max_length=given["length"],
            per_device_train_batch_size=given["texts"], bf16=False, activation_checkpointing=False, use_cpu=is_cpu,
            dataloader_pin_memory=False, save_strategy="no", report_to="none", disable_tqdm=True, seed=1, data_seed=1,
            **more,
        ),
        train_dataset=as_dataset(rows, tokenizer),
        processing_class=tokenizer,
        callbacks=[TakeTurns()],
    ).train()  # fmt: skip


def main() -> None:
    """Entry point."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        if given["who"] == "plain":
            play_plain(given, turns, Path(folder))
            return
        job = make_job(folder)
        if given["kind"] == "ppo":
            play_ppo(given, job, turns)
        else:
            play_offline(given, job, turns, Path(folder) / "state")


if __name__ == "__main__":
    main()
