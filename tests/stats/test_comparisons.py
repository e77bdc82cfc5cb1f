"""Paired differences, sign flips, win rates, Holm and power against scipy, statsmodels and simulation."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import confint_proportions_2indep

from app.stats.comparisons import holm, mcnemar, paired_difference, rate_difference, sign_flip_test, win_rate
from app.stats.intervals import Interval
from app.stats.power import detectable_difference, detectable_win_rate, paired_rate_sd, prompts_needed


def test_one_item_a_prompt_is_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.random(50), random.random(50)
    expected = scipy.stats.ttest_rel(a, b)
    found = paired_difference(a, b, range(50))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.mean_a - found.mean_b == pytest.approx(found.value) and (found.n, found.n_clusters) == (50, 50)


def test_repeating_every_item_adds_no_certainty() -> None:
    random = np.random.default_rng(1)
    a, b = random.random(30), random.random(30)
    once = paired_difference(a, b, np.arange(30))
    often = paired_difference(np.tile(a, 9), np.tile(b, 9), np.tile(np.arange(30), 9))
    assert (often.low, often.high, often.p) == pytest.approx((once.low, once.high, once.p))


def test_equal_differences_are_not_certainty() -> None:
    same = paired_difference([1, 0, 1, 1], [1, 0, 1, 1], range(4))
    assert (same.value, same.p) == (0, 1)
    assert same.low is not None and same.high is not None and same.low < -0.3 and same.high > 0.3
    constant = paired_difference([0.6] * 6, [0.5] * 6, range(6))
    assert constant.p == pytest.approx(2 / 2**6)
    assert constant.low is not None and constant.low < 0.1 < (constant.high or 0)
    unbounded = paired_difference([7.0] * 6, [5.0] * 6, range(6), bounds=None)
    assert (unbounded.low, unbounded.high, unbounded.value) == (None, None, 2)
    with pytest.raises(ValueError, match="outside"):
        paired_difference([7.0], [5.0], [1])
    with pytest.raises(ValueError, match="lengths"):
        paired_difference([1.0, 0.0], [1.0], [1, 2])


def test_paired_differences_cover_and_keep_their_level() -> None:
    random = np.random.default_rng(5)
    n_trials, covered, rejected = 400, 0, 0
    for _ in range(n_trials):
        truth = random.beta(2, 2, 40)  # prompts differ in difficulty; both arms are equally good
        a, b = random.binomial(1, np.repeat(truth, 4)), random.binomial(1, np.repeat(truth, 4))
        found = paired_difference(a, b, np.repeat(np.arange(40), 4))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert covered / n_trials >= 0.925 and rejected / n_trials <= 0.075


def test_sign_flips_are_scipys_permutation_test() -> None:
    differences = np.array([0.4, 0.1, -0.2, 0.5, 0.3, 0.25, -0.05, 0.6])
    expected = scipy.stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(differences, range(8)) == pytest.approx(expected.pvalue)
    # the same differences, told as two items a prompt
    assert sign_flip_test(np.repeat(differences / 2, 2), np.repeat(np.arange(8), 2)) == pytest.approx(expected.pvalue)
    many = np.random.default_rng(2).normal(0.3, 1, 60)
    drawn = sign_flip_test(many, range(60))
    assert drawn == sign_flip_test(many, range(60))  # seeded
    assert drawn == pytest.approx(scipy.stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flip_test(np.ones(60), range(60)) == pytest.approx(1e-4)  # never 0


def test_mcnemar_and_holm_are_statsmodels() -> None:
    for b, c in ((3, 12), (0, 6), (5, 5), (40, 61)):
        assert mcnemar(b, c) == pytest.approx(statsmodels_mcnemar([[9, b], [c, 9]], exact=True).pvalue)
    p = [0.01, 0.04, 0.03, 0.005, 0.8]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert holm([]) == []
    with pytest.raises(ValueError):
        holm([0.2, 1.3])


def test_win_rate_takes_one_unit_a_prompt() -> None:
    found = win_rate([1, 1, 1, 0, 0.5, 0.5, 0], ["p", "p", "p", "q", "r", "r", "s"])
    assert (found.value, found.n, found.n_clusters) == (0.375, 7, 4)
    assert (found.n_wins, found.n_ties, found.n_losses) == (1, 1, 2)
    all_won = win_rate([1] * 10, range(10))
    assert all_won.high == 1 and 0.6 < all_won.low < 0.75 and all_won.p == pytest.approx(2 / 2**10)
    all_tied = win_rate([0.5] * 60, range(60))
    assert all_tied.high - all_tied.low > 0.2 and all_tied.p == 1
    half_tied = win_rate([0.5] * 30 + [1, 0] * 15, range(60))
    assert half_tied.high - half_tied.low < all_tied.high - all_tied.low  # ties that are seen do narrow it
    with pytest.raises(ValueError):
        win_rate([2], [1])


def test_win_rate_covers() -> None:
    random = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        outcomes = np.where(random.random(40) < 0.3, 0.5, random.binomial(1, 0.7, 40))
        found = win_rate(outcomes, range(40))
        covered += found.low <= 0.64 <= found.high
    assert covered / 300 >= 0.92


def test_rates_on_different_items_are_newcombes() -> None:
    low, high = confint_proportions_2indep(56, 70, 48, 80, method="newcomb")
    ends = [scipy.stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))]
    a, b = (Interval(k / n, e.low, e.high, n, n) for (k, n), e in zip(((56, 70), (48, 80)), ends, strict=True))
    assert rate_difference(a, b) == pytest.approx((0.2, low, high))


@pytest.mark.parametrize("n", [20, 60, 300])
def test_what_n_can_show_is_the_power_of_the_t_test(n: int) -> None:
    assert detectable_difference(n, 0.4) == pytest.approx(
        0.4 * TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8), rel=0.02
    )
    needed = prompts_needed(detectable_difference(n, 0.4), 0.4)
    assert abs(needed - n) <= 1


def test_what_n_can_show_of_win_rates() -> None:
    assert detectable_win_rate(60) == pytest.approx(0.684, abs=0.005)
    assert detectable_win_rate(60, tie_rate=0.5) < detectable_win_rate(60)
    assert detectable_win_rate(1) == detectable_win_rate(3) == 1
    random = np.random.default_rng(4)
    found = [win_rate(random.binomial(1, detectable_win_rate(60), 60), range(60)).low > 0.5 for _ in range(300)]
    assert 0.72 <= np.mean(found) <= 0.9
    pairs = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 200_000) > 0
    seen = pairs.astype(float)
    correlation = np.corrcoef(seen.T)[0, 1]
    assert paired_rate_sd(0.5, 0.5, correlation) == pytest.approx((seen[:, 0] - seen[:, 1]).std(), rel=0.01)
    with pytest.raises(ValueError):
        prompts_needed(0, 1)
