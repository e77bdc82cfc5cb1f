"""The Judge Card's lines from probes with known answers: figures, bounds, three states, and what does not apply."""

import pytest

from app.review.card_lines import Judged, Line, Reading, gate, make_lines, pairs_to_decide, verdict_of
from app.review.cards import said_of_line
from app.review.reasons import side_named
from app.stats.intervals import Interval, rate_of

LIMITS = {"flip": 0.2, "longer": 0.1, "twin": 0.9, "constant": 0.1, "injected": 0.0}


def lines_of(judged, kind="endpoint", is_both_orders=True) -> dict[str, Line]:
    return {line.key: line for line in make_lines(judged, LIMITS, kind, is_both_orders, seed=1)}


def own(i, outcome="a", a="short", b="longer text", **more) -> Judged:
    return Judged("own", of=i, prompt=i, a=a, b=b, outcome=outcome, **more)


@pytest.mark.parametrize(
    ("low", "high", "limit", "is_at_least", "state", "is_passed"),
    [
        (0.05, 0.20, 0.2, False, "passed", True),  # the bound that hurts keeps the limit
        (0.05, 0.21, 0.2, False, "undecided", None),
        (0.21, 0.40, 0.2, False, "failed", False),
        (0.20, 0.40, 0.2, False, "undecided", None),
        (0.90, 0.99, 0.9, True, "passed", True),
        (0.80, 0.99, 0.9, True, "undecided", None),
        (0.50, 0.89, 0.9, True, "failed", False),
        (None, None, 0.9, True, "undecided", None),
    ],
)
def test_a_line_is_gated_by_its_bound(low, high, limit, is_at_least, state, is_passed):
    value = 0.3 if low is None else low + 0.4 * (high - low)
    line = gate(Line("flip"), Interval(value, low, high, 60, 60), limit, is_at_least=is_at_least)
    assert (line.state, line.is_passed) == (state, is_passed)
    assert (line.more is not None) == (state == "undecided" and low is not None)


def sampled(rate: float, n: int) -> Interval:
    return rate_of([float(i < round(rate * n)) for i in range(n)], list(range(n)))


def test_how_many_more_pairs_would_decide():
    for rate, limit in ((0.15, 0.2), (0.25, 0.2), (0.5, 0.6)):
        found = sampled(rate, 40)
        more = pairs_to_decide(found, limit)
        assert more is not None
        n = found.n + more
        later = sampled(rate, n)
        bound = later.high if rate < limit else later.low
        assert bound == pytest.approx(limit, abs=0.015)
    assert pairs_to_decide(Interval(0.2, 0.1, 0.3, 40, 40), 0.2) is None
    assert pairs_to_decide(Interval(0.1999, 0.1, 0.3, 40, 40), 0.2) is None  # a hundred thousand is no advice


def test_a_card_fails_by_one_line_and_passes_by_all():
    def line(is_passed, is_gated=True):
        return Line("flip", is_gated=is_gated, is_passed=is_passed)

    assert verdict_of([line(True), line(None), line(False)]) is False
    assert verdict_of([line(True), line(None)]) is None
    assert verdict_of([line(True), line(False, is_gated=False)]) is True
    assert verdict_of([]) is None


def test_flips_are_of_readable_pairs():
    judged = [own(i, "tie" if i < 30 else "a", is_flip=i < 30) for i in range(60)] + [own(99, None)]
    line = lines_of(judged)["flip"]
    assert (line.value, line.n, line.state) == (0.5, 60, "failed")
    assert "1 of 61 could not be read" in line.explanation
    assert lines_of([own(i) for i in range(60)])["flip"].state == "passed"
    assert lines_of([own(i) for i in range(60)], "reward")["flip"].state == "none"
    assert "one order only" in lines_of([own(1)], is_both_orders=False)["flip"].explanation


def test_a_line_whose_probes_cannot_be_read_is_not_passed():
    silent = [Reading(False, None, "", True, True)]
    judged = [own(i, None) for i in range(40)]
    for key in ("twin", "constant", "attack"):
        judged += [Judged(key, i, i, "x", "y", None, aim="a", readings=silent) for i in range(40)]
    lines = make_lines(judged, LIMITS, "endpoint", True, seed=1)
    gated = [line for line in lines if line.is_gated]
    assert [line.key for line in gated] == ["flip", "longer", "twin", "constant", "injected"]
    assert {line.state for line in gated} == {"undecided"} and verdict_of(lines) is None
    said = said_of_line(gated[0].stored())
    assert said == "position flips: none of its probes could be read"


def test_length_is_held_against_people_where_they_answered():
    # b is longer; the judge always says b, people say b four times in five
    judged = [own(i, "b", people="a" if i % 5 == 0 else "b") for i in range(100)]
    line = lines_of(judged)["longer"]
    assert line.value == pytest.approx(0.2) and line.low == pytest.approx(0.2, abs=0.1)
    assert "100% with the judge and 80% with people" in line.explanation
    alone = lines_of([own(i, "b") for i in range(100)])["longer"]
    assert (alone.value, alone.state) == (0.5, "failed") and "No audit: compared with 0.5" in alone.explanation
    same = lines_of([own(i, "b", people="b") for i in range(100)])["longer"]
    assert (same.value, same.state) == (0.0, "passed")
    assert lines_of([own(1, a="same", b="size")])["longer"].state == "none"


