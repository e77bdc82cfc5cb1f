"""TRL 1.12's PPOTrainer on given sizes, run by a Python that has it (not this repository's): see bench/peer.py.

One argument, JSON. With `is_measured` it prints the bytes held; otherwise it takes turns (bench/turns.py).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # bench/held.py and bench/turns.py need torch alone

import torch
from datasets import Dataset
from held import Held, read_bytes
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from turns import Turns

GIVEN = json.loads(sys.argv[1])


class TakeTurns(TrainerCallback):
    """An update is a step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.step()


def adapter(task: str) -> LoraConfig:
    """The same LoRA as ours."""
    kept = ["score"] if task == "SEQ_CLS" else None
    return LoraConfig(
        r=GIVEN["rank"], lora_alpha=2 * GIVEN["rank"], lora_dropout=0.0, target_modules="all-linear", task_type=task,
        modules_to_save=kept,
    )  # fmt: skip


def classifier(is_lora: bool, pad_id: int) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        GIVEN["base"], num_labels=1, dtype=getattr(torch, GIVEN["dtype"])
    )
    model.config.pad_token_id = pad_id
    if not is_lora:
        return model
    # PPOTrainer asks the value model for `base_model_prefix`, the body and `score`: the adapted classifier itself.
    return get_peft_model(model, adapter("SEQ_CLS")).base_model.model


def count_rollouts(turns: Turns) -> None:
    """Counts the tokens of generation and the time it takes."""
    plain = ppo_trainer.batch_generation

    def timed(model: Any, queries: Any, *rest: Any) -> Any:
        with turns.timing("rollout"):
            found = plain(model, queries, *rest)
        new = found[0][:, queries.shape[1] :]
        ended = (new == GIVEN["end_id"]).int().cumsum(-1) - (new == GIVEN["end_id"]).int()
        turns.count(tokens=int((ended == 0).sum()), samples=len(queries))
        return found

    ppo_trainer.batch_generation = timed


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(GIVEN["base"], padding_side="left")
    # TRL finds where a completion stops by its pads, so pad and end must differ.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    dtype = getattr(torch, GIVEN["dtype"])
    is_lora = bool(GIVEN["rank"])
    policy = AutoModelForCausalLM.from_pretrained(GIVEN["base"], dtype=dtype)
    reference = None if is_lora else AutoModelForCausalLM.from_pretrained(GIVEN["base"], dtype=dtype)
    torch.manual_seed(1)
    reward = classifier(False, tokenizer.pad_token_id)
    value = classifier(is_lora and GIVEN["value"] == "lora", tokenizer.pad_token_id)
    prompts = GIVEN.get("prompts") or [list(range(300, 300 + GIVEN["prompt"]))] * GIVEN["rollouts"]
    GIVEN["end_id"] = tokenizer.eos_token_id
    parts = GIVEN["rollouts"] // GIVEN["texts"]
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, per_device_train_batch_size=GIVEN["texts"], gradient_accumulation_steps=parts,
            num_mini_batches=parts, num_ppo_epochs=GIVEN["epochs"], total_episodes=GIVEN["updates"] * GIVEN["rollouts"],
            response_length=GIVEN["new"], stop_token="eos", temperature=1.0, learning_rate=1e-5, whiten_rewards=False,
            local_rollout_forward_batch_size=max(64, GIVEN["rollouts"]), num_sample_generations=0, report_to="none",
            save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(),
            seed=1, logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = PPOTrainer(
            args, tokenizer, policy, reference, reward, Dataset.from_dict({"input_ids": prompts}), value,
            peft_config=adapter("CAUSAL_LM") if is_lora else None,
        )  # fmt: skip
        trainer.callback_handler.callbacks = [
            one for one in trainer.callback_handler.callbacks if type(one).__name__ != "PrinterCallback"
        ]
        modules = [m for m in (trainer.model, trainer.ref_model, trainer.reward_model) if m is not None]
        if GIVEN.get("is_measured"):
            held = Held([one for m in modules for one in (*m.parameters(), *m.buffers())])
            with held:
                trainer.train()
            print(json.dumps(read_bytes(modules, trainer.optimizer, held.highest).as_dict()), flush=True)
            return
        turns = Turns()
        count_rollouts(turns)
        turns.watch(trainer.model.policy, trainer.model.value_model, trainer.ref_model, trainer.reward_model)
        trainer.add_callback(TakeTurns(turns))
        trainer.train()


if __name__ == "__main__":
    main()
