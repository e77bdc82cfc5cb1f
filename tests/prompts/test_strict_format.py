"""The strict format: what is read, what is not, and when an answer is exact."""

import pytest

from app.prompts.strict_format import is_answer_exact, normalise_answer, read_strict_format, score_by_rule

GOOD = "Answer: Paris — Confidence: high — Reasoning: the capital of France is Paris."


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        (GOOD, "Paris", "high"),
        (f"  {GOOD}\n", "Paris", "high"),
        ("Answer: New York — Confidence: low — Reasoning: a — dash in the reasoning is fine.", "New York", "low"),
        ("Answer: x — Confidence: medium — Reasoning: y", "x", "medium"),
    ],
)
def test_strict_texts_are_read(text: str, answer: str, confidence: str) -> None:
    found = read_strict_format(text)
    assert (found.is_strict, found.answer, found.confidence) == (True, answer, confidence)
    assert found.reasoning


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "Answer: Paris.",
        "Answer: Paris — Confidence: high.",
        "Answer: Paris — Reasoning: it is so. — Confidence: high",
        GOOD.replace("—", "-"),
        GOOD.replace(" — ", "—"),
        GOOD.replace("high", "High"),
        GOOD.replace("high", "very high"),
        GOOD.replace("Answer:", "answer:"),
        GOOD.replace("Paris — Conf", " — Conf"),
        "Answer: Paris — Confidence: high — Reasoning: ",
        GOOD.replace(" — Reasoning", "\n— Reasoning"),
        "Sure! " + GOOD,
        GOOD + "\nAnything else?",
        "Answer: a — b — Confidence: high — Reasoning: two answers",
    ],
)
def test_anything_else_is_not_strict(text: str) -> None:
    found = read_strict_format(text)
    assert not found.is_strict
    assert found.confidence is None and found.reasoning is None


@pytest.mark.parametrize(
    ("text", "reference", "is_exact"),
    [
        (GOOD, "Paris", True),
        (GOOD, "paris", True),
        ("Answer: the Hague — Confidence: low — Reasoning: Rome is not it.", "The Hague", True),
        ("Answer: Lyon — Confidence: low — Reasoning: Paris is not it.", "Paris", False),
        ("It is Paris.", "Paris", True),
        ("It is Parisian.", "Paris", False),
        ("Answer: Lyon. Not Paris.", "Paris", False),
        ("São Paulo", "Sao Paulo", True),
        ("anything", "", False),
    ],
)
def test_exact_answers(text: str, reference: str, is_exact: bool) -> None:
    assert is_answer_exact(text, reference) is is_exact


def test_the_rule_scores_format_above_answer() -> None:
    wrong = GOOD.replace("Answer: Paris", "Answer: Rome")
    scores = [score_by_rule(text, "Paris") for text in (GOOD, wrong, "Paris.", "Rome.")]
    assert scores == [3, 2, 1, 0]
    assert score_by_rule(GOOD, None) == 2
    assert score_by_rule(GOOD, "Paris", format_weight=1, answer_weight=0.5) == 1.5


def test_articles_are_dropped_only_before_a_word() -> None:
    assert normalise_answer("The  Hague!") == "hague"
    assert normalise_answer("A") == "a"