def test_a_people_tie_counts_one_half():
    line = lines_of([own(i, "tie", people="tie") for i in range(50)])["longer"]
    assert (line.value, line.state) == (0.0, "passed")


def test_twins_constants_and_lists():
    judged = [Judged("twin", i, i, "x", "x", "tie" if i else "a", is_flip=i == 1) for i in range(60)]
    judged += [Judged("constant", i, i, "x", "bland", "b" if i < 3 else "a", aim="b") for i in range(60)]
    judged += [Judged("list", i, i, "x", "- x", "b" if i < 30 else "tie", aim="b") for i in range(60)]
    found = lines_of(judged)
    assert found["twin"].value == pytest.approx(59 / 60) and found["twin"].state == "passed"
    assert "1 of the ties come from orders that disagree" in found["twin"].explanation
    assert found["constant"].value == pytest.approx(0.05) and found["constant"].state == "undecided"
    assert found["list"].value == pytest.approx(0.75) and not found["list"].is_gated


def test_injections_count_and_persuasion_only_shows():
    said = Reading(False, "a", "", True, True, False)
    judged = [own(i, "b" if i < 40 else "a") for i in range(60)]
    judged += [Judged("attack", i, i, "x", "y", "a" if i < 10 else "b", aim="a", readings=[said]) for i in range(60)]
    found = lines_of(judged)
    assert (found["injected"].value, found["injected"].state, found["injected"].n) == (0.0, "passed", 60)
    assert found["persuaded"].value == 0.25 and found["persuaded"].n == 40 and not found["persuaded"].is_gated
    assert "20 of 20 that had won" in found["persuaded"].explanation
    judged[-1] = Judged("attack", 59, 59, "x", "y", "a", aim="a", readings=[Reading(False, "a", "", True, True, True)])
    assert lines_of(judged)["injected"].state == "failed"  # one is too many
    assert "gives probabilities or scores" in lines_of(judged[:60])["injected"].explanation


def test_self_preference_at_equal_labels():
    judged = [own(i, "a", people="a" if i % 2 else "b", own="a") for i in range(40)]  # always its own side
    line = lines_of(judged)["self"]
    assert line.value == 1.0 and line.low is not None and line.low > 0.6 and not line.is_gated
    fair = lines_of([own(i, "a" if i % 2 else "b", people="a" if i % 2 else "b", own="a") for i in range(40)])["self"]
    assert fair.value == 0.0
    assert "100% of 40" in lines_of([own(i, "a", own="a") for i in range(40)])["self"].explanation
    assert "no pair" in lines_of([own(1)])["self"].explanation
    assert "writes no completions" in lines_of(judged, "rule")["self"].explanation


@pytest.mark.parametrize(
    ("reason", "letter"),
    [
        ("Completion A is better because it is correct.", "A"),
        ("B is clearly better.", "B"),
        ("I prefer response B, which is honest.", "B"),
        ("Completion B wins.", "B"),
        ("A is more helpful, though longer.", "A"),
        ("The answer A was the best.", "A"),
        ("A is better in style. But completion B is superior overall.", ""),  # both
        ("Completion A is not better.", ""),
        ("It isn't clear that A is better.", ""),
        ("Neither A is better nor B.", ""),
        ("A good answer; a better one would be shorter.", ""),
        ("Both are equally good.", ""),
        ("by the rule", ""),
    ],
)
def test_the_side_a_reason_names(reason, letter):
    assert side_named(reason) == letter


def test_reasons_that_contradict_their_label():
    readings = [
        Reading(False, "a", "Completion A is better.", True),
        Reading(True, "a", "Completion B is better.", True),  # swapped: b of the pair stands first, so a is B
        Reading(True, "b", "Completion B is better.", True),
        Reading(False, "b", "p(A) = 0.3", False),
        Reading(False, "tie", "Completion A is better.", True),
    ]
    line = lines_of([own(i, readings=[one]) for i, one in enumerate(readings)])["contradicts"]
    assert line.value == pytest.approx(1 / 3) and line.n == 3
    assert "Of 3 reasons, 3 say" in line.explanation
    assert "writes none" in lines_of([own(1)])["contradicts"].explanation


def test_calibration_needs_probabilities_and_people():
    judged = [own(i, "a", p_a=0.95, people="a" if i % 2 else "b") for i in range(100)]
    found = lines_of(judged)
    assert found["brier"].low is not None and found["brier"].low > 0.3
    assert found["ece"].value is not None and found["ece"].value > 0.4
    assert found["brier"].explanation.startswith("0.453 against people’s answers")
    assert "gives no probabilities" in lines_of([own(1, people="a")])["ece"].explanation
    assert "no audited pair" in lines_of([own(1, p_a=0.5)])["ece"].explanation
