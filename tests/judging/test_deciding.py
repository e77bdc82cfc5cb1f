"""From opinions to verdicts: votes that stop early, weights, flips and panels, as plain functions."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from app.judging.deciding import decide, still_missing, weigh
from app.judging.letters import find_letter, read_letter
from app.judging.protocol import Protocol, Seat, next_wave, settled
from app.judging.recipes import read_weight
from app.judging.verdicts import OpinionValue, add_up

LABELS = ("a", "b", "tie", None)


def said(choice, judge=1, *, swapped=False, sample=0, principle="", p_a=None, by=None):
    return OpinionValue(swapped, choice, p_a, by or {}, "why" if choice else "unread", sample, principle, judge)


def one_judge(**more) -> Protocol:
    return Protocol((Seat(1, "endpoint", **more),))


@pytest.mark.parametrize(
    ("votes", "undecided", "label"),
    [
        ({"a": 2}, 1, "a"),
        ({"a": 1, "b": 1}, 1, None),
        ({"a": 1, "b": 1}, 0, "tie"),
        ({"a": 1, "b": 1, "tie": 2}, 1, "tie"),
        ({"a": 2, "b": 1, "tie": 2}, 0, "tie"),
        ({"a": 1, "tie": 1}, 1, None),
        ({}, 3, None),
        ({"a": 2.0, "b": 1.0}, 0.5, "a"),
        ({"a": 1.5, "b": 1.5}, 0.0, "tie"),
    ],
)
def test_a_label_is_settled_when_the_undecided_could_not_change_it(votes, undecided, label):
    assert settled(votes, undecided) == label


def play(k: int, answers: list[str | None]) -> tuple[list[OpinionValue], int]:
    """Asks as the product does; gives the votes that were used."""
    protocol = one_judge(n_votes=k)
    used: list[OpinionValue] = []
    while wanted := still_missing(protocol, protocol.seats[0], used):
        used += [said(answers[one.sample], sample=one.sample) for one in wanted]
    return used, len(used)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_stopping_early_decides_as_all_votes_would_whatever_they_are(k: int):
    protocol = one_judge(n_votes=k)
    for answers in itertools.product(LABELS, repeat=k):
        used, n = play(k, list(answers))
        every = decide(protocol, [said(one, sample=i) for i, one in enumerate(answers)])
        assert decide(protocol, used).outcome == every.outcome, answers
        assert k / 2 <= n <= k


def test_votes_that_agree_nine_times_in_ten_take_at_most_seven_tenths_of_the_calls():
    draw = random.Random(3)
    asked = 0
    for _ in range(2000):
        right, wrong = draw.sample(["a", "b", "tie"], 2)
        asked += play(5, [right if draw.random() < 0.9 else wrong for _ in range(5)])[1]
    assert asked / (5 * 2000) <= 0.7


def test_no_vote_is_asked_for_that_could_settle_nothing():
    assert next_wave(3, 0, 0, 0, 2) == 0
    assert next_wave(0, 0, 0, 3, 2) == 0, "three unreadable of five: no majority is possible any more"
    assert next_wave(2, 1, 0, 0, 2) == 1


def test_orders_that_disagree_are_a_tie_or_soft():
    both = [said("a"), said("b", swapped=True)]
    hard, soft = (decide(replace(one_judge(orders=(False, True)), is_soft=one), both) for one in (False, True))
    assert (hard.outcome, hard.p_a, hard.is_flip, hard.need) == ("tie", None, True, 0.9)
    assert (soft.outcome, soft.p_a, soft.is_flip, soft.need) == ("tie", 0.5, True, 0.9)
    probable = [said("a", p_a=0.9), said("b", swapped=True, p_a=0.4)]
    value = decide(Protocol((Seat(1, "endpoint", orders=(False, True)),), is_soft=True), probable)
    assert (value.outcome, value.is_flip) == ("a", True)
    assert value.p_a == pytest.approx(0.65)
    assert add_up(probable).outcome == "tie"


def test_the_weighted_label_is_the_sign_of_the_weighted_sum():
    said_of = {"x": "a", "y": "b", "z": "tie"}
    assert weigh(said_of, {"x": 2, "y": 1, "z": 5}) == ("a", 1)
    assert weigh(said_of, {"x": 1, "y": 1}) == ("tie", 0)
    assert weigh(said_of, {"x": 0.1, "y": 0.3, "z": 0})[0] == "b"
    assert weigh({"x": "a"}, {"x": 1, "gone": 0}) == ("a", 1), "a principle without weight need not be read"


def test_weighted_and_holistic_read_the_same_opinions_differently():
    opinions = [said("b", by={"x": "a", "y": "a"})]
    holistic = one_judge()
    weighted = Protocol((Seat(1, "endpoint", is_weighted=True),), weights={"x": 1, "y": 1})
    assert decide(holistic, opinions).outcome == "b"
    assert decide(weighted, opinions).outcome == "a"
    assert decide(weighted, opinions).by_principle == {"x": "a", "y": "a"}
    lacking = decide(weighted, [said("b", by={"x": "a"})])
    assert lacking.outcome is None and "by y" in lacking.reason


def test_separate_questions_make_one_reading():
    seat = Seat(1, "endpoint", orders=(False, True), principles=("x", "y"), is_weighted=True)
    protocol = Protocol((seat,), weights={"x": 2, "y": 1})
    opinions = [said("a", principle="x"), said("b", principle="y")]
    assert len(still_missing(protocol, seat, opinions)) == 2
    opinions += [said("a", principle="x", swapped=True), said("a", principle="y", swapped=True)]
    value = decide(protocol, opinions)
    assert (value.outcome, value.is_flip) == ("a", False)
    assert value.by_principle == {"x": "a", "y": "tie"}, "a principle on which the orders disagree is a tie"
    opinions[1] = said(None, principle="y")
    assert decide(protocol, opinions).outcome is None


def panel(rule: str, *weights: float) -> Protocol:
    return Protocol(tuple(Seat(i, "endpoint", f"j{i}", w) for i, w in enumerate(weights, 1)), rule)


@pytest.mark.parametrize(
    ("rule", "weights", "labels", "outcome"),
    [
        ("majority", (1, 1, 1), "aab", "a"),
        ("majority", (9, 1, 1), "baa", "a"),
        ("weighted", (9, 1, 1), "baa", "b"),
        ("majority", (1, 1), "ab", "tie"),
        ("majority", (1, 1, 1), "abt", "tie"),
        ("majority", (1, 1, 1), "aa-", "a"),
        ("majority", (1, 1, 1), "ab-", None),
        ("weighted", (3, 1, 1), "a--", "a"),
        ("mean", (1, 1, 1), "aab", "a"),
        ("mean", (1, 1), "ab", "tie"),
        ("mean", (1, 1, 1), "aa-", "a"),
        ("mean", (1, 1, 1), "at-", None),
    ],
)
def test_a_panel(rule, weights, labels, outcome):
    letters = {"a": "a", "b": "b", "t": "tie", "-": None}
    opinions = [said(letters[one], judge) for judge, one in enumerate(labels, 1)]
    value = decide(panel(rule, *weights), opinions)
    assert value.outcome == outcome
    assert value.votes["null"] == labels.count("-")
    assert [one["outcome"] for one in value.votes["by_judge"].values()] == [letters[one] for one in labels]
    if outcome is None:
        assert "j3: unread" in value.reason and value.need == 1


def test_a_panels_mean_takes_probabilities_and_its_splits_go_to_people():
    value = decide(panel("mean", 1, 1), [said("a", 1, p_a=0.6), said("b", 2, p_a=0.1)])
    assert value.outcome == "b"
    assert value.p_a == pytest.approx(0.35)
    agreed = decide(panel("majority", 1, 1, 1), [said("a", i) for i in (1, 2, 3)])
    split = decide(panel("majority", 1, 1, 1), [said("a", 1), said("a", 2), said("b", 3)])
    assert agreed.need == 0 < split.need


def tokens(*texts: str, at: int, tops: dict[str, float]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"token": text, "logprob": 0.0, "top_logprobs": []} for text in texts]
    content[at]["top_logprobs"] = [{"token": token, "logprob": value} for token, value in tops.items()]
    return {"logprobs": {"content": content}}


def test_the_letters_probability_is_read_at_the_verdict_and_nowhere_else():
    tops = {' "A': -0.1, ' "B': -2.5, ' "t': -4.0, "xyz": -1.0}
    found = find_letter(tokens('{"ver', 'dict":', ' "A', '", "nonce": "0"}', at=2, tops=tops))
    letter, p_first = read_letter(found) or ("", 0)
    assert letter == "A" and 0.85 < p_first < 0.95
    twice = tokens('{"verdict": "', "B", '"} {"verdict": "', "A", '"}', at=3, tops=tops)
    assert find_letter(twice) == [], "a quoted verdict leaves no doubt-free place"
    assert find_letter({}) == [] and read_letter([]) is None and read_letter([("no", -0.1)]) is None


@pytest.mark.parametrize(("line", "wanted"), [("7: 2", (7, 2.0)), ("#12 = .5", (12, 0.5))])
def test_a_members_weight_is_read(line: str, wanted: tuple[int, float]):
    assert read_weight(line) == wanted


@pytest.mark.parametrize("line", ["two: 2", "7: 0", "7: 1e9", "7"])
def test_what_is_no_weight_is_refused(line: str):
    with pytest.raises(ValueError, match="like “7: 2”"):
        read_weight(line)


ODD_TOPS: list[Any] = [
    7, [{}], [{"token": "A", "logprob": None}], [{"token": "A", "logprob": "x"}], [{"token": "A"}, 1],
    [{"token": "A", "logprob": float("nan")}], [{"token": "A", "logprob": 1e9}],
    [{"token": "A", "logprob": float("-inf")}],
]  # fmt: skip


@pytest.mark.parametrize(
    "logprobs",
    [
        [1], "x", 7, {"content": [1]}, {"content": "abc"}, {"content": 7},
        *({"content": [{"token": '"verdict": "'}, {"token": "A", "top_logprobs": tops}]} for tops in ODD_TOPS),
    ],
)  # fmt: skip
def test_odd_log_probabilities_are_none(logprobs: Any):
    assert find_letter({"logprobs": logprobs}) == []


def test_an_impossible_alternative_is_left_out():
    tops: list[dict[str, Any]] = [{"token": "A\ud800", "logprob": -0.1}, {"token": "B", "logprob": float("-inf")}]
    content = [{"token": '"verdict": "'}, {"token": "A", "top_logprobs": tops}]
    assert find_letter({"logprobs": {"content": content}}) == [("A?", -0.1)]
