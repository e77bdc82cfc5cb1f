"""Local models: batches, seeds, truncation, stop reasons and log-probabilities, against plain forward passes."""

from pathlib import Path

import pytest
import torch

from app.db import clean_text
from app.errors import AppError, Invalid
from tests.worker.tiny import write_tiny
from worker.llm import FALLBACK, LocalModel, RewardScorer, batch_seed, plan_batches
from worker.loading import Weights, load_reward
from worker.saving import save_folder

ASKED = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Tell me the young of a cat."}],
    [{"role": "user", "content": "Hot?"}],
]
SAMPLED = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A Llama of 30,000 weights with a chat template."""
    return LocalModel(write_tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> LocalModel:
    """A real checkpoint without a chat template."""
    return LocalModel(Weights(str(shared_data / "stories260k" / "hf")))


def test_the_same_seed_writes_the_same_batch_and_leaves_the_global_generator_alone(tiny: LocalModel) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = tiny.sample(ASKED, SAMPLED, 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tiny.sample(ASKED, SAMPLED, 7) == first
    assert tiny.sample(ASKED, SAMPLED, 8) != first


def test_greedy_text_does_not_depend_on_the_batch_and_is_the_argmax(tiny: LocalModel) -> None:
    greedy = {**SAMPLED, "temperature": 0.0}
    together = tiny.sample(ASKED, greedy, 1)
    assert [tiny.sample([one], greedy, 2)[0] for one in ASKED] == together
    ids = tiny.encode(ASKED[0])
    for _ in range(5):
        ids.append(int(tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = tiny.tokenizer.decode(ids[-5:], skip_special_tokens=True)
    assert tiny.sample([ASKED[0]], {**greedy, "max_new_tokens": 5}, 1)[0].text == wanted


def test_a_narrow_top_p_is_greedy(tiny: LocalModel) -> None:
    narrow = tiny.sample(ASKED, {**SAMPLED, "top_p": 1e-6}, 3)
    assert [one.text for one in narrow] == [one.text for one in tiny.sample(ASKED, {**SAMPLED, "temperature": 0}, 3)]


def test_stop_reasons_and_token_counts(tiny: LocalModel) -> None:
    samples = tiny.sample(ASKED * 20, {**SAMPLED, "max_new_tokens": 60}, 1)
    assert {one.stop_reason for one in samples} == {"stop", "length"}
    for one in samples:
        assert "<|end|>" not in one.text
        assert (one.n_tokens == 60) if one.stop_reason == "length" else (one.n_tokens <= 60)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so(tiny: LocalModel) -> None:
    long = [{"role": "user", "content": "Tell me the capital of France. " * 60}]
    assert tiny.is_too_long(long, 8) and not tiny.is_too_long(ASKED[0], 8)
    cut, whole = tiny.sample([long, ASKED[0]], {**SAMPLED, "max_new_tokens": 8}, 1)
    assert (cut.is_prompt_truncated, whole.is_prompt_truncated) == (True, False)
    with pytest.raises(Invalid, match="do not fit this checkpoint's context of 128"):
        tiny.sample(ASKED, {**SAMPLED, "max_new_tokens": 128}, 1)


def test_log_probs_are_those_of_a_plain_forward(tiny: LocalModel, stories: LocalModel) -> None:
    for model in (tiny, stories):
        asked = [(one, ["A", "B", " It is Paris."]) for one in ASKED]
        found = model.log_probs_of(asked)
        for (messages, texts), values in zip(asked, found, strict=True):
            head = model.encode(messages)
            is_special = not model.has_template
            rendered = [model.render(messages) + text for text in texts]
            whole = [model.tokenizer(one, add_special_tokens=is_special)["input_ids"] for one in rendered]
            for ids, value in zip(whole, values, strict=True):
                assert ids[: len(head)] == head
                shares = torch.log_softmax(model.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
                plain = sum(float(shares[place - 1, ids[place]]) for place in range(len(head), len(ids)))
                assert value == pytest.approx(plain, abs=1e-4)
    assert tiny.log_probs(ASKED[0], ["A", "B"]) == pytest.approx(tiny.log_probs_of([(ASKED[0], ["A", "B"])])[0])
    with pytest.raises(Invalid, match="empty text"):
        tiny.log_probs(ASKED[0], [""])


def test_rendering_is_stated(tiny: LocalModel, stories: LocalModel) -> None:
    assert tiny.render(ASKED[2]) == "<|user|>Hot?<|end|><|assistant|>"
    assert tiny.rendering == "the tokenizer's chat template"
    two = [{"role": "system", "content": "Be kind."}, *ASKED[2]]
    assert stories.render(two) == "Be kind.\n\nHot?\n\n"
    assert stories.rendering == FALLBACK
    assert stories.encode(two)[0] == stories.tokenizer.bos_token_id
    tiny.tokenizer.chat_template, kept = "{{ raise_exception('no system here') }}", tiny.tokenizer.chat_template
    try:
        with pytest.raises(AppError, match="refuses these messages \\(system, user\\): no system here"):
            tiny.render(two)
    finally:
        tiny.tokenizer.chat_template = kept


def test_reward_scores_are_those_of_one_text_at_a_time(tiny: LocalModel, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    policy = tiny.model
    torch.manual_seed(0)
    config = policy.config.__class__(**{**policy.config.to_dict(), "num_labels": 1})
    made = AutoModelForSequenceClassification.from_config(config)
    made.model.load_state_dict(policy.model.state_dict())

    def write(folder: Path) -> None:
        made.save_pretrained(folder)
        tiny.tokenizer.save_pretrained(folder)

    folder, manifest = save_folder(tmp_path / "reward", write)
    scorer = RewardScorer(Weights(str(folder), manifest))
    texts = ["Paris.", "It is a kitten, I think.", "cold"]
    together = scorer.score(ASKED, texts)
    assert together == pytest.approx([scorer.score([p], [t])[0] for p, t in zip(ASKED, texts, strict=True)], abs=1e-5)
    model = load_reward(Weights(str(folder), manifest)).eval().requires_grad_(False)
    text = "<|user|>Hot?<|end|><|assistant|>cold<|end|>"
    ids = torch.tensor([tiny.tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert together[2] == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-5)


def test_batches_are_planned_by_length_and_seeds_differ() -> None:
    batches = plan_batches([3, 9, 5, 9, 1], 2)
    assert batches == [[1, 3], [2, 0], [4]]
    assert batch_seed(1, "arm", 0) == batch_seed(1, "arm", 0)
    assert len({batch_seed(run, arm, n) for run in (1, 2) for arm in "ab" for n in range(50)}) == 200


def test_texts_no_database_could_store_are_mended() -> None:
    assert clean_text("a\x00b\ud800c") == "a\ufffdb?c"
