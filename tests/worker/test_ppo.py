"""PPO on a tiny model: what holds before the first step, what an update does, and going on after a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import AppError
from app.training.recipes import PpoRecipe, RewardRecipe
from tests.worker.tiny import IDS, Silent, same, write_tiny
from worker.loading import Weights, WrongBase, encode_prompt, load_full, load_tokenizer, render_prompt
from worker.ppo import Ppo, train
from worker.ppo_models import LoraModels, PpoModels, load_ppo_models
from worker.recorder import Recorder
from worker.reward import make_classifier
from worker.rewards import score_text, text_bonus
from worker.rl_prompts import RlPrompt
from worker.rollout import Rollout, pick, sample, seeded
from worker.saving import save_folder

QUESTIONS = ["What is the capital of France?", "Tell me the young of a cat.", "Question: the opposite of hot?"]


def recipe(**changes: Any) -> PpoRecipe:
    given = {
        "iterations": 4, "rollouts": 6, "ppo_epochs": 2, "minibatches": 2, "max_new_tokens": 8, "lr": 3e-3,
        "value_lr": 3e-3, "save_every": 2, "lora_rank": 4,
    }  # fmt: skip
    return PpoRecipe(**{**IDS, "prompt_set": 1, "reward": 1, **given, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def write_reward(folder: Path, base: Weights, is_lora: bool) -> Weights:
    """A reward model with a random head, stored as a training run stores it."""
    model = make_classifier(base, RewardRecipe(start=1, snapshot=1, is_lora=is_lora, lora_rank=4), seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(4))
    facts = {"base_sha256": base.manifest_sha256} if is_lora else {}
    place, sha256 = save_folder(folder, model.save_pretrained, facts)
    if not is_lora:
        load_tokenizer(base).save_pretrained(place)
        return Weights(str(place))
    return Weights(str(place), sha256, base)


@torch.no_grad()
def of_tokens(model: Any, rollout: Rollout) -> torch.Tensor:
    """Log-probabilities (b, n) of a rollout's tokens by transformers' own logits."""
    positions = (rollout.attention.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=positions).logits
    shares = logits[:, -rollout.n - 1 : -1].log_softmax(-1)
    return shares.gather(-1, rollout.tokens.unsqueeze(-1)).squeeze(-1)


@pytest.fixture(params=["full", "lora"])
def models(request: pytest.FixtureRequest, base: Weights, tmp_path: Path) -> PpoModels:
    is_lora = request.param == "lora"
    torch.manual_seed(0)
    return load_ppo_models(base, write_reward(tmp_path / "reward", base, is_lora), is_lora, 4, "float32")


def make(models: PpoModels, base: Weights, **changes: Any) -> tuple[Ppo, list[list[int]]]:
    tokenizer = load_tokenizer(base)
    prompts = [encode_prompt(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": q}])) for q in QUESTIONS]
    return Ppo(recipe(**changes), 7, models, tokenizer), prompts


def test_first_step_begins_at_ratio_one_and_kl_zero(models: PpoModels, base: Weights) -> None:
    ppo, prompts = make(models, base)
    found = ppo.iterate(0, prompts, lambda: None)
    assert abs(found["kl"]) < 1e-5
    assert found["first_ratio_error"] < 1e-5
    assert found["ratio_error"] > 1e-4  # later minibatches have moved


def test_what_has_no_reward_is_counted_though_no_judge_is_asked(models: PpoModels, base: Weights) -> None:
    ppo, prompts = make(models, base)
    assert "unreadable" not in ppo.iterate(0, prompts, lambda: None)
    ppo.bonus = lambda asked, texts: [None, *[0.0] * (len(texts) - 1)]
    assert ppo.iterate(1, prompts, lambda: None)["unreadable"] == pytest.approx(1 / 6)
    ppo.bonus = lambda asked, texts: [None] * len(texts)
    with pytest.raises(AppError, match="whether the reward model gives numbers"):
        ppo.iterate(2, prompts, lambda: None)


def test_reference_is_the_start_reloaded_from_disk(models: PpoModels, base: Weights) -> None:
    ppo, prompts = make(models, base)
    rollout = ppo.roll_out(prompts, seeded(1), lambda: None)
    for iteration in range(2):
        ppo.iterate(iteration, prompts, lambda: None)
    after = models.reference_log_probs(rollout.ids, rollout.attention, rollout.tokens, 1.0)
    fresh = load_full(base).eval()
    for row, prompt in enumerate(prompts):
        n = int(rollout.mask[row].sum())
        ids = torch.tensor([prompt + rollout.tokens[row, :n].tolist()])  # alone, without padding or cache
        with torch.no_grad():
            shares = fresh(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = shares.gather(1, rollout.tokens[row, :n, None]).squeeze(1)
        assert torch.allclose(after[row, :n], wanted, atol=1e-5)
        assert torch.allclose(rollout.log_probs[row, :n], wanted, atol=1e-5)


def test_sampling_stops_at_the_end_token_and_follows_the_temperature(base: Weights) -> None:
    policy, tokenizer = load_full(base).eval(), load_tokenizer(base)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    prompts = [encode_prompt(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": QUESTIONS[0]}]))] * 400
    rollout = sample(policy, prompts, 12, 1.0, [end], pad, seeded(1), lambda: None)
    for row in range(400):
        n = int(rollout.mask[row].sum())
        assert not (rollout.tokens[row, : n - 1] == end).any()
        assert rollout.tokens[row, n - 1] == end or n == rollout.n
        assert (rollout.tokens[row, n:] == pad).all()
        assert not rollout.log_probs[row, n:].any()
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    for temperature in (1.0, 0.5):
        drawn = sample(policy, prompts * 5, 1, temperature, [end], pad, seeded(2), lambda: None).tokens[:, 0]
        top = int(logits.argmax())
        share = float(torch.softmax(logits / temperature, -1)[top])
        spread = (share * (1 - share) / 2000) ** 0.5
        assert abs(float((drawn == top).float().mean()) - share) < 4 * spread


def test_a_draw_falls_on_each_token_as_often_as_its_probability() -> None:
    shares = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log()
    assert [int(pick(shares, torch.tensor([u]))) for u in (0.0, 0.499, 0.501, 0.749, 0.751, 1 - 2**-24)] == [
        0,
        0,
        2,
        2,
        3,
        3,
    ]
    generator = torch.Generator().manual_seed(1)
    drawn = pick(shares.expand(4000, -1), torch.rand(4000, generator=generator, dtype=torch.float64))
    assert torch.allclose(drawn.bincount(minlength=4) / 4000, shares[0].exp(), atol=0.03)


def test_a_row_that_has_ended_leaves_the_batch_and_the_others_read_on_as_if_alone(base: Weights) -> None:
    policy, tokenizer = load_full(base).eval(), load_tokenizer(base)
    prompts = [encode_prompt(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": q}])) for q in QUESTIONS]
    ends = list(range(0, 400, 7))  # so that rows leave the batch one after another
    forwards: list[int] = []
    policy.register_forward_pre_hook(lambda _m, _a, given: forwards.append(len(given["input_ids"])), with_kwargs=True)
    whole = sample(policy, prompts * 8, 12, 1.0, ends, 0, seeded(5), lambda: None)
    assert forwards[0] == 24 and forwards[-1] < 12 and forwards == sorted(forwards, reverse=True)
    assert sum(forwards) == int(whole.mask.sum())  # no row is computed once it has ended
    for row in range(24):
        said = whole.tokens[row, : int(whole.mask[row].sum())].tolist()
        assert all(token not in ends for token in said[:-1])
        assert said[-1] in ends or len(said) == whole.n
    scored = of_tokens(policy, whole)
    assert torch.allclose(scored * whole.mask, whole.log_probs, atol=1e-5)


def test_training_raises_the_reward_and_the_policy_loads_again(
    models: PpoModels, base: Weights, tmp_path: Path
) -> None:
    ppo, prompts = make(models, base, iterations=12, rollouts=32, kl_coef=0.0)
    watch = Silent()
    shown = [RlPrompt([{"role": "user", "content": q}], ids) for q, ids in zip(QUESTIONS, prompts[:2], strict=False)]
    train(ppo, prompts, Recorder(shown, ppo.tokenizer, watch, None), tmp_path / "state", watch)
    first = sum(watch.metrics[i]["reward"] for i in (1, 2, 3))
    assert sum(watch.metrics[i]["reward"] for i in (10, 11, 12)) > first
    assert watch.samples == [0, 10, 12]
    assert watch.metrics[0]["dev_kl"] == pytest.approx(0, abs=1e-4) and watch.metrics[12]["dev_kl_k3"] > 1e-3
    folder, sha256 = save_folder(tmp_path / "policy", models.save_policy, {"base_sha256": base.manifest_sha256})
    is_lora = isinstance(models, LoraModels)
    again = load_full(Weights(str(folder), sha256, base if is_lora else None)).eval()
    rollout = ppo.roll_out(prompts, seeded(1), lambda: None)
    with torch.no_grad():
        mine, _ = models.policy_log_probs(rollout.ids, rollout.attention, rollout.tokens, 1.0)
    theirs, start = (of_tokens(model, rollout) for model in (again, load_full(base)))
    last = rollout.mask.bool()
    assert torch.allclose(mine[last], theirs[last], atol=1e-4)
    assert not torch.allclose(theirs[last], start[last], atol=1e-3)


def test_cancelled_and_resumed_is_bit_equal(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, False)

    def run(folder: Path, stop_after: int | None) -> tuple[dict[str, torch.Tensor], Silent]:
        models = load_ppo_models(base, reward, False, 4, "float32")
        ppo, prompts = make(models, base)
        watch = Silent(stop_after)
        try:
            train(ppo, prompts, None, folder, watch)
        except KeyboardInterrupt:
            assert stop_after is not None
        return models.state(), watch

    whole, _ = run(tmp_path / "a", None)
    run(tmp_path / "b", 3)
    resumed, watch = run(tmp_path / "b", None)
    assert watch.resumed == [2]  # step 3 came after the last state and is done again
    assert same(whole, resumed)


def test_a_half_written_state_is_passed_over(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, False)
    models = load_ppo_models(base, reward, False, 4, "float32")
    ppo, prompts = make(models, base, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(ppo, prompts, None, tmp_path / "s", Silent(stop_after=3))
    state = tmp_path / "s" / "state-3" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    watch = Silent()
    train(ppo, prompts, None, tmp_path / "s", watch)
    assert watch.resumed == [2]


def test_reward_adapter_is_refused_on_another_base(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, True)
    other = write_tiny(tmp_path / "other", seed=2)
    with pytest.raises(WrongBase, match="trained on a base with hash"):
        load_ppo_models(other, Weights(reward.place, reward.manifest_sha256, other), True, 4, "float32")


def test_reward_is_the_same_from_an_adapter_on_the_shared_base(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, True)
    shared = load_ppo_models(base, reward, True, 4, "float32")
    apart = load_ppo_models(base, reward, False, 4, "float32")
    ppo, prompts = make(shared, base)
    rollout = ppo.roll_out(prompts, seeded(1), lambda: None)
    assert torch.allclose(
        shared.scores(rollout.ids, rollout.attention, rollout.n),
        apart.scores(rollout.ids, rollout.attention, rollout.n),
        atol=1e-5,
    )


def test_lora_from_an_adapter_keeps_it_as_reference(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, True)
    first = load_ppo_models(base, reward, True, 4, "float32")
    ppo, prompts = make(first, base)
    ppo.iterate(0, prompts, lambda: None)
    folder, sha256 = save_folder(tmp_path / "one", first.save_policy, {"base_sha256": base.manifest_sha256})
    start = Weights(str(folder), sha256, base)
    second, _ = make(load_ppo_models(start, reward, True, 4, "float32"), base)
    found = second.iterate(0, prompts, lambda: None)
    assert abs(found["kl"]) < 1e-5
    rollout = second.roll_out(prompts, seeded(1), lambda: None)
    reference = second.models.reference_log_probs(rollout.ids, rollout.attention, rollout.tokens, 1.0)
    last = rollout.mask.bool()
    assert torch.allclose(reference[last], of_tokens(load_full(start), rollout)[last], atol=1e-4)


def test_the_rule_may_reward_alone_or_beside_the_reward_model(base: Weights, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    known = [
        RlPrompt(m, encode_prompt(tokenizer, render_prompt(tokenizer, m)), "x")
        for m in ([{"role": "user", "content": question}] for question in QUESTIONS)
    ]
    reward = write_reward(tmp_path / "reward", base, False)
    scores = {}
    ways: dict[str, dict[str, Any]] = {
        "model": {}, "rule": {"reward": None, "rule_weight": 3.0}, "both": {"reward_weight": 0.5, "rule_weight": 3.0}
    }  # fmt: skip
    for name, given in ways.items():
        asked = recipe(**given)
        models = load_ppo_models(base, reward if asked.reward else None, False, 4, "float32")
        bonus = text_bonus(asked, 1, known, None)
        ppo = Ppo(asked, 7, models, tokenizer, bonus)
        ids = [prompt.ids for prompt in known]
        rollout = ppo.roll_out(ids, seeded(1), lambda: None)
        texts = [
            tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
            for row, mask in zip(rollout.tokens, rollout.mask, strict=True)
        ]
        scores[name] = ppo.score(rollout, ids)
    by_rule = torch.tensor([3 * score_text("", text, "x", 0, 1) for text in texts])
    assert torch.allclose(scores["rule"], by_rule, atol=1e-6)
    assert torch.allclose(scores["both"], 0.5 * scores["model"] + by_rule, atol=1e-5)
    assert score_text("", "Answer: x — Confidence: low — Reasoning: because", "x", 0, 1) == 1
    with pytest.raises(ValueError, match="nothing rewards"):
        recipe(reward=None)


def test_ppo_raises_the_rule_s_reward_without_a_reward_model(base: Weights, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = RlPrompt(messages, encode_prompt(tokenizer, render_prompt(tokenizer, messages)), None)
    models = load_ppo_models(base, None, True, 4, "float32")

    def short(asked: list[list[int]], texts: list[str]) -> list[float]:
        return [-float(len(text)) for text in texts]

    asked = recipe(reward=None, rule_weight=1.0, is_lora=True, iterations=12, rollouts=32, kl_coef=0.0, lr=1e-2)
    watch = Silent()
    train(Ppo(asked, 7, models, tokenizer, short), [prompt.ids], None, tmp_path / "state", watch)
    assert watch.metrics[12]["reward"] > watch.metrics[1]["reward"] + 2


def test_bfloat16_reads_what_float32_reads_and_keeps_its_adapters_in_float32(base: Weights, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", base, True)
    wide, narrow = (LoraModels(base, reward, 4, dtype) for dtype in ("float32", "bfloat16"))
    with torch.no_grad():
        for models in (wide, narrow):
            for place, parameter in enumerate(models.policy_parameters()):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place)))
    assert {p.dtype for p in (*narrow.policy_parameters(), *narrow.value_parameters())} == {torch.float32}
    ppo, prompts = make(narrow, base)
    rollout = ppo.roll_out(prompts, seeded(1), lambda: None)
    given = (rollout.ids, rollout.attention, rollout.tokens, 1.0)
    last = rollout.mask.bool()
    for mine, theirs in (
        (narrow.policy_log_probs(*given)[0], wide.policy_log_probs(*given)[0]),
        (narrow.reference_log_probs(*given), wide.reference_log_probs(*given)),
        (rollout.log_probs, wide.policy_log_probs(*given)[0]),
    ):
        assert (mine - theirs)[last].abs().max() < 0.1  # eight bits of a mantissa
    assert (wide.policy_log_probs(*given)[0] - wide.reference_log_probs(*given))[last].abs().max() > 0.2
    before = [p.detach().clone() for p in narrow.policy_parameters()]
    found = ppo.iterate(0, prompts, lambda: None)
    assert found["grad_norm"] > 0 and found["value_grad_norm"] > 0
    assert not all(torch.equal(a, b) for a, b in zip(before, narrow.policy_parameters(), strict=True))
