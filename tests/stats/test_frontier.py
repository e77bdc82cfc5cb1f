"""Arms at matched KL: interpolation and overlap against hand-worked numbers."""

import numpy as np
import pytest

from app.stats.frontier import Stop, match, quality_at


def stop(kl: float, *quality: float) -> Stop:
    return Stop(kl, np.array(quality))


PATH = [stop(6.0, 1.0, 0.5), stop(2.0, 0.2, 0.1)]  # in any order


@pytest.mark.parametrize(
    ("kl", "quality"),
    [(2.0, [0.2, 0.1]), (6.0, [1.0, 0.5]), (3.0, [0.4, 0.2]), (5.0, [0.8, 0.4])],  # a quarter, three quarters
)
def test_quality_lies_on_the_line_between_two_stops(kl: float, quality: list[float]) -> None:
    assert quality_at(PATH, kl) == pytest.approx(quality)


@pytest.mark.parametrize("kl", [1.99, 6.01])
def test_nothing_is_extrapolated(kl: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        quality_at(PATH, kl)


def test_two_paths_are_compared_in_the_middle_of_what_both_cover_prompt_by_prompt() -> None:
    other = [stop(4.0, 0.5, 0.2), stop(8.0, 0.9, 0.6)]
    found = match(PATH, other)
    assert (found.low, found.high, found.kl) == (4.0, 6.0, 5.0)
    # at 5: ours (0.8, 0.4), theirs (0.6, 0.3); differences 0.2 and 0.1
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.15)
    # t with 1 degree of freedom, 12.706, times the standard error 0.05
    assert found.difference.low == pytest.approx(0.15 - 12.706 * 0.05, abs=1e-3)


def test_paths_that_do_not_meet_are_not_compared() -> None:
    found = match(PATH, [stop(6.5, 1.0, 1.0), stop(9.0, 1.0, 1.0)])
    assert found.kl is None and found.difference is None and (found.low, found.high) == (6.5, 6.0)


def test_a_single_stop_is_compared_where_the_other_path_passes_it() -> None:
    found = match([stop(4.0, 1.0, 1.0, 1.0)], [stop(2.0, 0.0, 0.2, 0.1), stop(6.0, 0.4, 0.2, 0.3)])
    assert found.kl == 4.0 and found.difference is not None
    assert found.difference.value == pytest.approx(1 - 0.2)
    alone = match([stop(4.0, 1.0)], [stop(5.0, 0.0)])
    assert alone.kl is None
