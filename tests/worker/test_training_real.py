"""Every method on a checkpoint and preferences that nobody here made: no chat template, a begin token, long texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.training.recipes import DpoRecipe, GrpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from tests.worker.tiny import IDS, Silent, same
from worker.dpo import fit_dpo
from worker.grpo import fit_grpo, model_reward
from worker.loading import Weights, encode_prompt, load_full, load_tokenizer, render_prompt
from worker.ppo import Ppo, train
from worker.ppo_models import load_ppo_models
from worker.preferences import Preferences
from worker.reward import fit_reward
from worker.rl_prompts import RlPrompt
from worker.saving import save_folder, write_model
from worker.sft import fit_sft

OFFLINE: dict[str, Any] = {
    "start": 1,
    "snapshot": 1,
    "lr": 1e-3,
    "batch_size": 4,
    "max_steps": 2,
    "save_every": 1,
    "max_length": 256,
}


@pytest.fixture
def stories(shared_data: Path) -> Weights:
    return Weights(str(shared_data / "stories260k" / "hf"))


@pytest.fixture
def safer(shared_data: Path) -> Preferences:
    """The safer of two answers, PKU-SafeRLHF's own label; long ones are cut."""
    rows = json.loads((shared_data / "pku_saferlhf" / "pku_saferlhf_32.json").read_text(encoding="utf-8"))
    found = []
    for row in rows[:12]:
        chosen = int(row["safer_response_id"])
        sides = {"chosen": row[f"response_{chosen}"], "rejected": row[f"response_{1 - chosen}"]}
        messages = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
        found.append({"prompt": [{"role": "user", "content": row["prompt"]}], **messages})
    return Preferences(found[:8], found[8:])


@pytest.mark.parametrize("is_lora", [False, True])
def test_offline_methods(stories: Weights, safer: Preferences, tmp_path: Path, is_lora: bool) -> None:
    start = load_full(stories).state_dict()
    sft = fit_sft(SftRecipe(**OFFLINE, is_lora=is_lora), 1, stories, safer, tmp_path / "sft", Silent())
    watch = Silent()
    dpo = fit_dpo(DpoRecipe(**OFFLINE, reference=1, is_lora=is_lora), 1, stories, safer, tmp_path / "dpo", watch)
    assert watch.metrics[0]["dev_margin"] == pytest.approx(0, abs=1e-4)
    for model, _, curves in (sft, dpo):
        merged = model.merge_and_unload() if is_lora else model
        assert not same(merged.state_dict(), start)
        assert curves["dev_loss"] < 10


def test_reward_model_then_ppo_and_grpo(stories: Weights, safer: Preferences, tmp_path: Path) -> None:
    watch = Silent()
    # Answers longer than the context are left out by TRL's trainer, so the short ones must be enough.
    model, tokenizer, _ = fit_reward(RewardRecipe(**OFFLINE), 1, stories, safer, tmp_path / "reward", watch)
    assert watch.metrics[2]["loss"] > 0
    reward = Weights(str(save_folder(tmp_path / "rm", lambda at: write_model(model, tokenizer, at))[0]))
    ids = [encode_prompt(tokenizer, render_prompt(tokenizer, row["prompt"])) for row in safer.train]
    assert all(row[0] == tokenizer.bos_token_id for row in ids)

    recipe = PpoRecipe(**IDS, prompt_set=1, reward=1, iterations=2, rollouts=4, max_new_tokens=12, lr=1e-3)
    models = load_ppo_models(stories, reward, False, 4, "float32")
    train(Ppo(recipe, 1, models, load_tokenizer(stories)), ids, None, tmp_path / "ppo", watch)
    assert abs(watch.metrics[1]["kl"]) < 1e-4 and watch.metrics[1]["first_ratio_error"] < 1e-4

    prompts = [RlPrompt(row["prompt"], one) for row, one in zip(safer.train, ids, strict=True)]
    online = GrpoRecipe(
        **IDS, prompt_set=1, reward_by="reward_model", reward=1, steps=2, prompts_per_step=2, group_size=2,
        max_new_tokens=12, lr=1e-3,
    )  # fmt: skip
    by_model = model_reward(reward, "float32", tokenizer)
    trained, _, _ = fit_grpo(online, 1, stories, prompts, None, by_model, tmp_path / "grpo", watch)
    assert not same(trained.state_dict(), load_full(stories).state_dict())


def test_reward_reads_the_same_end_as_in_training(stories: Weights, tmp_path: Path) -> None:
    """The end token is also the pad token of some checkpoints: the score must not move with the padding."""
    tokenizer = load_tokenizer(stories)
    from worker.reward import make_classifier

    model = make_classifier(stories, RewardRecipe(start=1, snapshot=1), 1)
    reward = Weights(str(save_folder(tmp_path / "rm", lambda at: write_model(model, tokenizer, at))[0]))
    score = model_reward(reward, "float32", tokenizer)
    short, long = [tokenizer("yes", add_special_tokens=False)["input_ids"] for _ in range(2)]
    long = long * 9
    alone = score(["Once"], ["yes"], completion_ids=[short])
    beside = score(["Once", "Once upon a time"], ["yes", ""], completion_ids=[short, long])
    assert alone[0] == pytest.approx(beside[0], abs=1e-5)
    assert torch.isfinite(torch.tensor(beside)).all()
