"""SAWYER on GPT-2's own architecture and tokenizer, random weights: template, bi-encoder, PPO, each loads again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.training.recipes import GrpoRecipe, RewardRecipe, SftRecipe
from tests.worker.test_ppo import make
from tests.worker.test_trl import OFFLINE, save_trained
from tests.worker.tiny import IDS, Silent, preferences
from worker.grpo import fit_grpo
from worker.llm import RewardScorer, encode_parts
from worker.loading import Weights, load_tokenizer
from worker.ppo import train
from worker.ppo_models import load_ppo_models
from worker.reward import fit_reward
from worker.rl_prompts import RlPrompt
from worker.saving import save_folder, write_model
from worker.sft import fit_sft


@pytest.fixture(scope="module")
def gpt2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    files = shared_data / "tokenizer_gpt2"
    tokenizer = GPT2Tokenizer(str(files / "gpt2_vocab.json"), str(files / "gpt2_merges.txt"), model_max_length=128)
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, vocab_size=len(tokenizer))
    folder = tmp_path_factory.mktemp("gpt2") / "base"
    place, sha256 = save_folder(folder, lambda at: write_model(GPT2LMHeadModel(config), tokenizer, at))
    return Weights(str(place), sha256)


def test_sawyer_goes_through_on_gpt2(gpt2: Weights, tmp_path: Path) -> None:
    given: dict[str, Any] = {**OFFLINE, "max_steps": 2}
    model, tokenizer, _ = fit_sft(
        SftRecipe(**given, template="sawyer"), 3, gpt2, preferences(8), tmp_path / "sft", Silent()
    )
    start = save_trained(model, tokenizer, tmp_path / "start", gpt2)
    known = load_tokenizer(start)
    head, tail = encode_parts(known, [{"role": "user", "content": "Why?"}], "Because.")
    assert known.convert_ids_to_tokens([head[0], head[-1]]) == ["<query>", "<response>"]
    assert tail[-1] == known.eos_token_id != known.pad_token_id
    recipe = RewardRecipe(**given, architecture="bi_encoder")
    scorer, tokenizer, _ = fit_reward(recipe, 3, start, preferences(8), tmp_path / "reward", Silent())
    reward = save_trained(scorer, tokenizer, tmp_path / "rm", start)
    by_judge = RewardScorer(reward).score([[{"role": "user", "content": "Why?"}]], ["Because."])
    models = load_ppo_models(start, reward, False, 4, "float32")
    ids = torch.tensor([head + tail])
    assert float(models.scores(ids, torch.ones_like(ids), len(tail))) == pytest.approx(by_judge[0], abs=1e-4)
    loop, prompts = make(models, start, iterations=1, rollouts=4, max_new_tokens=6)
    watch = Silent()
    train(loop, prompts, None, tmp_path / "ppo", watch)
    assert watch.metrics[1]["kl"] == pytest.approx(0, abs=1e-4)


def test_grpo_begins_at_its_reference_on_a_model_with_dropout(gpt2: Weights, tmp_path: Path) -> None:
    """GPT-2's configuration drops a tenth: with that the policy would not be what its completions were drawn from."""
    tokenizer = load_tokenizer(gpt2)
    prompts = [
        RlPrompt([{"role": "user", "content": f"Why {n}?"}], tokenizer(f"Why {n}?\n\n")["input_ids"]) for n in "ab"
    ]
    recipe = GrpoRecipe(
        **IDS, prompt_set=1, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=6, num_iterations=1
    )
    watch = Silent()
    fit_grpo(
        recipe, 3, gpt2, prompts, None, lambda completions, **_: [float(len(c)) for c in completions], tmp_path, watch
    )
    assert watch.metrics[1]["kl"] == pytest.approx(0, abs=1e-5)
