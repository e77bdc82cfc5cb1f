"""Losses of preferences against TRL's own and numpy; the reference read once; SimPO, KTO, RLOO, packing, SAWYER."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.training.recipes import DpoRecipe, KtoRecipe, RewardRecipe, RlooRecipe, SftRecipe, SimpoRecipe
from tests.worker.test_trl import OFFLINE, log_prob, save_trained
from tests.worker.tiny import STRICT, Silent, preferences, same, write_tiny
from worker.dpo import fit_dpo, make_trainer
from worker.grpo import fit_grpo, rule_reward
from worker.kto import fit_kto, unpair
from worker.kto import make_trainer as make_lone_trainer
from worker.loading import Weights, encode_prompt, load_full, load_tokenizer, render_prompt
from worker.preference_losses import preference_loss, simpo_loss, simpo_margins
from worker.preferences import Preferences
from worker.recorder import Recorder
from worker.reference_cache import MemoryCache, weights_key
from worker.reward import fit_reward
from worker.reward_trainer import bradley_terry_loss
from worker.rl_prompts import RlPrompt
from worker.sft import fit_sft, learn_sawyer

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def sure(n: int, p: float) -> Preferences:
    found = preferences(n)
    return Preferences([{**row, "p_chosen": p} for row in found.train], [{**row, "p_chosen": p} for row in found.dev])


@pytest.mark.parametrize("is_lora", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"])
def test_losses_equal_trl_s_own(base: Weights, tmp_path: Path, loss: Any, is_lora: bool) -> None:
    from trl import DPOTrainer

    smoothing = 0.1 if loss == "robust" else 0.0
    recipe = DpoRecipe(
        **OFFLINE, reference=1, loss=loss, label_smoothing=smoothing, sft_weight=0.2, beta=0.3, is_lora=is_lora
    )
    trainer = make_trainer(recipe, 3, base, preferences(6), tmp_path / "state")
    with torch.no_grad():  # as if training had moved the policy
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    ours = trainer._compute_loss(trainer.model, dict(batch), False)
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing, trainer.beta = (
        [loss, "sft"],
        [1, 0.2],
        smoothing,
        0.3,
    )
    theirs = DPOTrainer._compute_loss(
        trainer, trainer.model, {k: v for k, v in batch.items() if k != "p_chosen"}, False
    )
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_a_step_in_parts_is_the_same_step(base: Weights, tmp_path: Path) -> None:
    """Also its SFT term, whose parts have unequally many tokens."""
    rows = preferences(8)
    for place, row in enumerate(rows.train):
        row["chosen"] = [{"role": "assistant", "content": "so " * (1 + 3 * place)}]
    first = {}
    for parts in (1, 4):
        watch = Silent()
        recipe = DpoRecipe(**{**OFFLINE, "max_steps": 1}, reference=1, sft_weight=1.0, accumulate=parts)
        fit_dpo(recipe, 3, base, rows, tmp_path / str(parts), watch)
        first[parts] = watch.metrics[1]
    assert first[4]["loss"] == pytest.approx(first[1]["loss"], abs=1e-5)
    assert first[4]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-5)


def test_soft_labels_smooth_and_meet_in_the_middle() -> None:
    margin = torch.tensor([1.3, -0.4])
    sigma = 1 / (1 + np.exp(-0.5 * margin.numpy()))
    p = np.array([0.9, 0.6])
    wanted = -p * np.log(sigma) - (1 - p) * np.log(1 - sigma)
    found = preference_loss("sigmoid", margin, 0.5, 0.0, torch.tensor(p, dtype=torch.float32))
    assert found.numpy() == pytest.approx(wanted, abs=1e-6)
    smoothed = preference_loss("sigmoid", margin, 0.5, 0.1, None)
    assert smoothed.numpy() == pytest.approx(-0.9 * np.log(sigma) - 0.1 * np.log(1 - sigma), abs=1e-6)
    even = torch.zeros(2, requires_grad=True)
    preference_loss("sigmoid", even, 0.5, 0.0, torch.tensor([0.5, 0.5])).sum().backward()
    assert even.grad is not None and even.grad.abs().max() == 0  # no opinion, no push


def test_simpo_by_hand_and_without_a_reference(base: Weights, tmp_path: Path) -> None:
    chosen, rejected = torch.tensor([-12.0]), torch.tensor([-10.0])
    margin = simpo_margins(chosen, rejected, torch.tensor([6]), torch.tensor([2]))
    assert float(margin) == pytest.approx(3.0)  # −2 against −5 nats a token
    assert float(simpo_loss(margin, 2.0, 1.0, 0.0, None)) == pytest.approx(float(np.log1p(np.exp(-5.0))), abs=1e-6)
    recipe = SimpoRecipe(**OFFLINE)
    trainer = make_trainer(recipe, 3, base, preferences(4), tmp_path / "none")
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert trainer.ref_model is None
    watch = Silent()
    model, tokenizer, _ = fit_dpo(recipe, 3, base, preferences(), tmp_path / "state", watch)
    assert watch.metrics[6]["dev_margin"] > watch.metrics[0]["dev_margin"] + 0.05
    again = load_full(save_trained(model, tokenizer, tmp_path / "out", base)).eval()

    def lead(of: Any) -> float:
        return (
            log_prob(of, base, QUESTION, STRICT.format("Paris")) / 20 - log_prob(of, base, QUESTION, "It is Paris.") / 5
        )

    assert lead(again) > lead(load_full(base))


def test_the_reference_reads_each_text_once_ever(base: Weights, tmp_path: Path) -> None:
    cache, recipe = MemoryCache(), DpoRecipe(**OFFLINE, reference=1)
    first = make_trainer(recipe, 3, base, preferences(10), tmp_path / "a", cache)
    assert first.n_reference_passes == 2 * (10 + len(preferences(10).dev))
    other = DpoRecipe(**{**OFFLINE, "lr": 1e-4, "epochs": 5, "batch_size": 4}, reference=1, loss="ipo", beta=0.5)
    second = make_trainer(other, 7, base, preferences(10), tmp_path / "b", cache)
    assert second.n_reference_passes == 0
    assert second.train_dataset["ref_chosen_logps"] == first.train_dataset["ref_chosen_logps"]
    more = make_trainer(recipe, 3, base, preferences(12), tmp_path / "c", cache)
    assert 0 < more.n_reference_passes <= 2 * (2 + 2)
    row = preferences(10).train[0]
    wanted = log_prob(load_full(base), base, row["prompt"][0]["content"], row["chosen"][0]["content"])
    assert first.train_dataset[0]["ref_chosen_logps"] == pytest.approx(wanted, abs=1e-3)


def test_weights_without_a_manifest_have_no_name(base: Weights) -> None:
    assert weights_key(Weights("somewhere"), "float32") is None
    assert weights_key(base, "float32") != weights_key(base, "bfloat16")
    adapter = Weights("x", "abc", base)
    assert weights_key(adapter, "float32") not in {None, weights_key(base, "float32")}
    # Merged into a base of bfloat16 an adapter is rounded, so that its texts have other probabilities.
    assert weights_key(adapter, "bfloat16", is_merged=True) != weights_key(adapter, "bfloat16")
    assert weights_key(adapter, "float32", is_merged=True) == weights_key(adapter, "float32")


def test_kto_s_kl_is_of_mismatched_texts(base: Weights, tmp_path: Path) -> None:
    """TRL pairs each prompt with the completion of the row before, within a part of a step."""

    def row(prompt: int, number: int) -> dict[str, Any]:
        sides = {side: [{"role": "assistant", "content": f"{side} {number}"}] for side in ("chosen", "rejected")}
        return {"prompt": [{"role": "user", "content": f"Question {prompt}?"}], **sides}

    rows = [row(max(0, number - 1), number) for number in range(10)]  # the first prompt has two pairs
    recipe = KtoRecipe(**{**OFFLINE, "batch_size": 4}, reference=1)
    trained = make_lone_trainer(recipe, 3, base, Preferences(rows, []), tmp_path / "state").train_dataset
    texts = {(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in trained}
    asked = [(tuple(row["prompt_ids"]), tuple(row["KL_completion_ids"])) for row in trained]
    assert len(asked) == 20 and not set(asked) & texts


def test_kto_takes_pairs_apart_and_learns(base: Weights, tmp_path: Path) -> None:
    rows = preferences(3).train
    assert sorted(row["label"] for row in unpair([*rows, rows[0]])) == [False] * 3 + [True] * 3
    watch = Silent()
    recipe = KtoRecipe(**{**OFFLINE, "epochs": 3}, reference=1)
    model, tokenizer, _ = fit_kto(recipe, 3, base, preferences(), tmp_path / "state", watch)
    assert watch.metrics[0]["dev_reward_chosen"] == pytest.approx(0, abs=1e-5)  # it begins at its reference
    again = load_full(save_trained(model, tokenizer, tmp_path / "out", base)).eval()

    def gap(of: Any) -> float:
        return log_prob(of, base, QUESTION, STRICT.format("Paris")) - log_prob(of, base, QUESTION, "It is Paris.")

    assert gap(again) > gap(load_full(base)) + 0.5


def test_rloo_raises_its_reward(base: Weights, tmp_path: Path) -> None:
    recipe = SftRecipe(**{**OFFLINE, "epochs": 6})
    taught = fit_sft(recipe, 3, base, preferences(), tmp_path / "sft", Silent())
    start = save_trained(taught[0], taught[1], tmp_path / "start", base)
    tokenizer = load_tokenizer(start)
    messages = [row["prompt"] for row in preferences(8).train]
    prompts = [RlPrompt(m, encode_prompt(tokenizer, render_prompt(tokenizer, m)), "x") for m in messages]
    online = RlooRecipe(
        start=1,
        reference=1,
        prompt_set=1,
        steps=4,
        prompts_per_step=4,
        group_size=4,
        lr=2e-3,
        max_new_tokens=24,
        beta=0.02,
    )
    watch = Silent()
    recorder = Recorder(prompts[:4], tokenizer, watch, None)
    model, _, _ = fit_grpo(online, 3, start, prompts, recorder, rule_reward(0, 3), tmp_path / "state", watch)
    assert {"reward", "kl", "loss"} <= watch.metrics[1].keys()
    assert watch.samples[0] == 0 and watch.samples[-1] == 4
    before = load_full(start).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_packed_texts_do_not_see_each_other(base: Weights, tmp_path: Path) -> None:
    losses = {}
    for is_packed in (False, True):
        watch = Silent()
        # all texts in one step either way, so that the first step's loss is the mean over the same tokens
        recipe = SftRecipe(**{**OFFLINE, "batch_size": 16, "epochs": 1, "max_length": 120}, is_packed=is_packed)
        fit_sft(recipe, 3, base, preferences(12), tmp_path / str(is_packed), watch)
        losses[is_packed] = watch.metrics[1]["loss"]
    assert losses[True] == pytest.approx(losses[False], abs=2e-4)


def test_sawyer_s_template_has_tokens_of_its_own(base: Weights, tmp_path: Path) -> None:
    recipe = SftRecipe(**OFFLINE, template="sawyer")
    model, tokenizer, curves = fit_sft(recipe, 3, base, preferences(), tmp_path / "state", Silent())
    saved = save_trained(model, tokenizer, tmp_path / "out", base)
    again, known = load_full(saved), load_tokenizer(saved)
    text = render_prompt(known, [{"role": "user", "content": "Hello"}])
    assert text == "<query>Hello<response>"
    ids = encode_prompt(known, text)
    assert ids[0] == known.convert_tokens_to_ids("<query>") and ids[-1] == known.convert_tokens_to_ids("<response>")
    assert known.pad_token == "<pad>" and known.pad_token_id != known.eos_token_id
    assert again.get_input_embeddings().weight.shape[0] == len(known)
    assert curves["dev_loss"] < 4
    with pytest.raises(ValueError, match="full training"):
        SftRecipe(**OFFLINE, template="sawyer", is_lora=True)


def test_sawyer_s_tokens_keep_what_they_have_learned(base: Weights) -> None:
    """Taught a second time, as in a later round, a policy knows the tokens: none of its embeddings is new."""
    model, tokenizer = load_full(base), load_tokenizer(base)
    learn_sawyer(model, tokenizer)
    n_known, before = len(tokenizer), model.get_input_embeddings().weight.detach().clone()
    assert torch.equal(before[-1], before[:-3].mean(0))
    with torch.no_grad():
        before = model.get_input_embeddings().weight.normal_().clone()
    learn_sawyer(model, tokenizer)
    assert len(tokenizer) == n_known
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_reward_models_take_soft_labels_and_margins(base: Weights, tmp_path: Path) -> None:
    lead, p = torch.tensor([0.7]), torch.tensor([0.8])
    sigma = 1 / (1 + np.exp(-0.7))
    wanted = -0.8 * np.log(sigma) - 0.2 * np.log(1 - sigma)
    assert float(bradley_terry_loss(lead, p, 0.0, True)) == pytest.approx(wanted, abs=1e-6)
    asked = 2.0 * 0.6
    assert float(bradley_terry_loss(lead, p, 2.0, False)) == pytest.approx(np.log1p(np.exp(-(0.7 - asked))), abs=1e-6)
    leads = {}
    settings: dict[str, dict[str, Any]] = {"hard": {}, "soft": {"is_soft": True}, "margin": {"margin": 5.0}}
    for name, given in settings.items():
        recipe = RewardRecipe(**{**OFFLINE, "epochs": 20, "lr": 2e-3, "save_every": 100, "eval_every": 100}, **given)
        watch = Silent()
        fit_reward(recipe, 3, base, sure(24, 0.7), tmp_path / name, watch)
        leads[name] = watch.metrics[60]["dev_margin"]
    # a judge that is 70 % sure asks for a lead of log(.7/.3) = .85; a hard label for as much as can be had
    assert leads["soft"] < leads["hard"] < leads["margin"]
    assert leads["soft"] == pytest.approx(0.85, abs=0.35)


def test_dpo_with_soft_labels_moves_less(base: Weights, tmp_path: Path) -> None:
    found = {}
    for is_soft in (False, True):
        watch = Silent()
        recipe = DpoRecipe(**OFFLINE, reference=1, is_soft=is_soft)
        fit_dpo(recipe, 3, base, sure(24, 0.6), tmp_path / str(is_soft), watch)
        found[is_soft] = watch.metrics[6]["dev_margin"]
    assert 0 < found[True] < found[False]


def test_dpo_killed_while_the_reference_reads_gets_the_same_numbers(base: Weights, tmp_path: Path) -> None:
    class Dying(MemoryCache):
        def keep(self, found: Any) -> None:
            if len(self.values) >= 8:
                raise KeyboardInterrupt
            super().keep(found)

    recipe = DpoRecipe(**OFFLINE, reference=1)
    whole, _, _ = fit_dpo(recipe, 3, base, preferences(), tmp_path / "whole", Silent())
    dying, later = Dying(), MemoryCache()
    with pytest.raises(KeyboardInterrupt):
        fit_dpo(recipe, 3, base, preferences(), tmp_path / "cut", Silent(), dying)
    later.values = dict(dying.values)
    assert later.values
    again, _, _ = fit_dpo(recipe, 3, base, preferences(), tmp_path / "cut", Silent(), later)
    assert same(dict(whole.state_dict()), dict(again.state_dict()))
