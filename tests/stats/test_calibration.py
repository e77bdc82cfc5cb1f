"""Brier score and ECE by hand, and that only a judge that is not calibrated exceeds its null."""

import numpy as np
import pytest

from app.stats.calibration import brier_score, calibration_error, excess_brier, excess_calibration_error


def test_scores_by_hand():
    assert brier_score([0.9, 0.2, 0.5], [1, 1, 0]) == pytest.approx((0.01 + 0.64 + 0.25) / 3)
    # bins of confidence: 0.9 (right), 0.8 (wrong): gaps 0.1 and 0.8, each half of the items
    assert calibration_error([0.9, 0.2], [1, 1]) == pytest.approx((0.1 + 0.8) / 2)
    # four items of confidence 0.75 in one bin, three right: no error
    assert calibration_error([0.75, 0.25, 0.75, 0.75], [1, 0, 0, 1]) == pytest.approx(0)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0


def test_which_side_is_a_makes_no_difference():
    random = np.random.default_rng(3)
    p = random.random(60)
    y = (random.random(60) < 0.5).astype(float)
    assert calibration_error(p, y) == pytest.approx(calibration_error(1 - p, 1 - y))
    assert brier_score(p, y) == pytest.approx(brier_score(1 - p, 1 - y))


def test_a_calibrated_judge_exceeds_its_null_as_often_as_it_should():
    random = np.random.default_rng(7)
    n_above = np.zeros(2)
    for repeat in range(200):
        p = random.random(50)
        y = (random.random(50) < p).astype(float)
        found = excess_brier(p, y, n_draws=200, seed=repeat), excess_calibration_error(p, y, n_draws=200, seed=repeat)
        n_above += [one.p <= 0.05 for one in found]
    assert np.all(n_above / 200 < 0.1)  # 0.05 expected
    # and yet the plain ECE is far from 0: that is what the null takes off
    assert found[1].score > 0.04 and abs(found[1].value) < found[1].score


def test_an_overconfident_judge_is_found():
    random = np.random.default_rng(1)
    p = np.where(random.random(200) < 0.5, 0.98, 0.02)
    y = (random.random(200) < np.where(p > 0.5, 0.7, 0.3)).astype(float)
    for found in (excess_brier(p, y), excess_calibration_error(p, y)):
        assert found.low > 0.1 and found.p < 0.01 and found.low < found.value < found.high
    assert excess_brier(p, y) == excess_brier(p, y)  # the same numbers give the same figure


def test_brier_null_is_p_times_one_minus_p():
    p = np.linspace(0.05, 0.95, 30)
    found = excess_brier(p, np.ones(30), n_draws=4000)
    assert found.null_mean == pytest.approx(float(np.mean(p * (1 - p))), abs=0.002)


@pytest.mark.parametrize(("p", "y"), [([], []), ([0.5], [2]), ([1.2], [1]), ([0.5, 0.5], [1])])
def test_nonsense_is_refused(p, y):
    with pytest.raises(ValueError):
        brier_score(p, y)
