"""Teacher or critic: every reading of a gain, by the intervals it rests on."""

import pytest

from app.stats.comparisons import Difference, paired_difference
from app.stats.teacher_critic import SAID, Reading, read_gain


def between(low: float | None, high: float | None) -> Difference:
    value = 0.0 if low is None or high is None else (low + high) / 2
    return Difference(value, low, high, 0.5, 50, 50, 0.5, 0.5 - value)


UP, AROUND, DOWN = between(0.02, 0.2), between(-0.1, 0.1), between(-0.2, -0.02)
CASES: list[tuple[Difference | None, Difference | None, bool, Reading]] = [
    (None, UP, True, "not measured"),
    (between(None, None), UP, True, "not measured"),
    (AROUND, UP, True, "no gain"),
    (DOWN, None, False, "no gain"),
    (between(0.0, 0.2), None, False, "no gain"),
    (UP, None, False, "teacher missing"),
    (UP, None, True, "not measured"),
    (UP, between(None, None), True, "not measured"),
    (UP, UP, True, "beyond"),
    (UP, DOWN, True, "explained"),
    (UP, between(-0.2, 0.0), True, "explained"),
    (UP, AROUND, True, "undecided"),
]


@pytest.mark.parametrize(("gain", "over_teacher", "has_teacher", "reading"), CASES)
def test_a_gain_is_read_by_its_intervals(
    gain: Difference | None, over_teacher: Difference | None, has_teacher: bool, reading: Reading
) -> None:
    assert read_gain(gain, over_teacher, has_teacher) == reading
    assert SAID[reading]


def test_scores_of_items_lead_to_a_reading() -> None:
    start = [0.0] * 30 + [1.0] * 10
    feedback = [1.0] * 12 + [0.0] * 18 + [1.0] * 10
    strong = [1.0] * 26 + [0.0] * 4 + [1.0] * 10
    items = range(40)
    gain, over = paired_difference(feedback, start, items), paired_difference(feedback, strong, items)
    assert read_gain(gain, over, True) == "explained"
    assert read_gain(gain, paired_difference(feedback, start, items), True) == "beyond"
    assert read_gain(gain, paired_difference(feedback, feedback[::-1], items), True) == "undecided"
