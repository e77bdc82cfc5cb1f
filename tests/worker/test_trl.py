"""SFT, reward model, DPO and GRPO on a tiny model: where they begin, what they learn, going on after a stop."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.training.recipes import DpoRecipe, GrpoRecipe, RewardRecipe, SftRecipe
from tests.worker.tiny import IDS, STRICT, Silent, preferences, same, write_tiny
from worker.dpo import fit_dpo, make_trainer
from worker.grpo import fit_grpo, model_reward, rule_reward
from worker.loading import (
    Weights,
    encode_prompt,
    load_full,
    load_reward,
    load_tokenizer,
    load_trainable,
    render_prompt,
)  # fmt: skip
from worker.recorder import Recorder
from worker.reward import fit_reward
from worker.rl_prompts import RlPrompt
from worker.saving import save_folder, write_model
from worker.sft import fit_sft
from worker.trl_run import WatchCallback

OFFLINE: dict[str, Any] = {
    "start": 1, "snapshot": 1, "lr": 3e-3, "epochs": 2, "batch_size": 8, "eval_every": 3, "save_every": 2,
    "max_length": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def save_trained(model: Any, tokenizer: Any, folder: Path, base: Weights) -> Weights:
    """As worker/checkpoints.py stores it."""
    is_adapter = hasattr(model, "peft_config")

    def write(at: Path) -> None:
        if is_adapter:
            model.save_pretrained(at, selected_adapters=["default"])
            tokenizer.save_pretrained(at)
        else:
            write_model(model, tokenizer, at)

    place, sha256 = save_folder(folder, write, {"base_sha256": base.manifest_sha256} if is_adapter else {})
    return Weights(str(place), sha256, base if is_adapter else None)


def log_prob(model: Any, base: Weights, question: str, answer: str) -> float:
    """log P(answer and end | question)."""
    tokenizer = load_tokenizer(base)
    prompt = encode_prompt(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": question}]))
    ids = prompt + tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        shares = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    picked = shares.gather(1, torch.tensor(ids[1:])[:, None])[len(prompt) - 1 :]
    return float(picked.sum())


@pytest.mark.parametrize("is_lora", [False, True])
def test_sft_learns_the_chosen_and_loads_again(base: Weights, tmp_path: Path, is_lora: bool) -> None:
    watch = Silent()
    recipe = SftRecipe(**{**OFFLINE, "lr": 1e-2 if is_lora else 3e-3}, is_lora=is_lora)
    model, tokenizer, curves = fit_sft(recipe, 3, base, preferences(), tmp_path / "state", watch)
    assert watch.metrics[6]["loss"] < watch.metrics[1]["loss"]
    assert curves["dev_loss"] < watch.metrics[0]["dev_loss"]
    again = load_full(save_trained(model, tokenizer, tmp_path / "out", base)).eval()
    question, answer = "What is the capital of France?", STRICT.format("Paris")
    assert log_prob(again, base, question, answer) > log_prob(load_full(base), base, question, answer) + 0.5


@pytest.mark.parametrize("is_lora", [False, True])
def test_reward_model_prefers_the_chosen_and_loads_again(base: Weights, tmp_path: Path, is_lora: bool) -> None:
    recipe = RewardRecipe(**{**OFFLINE, "epochs": 4, "lr": 5e-3}, is_lora=is_lora)
    watch = Silent()
    model, tokenizer, curves = fit_reward(recipe, 3, base, preferences(), tmp_path / "state", watch)
    assert curves["dev_accuracy"] > 0.9
    saved = save_trained(model, tokenizer, tmp_path / "out", base)
    question = [{"role": "user", "content": "What is the capital of Italy?"}]
    prompt = render_prompt(tokenizer, question)
    texts = [STRICT.format("Rome"), "It is Rome."]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    strict, plain = model_reward(saved, "float32", tokenizer)([prompt, prompt], texts, completion_ids=ids)
    assert strict > plain
    with torch.no_grad():
        row = torch.tensor([encode_prompt(tokenizer, prompt) + ids[0]])
        assert float(model(input_ids=row).logits[0, 0]) == pytest.approx(strict, abs=1e-4)
        assert float(load_reward(saved).eval()(input_ids=row).logits[0, 0]) == pytest.approx(strict, abs=1e-4)


@pytest.mark.parametrize("is_lora", [False, True])
def test_dpo_begins_at_its_reference_and_learns(base: Weights, tmp_path: Path, is_lora: bool) -> None:
    watch = Silent()
    recipe = DpoRecipe(**OFFLINE, reference=1, is_lora=is_lora)
    model, tokenizer, _ = fit_dpo(recipe, 3, base, preferences(), tmp_path / "state", watch)
    # Before the first step: no reward on either side, so the loss is log 2.
    assert watch.metrics[0]["dev_reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert watch.metrics[0]["dev_reward_rejected"] == pytest.approx(0, abs=1e-5)
    assert watch.metrics[1]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert watch.metrics[6]["dev_margin"] > 0.05
    again = load_full(save_trained(model, tokenizer, tmp_path / "out", base)).eval()
    question = "What is the capital of France?"

    def gap(of: Any) -> float:
        return log_prob(of, base, question, STRICT.format("Paris")) - log_prob(of, base, question, "It is Paris.")

    assert gap(again) > gap(load_full(base)) + 0.5


@pytest.mark.parametrize("is_lora", [False, True])
def test_dpo_reference_is_the_start_reloaded_from_disk(base: Weights, tmp_path: Path, is_lora: bool) -> None:
    recipe = DpoRecipe(**OFFLINE, reference=1, is_lora=is_lora)
    trainer = make_trainer(recipe, 3, base, preferences(4), tmp_path / "state")
    with torch.no_grad():  # as if training had moved the policy
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    moved = trainer.evaluate()
    assert abs(moved["eval_rewards/chosen"]) > 0.05  # the reference has not moved along
    row = preferences(4).dev[0]
    wanted = log_prob(load_full(base), base, row["prompt"][0]["content"], row["chosen"][0]["content"])
    n = len(trainer.eval_dataset[0]["chosen_ids"])
    assert trainer.eval_dataset[0]["ref_chosen_logps"] / n == pytest.approx(wanted / n, abs=1e-5)


def test_dpo_from_an_adapter_keeps_that_adapter_as_reference(base: Weights, tmp_path: Path) -> None:
    first = fit_sft(SftRecipe(**OFFLINE, is_lora=True), 3, base, preferences(), tmp_path / "sft", Silent())
    start = save_trained(first[0], first[1], tmp_path / "start", base)
    watch = Silent()
    recipe = DpoRecipe(**OFFLINE, reference=1, is_lora=True)
    fit_dpo(recipe, 3, start, preferences(), tmp_path / "state", watch)
    assert watch.metrics[0]["dev_reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert watch.metrics[6]["dev_margin"] > 0.01


def test_dpo_cancelled_and_resumed_is_bit_equal(base: Weights, tmp_path: Path) -> None:
    recipe = DpoRecipe(**OFFLINE, reference=1)

    def run(folder: Path, stop_after: int | None) -> tuple[dict[str, torch.Tensor], Silent]:
        watch = Silent(stop_after)
        model = fit_dpo(recipe, 3, base, preferences(), folder, watch)[0]
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, watch

    whole, _ = run(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 5)
    (tmp_path / "b" / "checkpoint-4" / "optimizer.pt").write_bytes(b"cut off")
    resumed, watch = run(tmp_path / "b", None)
    assert watch.resumed == [2]
    assert same(whole, resumed)


def test_rule_reward_counts_format_and_answer_and_turns_some_round() -> None:
    texts = [STRICT.format("Paris"), STRICT.format("Rome"), "It is Paris.", "It is Rome."]
    exact = rule_reward(0.0, 1)(["p"] * 4, texts, ["Paris"] * 4)
    assert exact == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    prompts = [f"p{i}" for i in range(2000)]
    noisy = rule_reward(0.1, 1)(prompts, texts[:1] * 2000, ["Paris"] * 2000)
    assert noisy == rule_reward(0.1, 1)(prompts, texts[:1] * 2000, ["Paris"] * 2000)
    assert 0.07 < noisy.count(0.0) / 2000 < 0.13
    assert rule_reward(0.0, 1)(["p"], [STRICT.format("x")], [None]) == [1.0]


def share_even(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def online_prompts(base: Weights) -> list[RlPrompt]:
    tokenizer = load_tokenizer(base)
    rows = [row["prompt"] for row in preferences(6).train]
    return [RlPrompt(row, encode_prompt(tokenizer, render_prompt(tokenizer, row)), "Paris") for row in rows]


def test_kl_is_of_whole_completions_in_every_method(tmp_path: Path) -> None:
    """TRL's of GRPO and RLOO is a mean over tokens, also in later passes over a rollout; KTO's is not."""
    watch = Silent()
    online, lone = (WatchCallback(watch, tmp_path) for _ in range(2))
    said = [(1, {"kl": 0.1, "completions/mean_length": 20}), (2, {"kl": 0.2})]
    for step, logs in said:
        online.on_log(None, SimpleNamespace(global_step=step), None, logs)
    lone.on_log(None, SimpleNamespace(global_step=3), None, {"kl": 1.5})
    assert [watch.metrics[step]["kl"] for step in (1, 2, 3)] == pytest.approx([2.0, 4.0, 1.5])


@pytest.mark.parametrize("is_lora", [False, True])
def test_grpo_begins_at_its_reference_and_changes_the_policy(base: Weights, tmp_path: Path, is_lora: bool) -> None:
    prompts = online_prompts(base)
    recipe = GrpoRecipe(
        **IDS, prompt_set=1, steps=6, prompts_per_step=2, group_size=8, max_new_tokens=12, lr=1e-2, is_lora=is_lora,
        sample_every=3, save_every=4,
    )  # fmt: skip
    watch = Silent()
    model, tokenizer, _ = fit_grpo(
        recipe,
        3,
        base,
        prompts,
        Recorder(prompts * 20, load_tokenizer(base), watch, None),
        share_even,
        tmp_path / "state",
        watch,
    )
    assert watch.metrics[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert watch.metrics[6]["kl"] > 1e-6
    assert watch.samples == [0, 3, 6]
    assert watch.metrics[6]["dev_reward"] > watch.metrics[0]["dev_reward"]
    assert watch.metrics[0]["dev_kl"] == watch.metrics[0]["dev_kl_k3"] == 0 < watch.metrics[6]["dev_kl_k3"]
    again = load_full(save_trained(model, tokenizer, tmp_path / "out", base)).eval()
    ids = torch.tensor([prompts[0].ids])
    with torch.no_grad():
        assert not torch.allclose(again(ids).logits, load_full(base)(ids).logits, atol=1e-3)


@pytest.mark.parametrize(("passes", "save_every", "stop_after", "resumed_at"), [(1, 2, 3, 2), (2, 3, 5, 4)])
def test_grpo_cancelled_and_resumed_is_bit_equal(
    base: Weights, tmp_path: Path, passes: int, save_every: int, stop_after: int, resumed_at: int
) -> None:
    prompts = online_prompts(base)
    recipe = GrpoRecipe(
        **IDS, prompt_set=1, steps=6, prompts_per_step=2, group_size=4, max_new_tokens=8, lr=1e-2,
        num_iterations=passes, save_every=save_every,
    )  # fmt: skip

    def run(folder: Path, stop_after: int | None) -> tuple[dict[str, torch.Tensor], Silent]:
        watch = Silent(stop_after)
        model = fit_grpo(
            recipe,
            3,
            base,
            prompts,
            Recorder(prompts[:2], load_tokenizer(base), watch, None),
            share_even,
            folder,
            watch,
        )[0]
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}, watch

    whole, _ = run(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_after)
    resumed, watch = run(tmp_path / "b", None)
    assert watch.resumed == [resumed_at]
    assert same(whole, resumed)


def test_fresh_adapters_are_drawn_from_the_recipe_s_seed(base: Weights) -> None:
    torch.rand(3)  # what was drawn before does not matter
    drawn = [
        next(one for name, one in load_trainable(base, True, 4, "float32", seed).named_parameters() if "lora_A" in name)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
