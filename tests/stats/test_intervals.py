"""Quantiles against scipy; rates and means against statsmodels; coverage by seeded simulation; the degenerate cases."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from statsmodels.api import OLS
from statsmodels.stats.proportion import proportion_confint

from app.stats.distributions import binomial_two_sided, normal_quantile, t_quantile, t_tail
from app.stats.intervals import mean_interval, rate_interval, rate_of


@pytest.mark.parametrize("df", [1, 2, 3, 9.5, 30, 95, 2_000, 1e6])
@pytest.mark.parametrize("p", [0.001, 0.025, 0.3, 0.5, 0.8, 0.975, 0.9999])
def test_t_quantile_is_scipys(df: float, p: float) -> None:
    assert t_quantile(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=1e-8, abs=1e-12)


def test_tails_are_scipys() -> None:
    for df in (1, 4, 60, 5_000):
        for t in (-40.0, -1.5, 0.0, 0.01, 2.0, 9.0):
            assert t_tail(t, df) == pytest.approx(2 * scipy.stats.t.sf(abs(t), df), rel=1e-9)
    assert normal_quantile(0.975) == pytest.approx(scipy.stats.norm.ppf(0.975))
    for k, n in ((0, 0), (3, 10), (5, 10), (0, 7), (400, 1_000)):
        expected = scipy.stats.binomtest(k, n).pvalue if n else 1.0
        assert binomial_two_sided(k, n) == pytest.approx(expected)


@pytest.mark.parametrize("call", [lambda: t_quantile(1, 3), lambda: normal_quantile(0), lambda: t_tail(1, 0)])
def test_impossible_probabilities_are_refused(call) -> None:
    with pytest.raises(ValueError):
        call()


def test_a_rate_without_clusters_is_wilson_once_prompts_are_many() -> None:
    found = rate_interval([1] * 1_400 + [0] * 600, [1] * 2_000)
    low, high = proportion_confint(1_400, 2_000, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("k", [2, 5, 96])
def test_no_rate_has_zero_width_and_samples_are_not_prompts(share: int, k: int) -> None:
    once = rate_interval([share] * k, [1] * k)
    often = rate_interval([share * 12] * k, [12] * k)
    assert once.low is not None and once.high is not None and once.high - once.low > 0.03
    assert (often.low, often.high) == pytest.approx(
        (once.low, once.high)
    )  # twelve samples of a prompt add nothing here
    assert (often.value, often.n, often.n_clusters) == (share, 12 * k, k)


def test_the_more_alike_the_samples_of_a_prompt_the_wider() -> None:
    alike = rate_interval([10] * 48 + [0] * 48, [10] * 96)
    mixed = rate_interval([5] * 96, [10] * 96)
    assert alike.high - alike.low > 2.5 * (mixed.high - mixed.low)  # type: ignore[operator]


def test_empty_prompts_are_left_out_and_impossible_counts_refused() -> None:
    assert rate_interval([1, 2, 0], [2, 2, 0]) == rate_interval([1, 2], [2, 2])
    assert rate_of([1, 0, 1, 1], ["a", "a", "b", "b"]) == rate_interval([1, 2], [2, 2])
    one = rate_interval([3], [4])
    assert (one.value, one.low, one.high) == (0.75, 0.0, 1.0)
    for successes, sizes in (([], []), ([0], [0]), ([3], [2]), ([-1], [2]), ([1, 2], [3]), ([math.nan], [1])):
        with pytest.raises(ValueError):
            rate_interval(successes, sizes)


@pytest.mark.parametrize(("rate", "icc"), [(0.5, 0.0), (0.9, 0.2), (0.98, 0.2), (0.9, 1.0)])
def test_rate_intervals_cover(rate: float, icc: float) -> None:
    random = np.random.default_rng(11)
    n_trials, k, m, covered = 400, 60, 12, 0
    for _ in range(n_trials):
        if icc in (0.0, 1.0):
            truth = np.full(k, rate) if icc == 0 else random.binomial(1, rate, k)
        else:
            truth = random.beta(rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc, k)
        found = rate_interval(random.binomial(m, truth), np.full(k, m))
        assert found.low is not None and found.high is not None
        covered += found.low <= rate <= found.high
    assert covered / n_trials >= 0.925  # 95 % less two standard errors of this simulation


def test_mean_interval_is_statsmodels_cluster_robust() -> None:
    random = np.random.default_rng(3)
    clusters = random.integers(0, 20, 150)
    values = random.normal(size=150) + random.normal(size=20)[clusters]
    fit = OLS(values, np.ones(150)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = mean_interval(values, clusters)
    assert found.value == pytest.approx(fit.params[0])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert (found.n, found.n_clusters) == (150, 20)


def test_where_nothing_varies_the_interval_says_what_n_allows() -> None:
    found = mean_interval([0.3] * 40, range(40), bounds=(-1, 1))
    share = scipy.stats.beta.ppf(0.975, 1, 40)  # Clopper-Pearson, 0 of 40
    assert (found.low, found.high) == pytest.approx((0.3 - 1.3 * share, 0.3 + 0.7 * share))
    unbounded = mean_interval([0.3] * 40, range(40))
    assert unbounded.value == pytest.approx(0.3) and unbounded.low is None and unbounded.high is None
    assert mean_interval([2.0, 4.0], ["one", "one"]).low is None
    assert mean_interval([0.2], ["one"], bounds=(0, 1)).high == 1


def test_a_mean_is_cut_to_its_bounds_and_refuses_what_lies_beyond() -> None:
    assert mean_interval([1, 1, 1, 0.2], range(4), bounds=(0, 1)).high == 1
    with pytest.raises(ValueError, match="outside"):
        mean_interval([1.2], [1], bounds=(0, 1))
    with pytest.raises(ValueError):
        mean_interval([1.0, 2.0], [1])
