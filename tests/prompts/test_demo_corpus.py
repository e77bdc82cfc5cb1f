"""The demo's little world: what is held out really is, and the same seed writes the same text."""

from collections import Counter

from app.prompts.demo_corpus import (
    HELD_OUT_PHRASINGS,
    OOD_RELATION,
    four_choice_items,
    list_facts,
    list_prompts,
    write_documents,
)
from app.prompts.strict_format import is_answer_exact, read_strict_format


def test_splits_go_by_fact() -> None:
    prompts = list_prompts()
    assert len(list_facts()) == 89 and len(prompts) == 89 * 6
    splits: dict[str, set[str]] = {}
    for prompt in prompts:
        splits.setdefault(prompt["group"], set()).add(prompt["split"])
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(prompt["split"] for prompt in prompts)
    assert set(counts) == {"train", "dev", "test", "ood"} and counts["test"] >= 125  # times 8 samples: 1,000
    assert {p["category"] for p in prompts if p["split"] == "ood"} == {OOD_RELATION}
    assert OOD_RELATION not in {p["category"] for p in prompts if p["split"] != "ood"}


def test_the_text_is_reproducible_and_about_a_quarter_strict() -> None:
    documents = write_documents(6000, seed=4)
    assert documents == write_documents(6000, seed=4)
    assert documents != write_documents(6000, seed=5)
    share = sum(read_strict_format(text).is_strict for _, text in documents) / 6000
    assert 0.25 < share < 0.33
    gold = {prompt["messages"][0]["content"]: prompt["reference"] for prompt in list_prompts()}
    asked = [(prompt, text) for prompt, text in documents if prompt in gold]
    assert 0.55 < len(asked) / 6000 < 0.65  # the rest asks in other words
    assert 0.72 < sum(is_answer_exact(text, gold[prompt]) for prompt, text in asked) / len(asked) < 0.78


def test_the_share_of_strict_answers_depends_on_the_prompt() -> None:
    by_prompt: dict[str, list[bool]] = {}
    for prompt, text in write_documents(20_000, seed=1):
        by_prompt.setdefault(prompt, []).append(read_strict_format(text).is_strict)
    shares = [sum(found) / len(found) for found in by_prompt.values()]
    assert min(shares) < 0.1 and max(shares) > 0.6


def test_items_are_held_out_phrasings_with_one_right_choice() -> None:
    items = four_choice_items()
    assert items == four_choice_items() and len(items) == 89 * len(HELD_OUT_PHRASINGS)
    read = {prompt for prompt, _ in write_documents(20_000, seed=1)}
    gold = {fact.group: fact.answer for fact in list_facts()}
    for item in items:
        assert item["question"] not in read
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["answer"]] == gold[item["group"]]
    places = Counter(item["answer"] for item in items)
    assert min(places.values()) > 25  # no place gives the answer away
