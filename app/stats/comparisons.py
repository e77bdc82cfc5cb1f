"""Comparisons of arms on the same items: paired differences, randomisation and sign tests, win rates, Holm.

Sources: Miller, arXiv:2411.00640 (2024), paired differences clustered by prompt; Fisher 1935 and Phipson and Smyth,
Stat. Appl. Genet. Mol. Biol. 9 (2010), sign-flip tests whose p is never 0; McNemar, Psychometrika 12 (1947); Holm,
Scand. J. Statistics 6 (1979); Newcombe, Statistics in Medicine 17 (1998), rates on different items.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from app.stats.distributions import binomial_two_sided, t_quantile, t_tail
from app.stats.intervals import (
    Floats,
    Interval,
    as_floats,
    as_pair,
    cluster_codes,
    clustered_error,
    mean_interval,
    rounding_error,
    sums_by_cluster,
    wilson,
)

EXACT_UP_TO = 14  # clusters: 2^14 sign patterns are counted rather than drawn


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b on the same items, its interval, and a two-sided p against no difference."""

    value: float
    low: float | None
    high: float | None
    p: float
    n: int
    n_clusters: int
    mean_a: float
    mean_b: float


def paired_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    clusters: ArrayLike,
    level: float = 0.95,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
) -> Difference:
    """The mean difference a - b, paired by item and clustered by prompt.

    Parameters
    ----------
    values_a, values_b : shape (items,)
        Scores of the same items by two arms, in one unit.
    clusters : shape (items,), the prompt of each item.
    bounds : the smallest and largest difference possible; the default fits scores in 0..1. None for unbounded scores.

    Notes
    -----
    Interval and p come from the cluster-robust t with (prompts - 1) degrees of freedom. Where the prompts' differences
    are all equal, that is no evidence of certainty: the interval is `mean_interval`'s for "nothing varied" (None
    without bounds), and p is the sign-flip p: 1 for no difference at all, 2 / 2^prompts (drawn beyond 14 prompts: at
    least 1e-4) for one that is constant.

    Raises ValueError for no items, lengths that differ, or differences out of bounds.
    """
    a, b = as_pair(values_a, values_b)
    differences = a - b
    found = mean_interval(differences, clusters, level, bounds)
    codes, k = cluster_codes(clusters)
    error = clustered_error(differences, codes, k)
    if k > 1 and error > rounding_error(differences):
        p = t_tail(found.value / error, k - 1)
    else:
        p = sign_flip_test(differences, clusters)
    return Difference(found.value, found.low, found.high, p, found.n, k, float(a.mean()), float(b.mean()))


def sign_flip_test(differences: ArrayLike, clusters: ArrayLike, n_flips: int = 9_999, seed: int = 0) -> float:
    """Two-sided randomisation p of mean difference 0, flipping the sign of whole prompts.

    `differences` and `clusters` have shape (items,). Exact up to 14 prompts that differ, else `n_flips` seeded
    draws with p = (1 + as extreme) / (1 + draws). Prompts whose differences sum to 0 cannot speak and are left out.
    """
    codes, k = cluster_codes(clusters)
    numbers = as_floats(differences)
    if numbers.shape != codes.shape or k == 0:
        raise ValueError("differences and clusters must have the same length, one or more")
    sums = sums_by_cluster(numbers, codes, k)
    sums = sums[np.abs(sums) > rounding_error(numbers)]
    if len(sums) == 0:
        return 1.0
    seen = abs(float(sums.sum())) * (1 - 1e-12)
    if len(sums) <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= seen).mean())
    random = np.random.default_rng(seed)
    n_extreme = 0
    for start in range(0, n_flips, 1_000):  # in blocks: a million prompts would not fit otherwise
        n_rows = min(1_000, n_flips - start)
        flips = random.integers(0, 2, size=(n_rows, len(sums)), dtype=np.int8)
        n_extreme += int((np.abs((2.0 * flips - 1.0) @ sums) >= seen).sum())
    return (1 + n_extreme) / (1 + n_flips)


def mcnemar(n_only_a: int, n_only_b: int) -> float:
    """Exact two-sided p of McNemar's test: items only a got right against items only b got right, one item a prompt."""
    return binomial_two_sided(n_only_a, n_only_a + n_only_b)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given, each at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    if np.any((p < 0) | (p > 1)) or not np.isfinite(p).all():
        raise ValueError("p-values must lie in 0..1")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return [float(x) for x in adjusted]


@dataclass(frozen=True)
class WinRate:
    """How often a beats b, one unit a prompt; ties count one half. p: sign flips of prompts against one half."""

    value: float
    low: float
    high: float
    p: float
    n: int  # grades
    n_clusters: int  # prompts
    n_wins: int  # prompts whose graders lean to a, and so on
    n_ties: int
    n_losses: int


def win_rate(outcomes: ArrayLike, clusters: ArrayLike, level: float = 0.95, seed: int = 0) -> WinRate:
    """The win rate of arm a over prompts; several graders of one prompt are averaged first.

    Parameters
    ----------
    outcomes : shape (grades,): 1 a wins, 0 b wins, 0.5 tie or both bad.
    clusters : shape (grades,): the prompt.

    Notes
    -----
    Wilson's interval at the effective size that the spread of the prompts' means gives (ties and several graders shrink
    it, Franco et al. 2019), with the t quantile. The design effect is averaged with 1, which counts as one decided
    prompt, so that a row of ties is not taken for certainty. A single prompt gives [0, 1].
    Raises ValueError for no grades or outcomes outside of 0..1.
    """
    numbers = as_floats(outcomes)
    codes, k = cluster_codes(clusters)
    if len(numbers) == 0 or numbers.shape != codes.shape:
        raise ValueError("outcomes and clusters must have the same length, one or more")
    if numbers.min() < 0 or numbers.max() > 1:
        raise ValueError("an outcome is 1, 0 or between (a tie is 0.5)")
    means: Floats = sums_by_cluster(numbers, codes, k) / np.bincount(codes, minlength=k)
    rate = float(means.mean())
    leaning = np.sign(np.round(means - 0.5, 12))
    counts = [int((leaning == side).sum()) for side in (1, 0, -1)]
    p = sign_flip_test(means - 0.5, np.arange(k), seed=seed)
    low, high = 0.0, 1.0
    if k > 1:
        n_decided = counts[0] + counts[2]
        spread = float(means.var(ddof=1)) / (rate * (1 - rate)) if 0 < rate < 1 else 1.0
        effect = (n_decided * spread + 1) / (n_decided + 1)
        low, high = wilson(rate, k / effect, t_quantile(0.5 + level / 2, k - 1))
    return WinRate(rate, low, high, p, len(numbers), k, counts[0], counts[1], counts[2])


def rate_difference(a: Interval, b: Interval) -> tuple[float, float, float]:
    """a - b of two rates on *different* items: value, low, high (Newcombe, method 10)."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        raise ValueError("both rates need an interval")
    value = a.value - b.value
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = value + float(np.hypot(a.high - a.value, b.value - b.low))
    return value, low, high
