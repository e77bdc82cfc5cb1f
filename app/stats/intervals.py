"""Intervals of rates and means, clustered by prompt: several samples of one prompt are not several prompts.

Sources: E. B. Wilson, JASA 22 (1927); Korn and Graubard, Survey Methodology 24 (1998), effective sample size and the t
quantile for a rate; Franco, Little, Louis and Slud, J. Survey Statistics and Methodology 7 (2019), Wilson's interval
with that size; Miller, "Adding error bars to evals", arXiv:2411.00640 (2024), clustering by prompt; Clopper and
Pearson, Biometrika 26 (1934), the bound where nothing varied.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.distributions import t_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval. low and high are None where the data allow no interval at all."""

    value: float
    low: float | None
    high: float | None
    n: int  # items: completions, answers, pairs
    n_clusters: int  # prompts


def rate_interval(successes_by_cluster: ArrayLike, n_by_cluster: ArrayLike, level: float = 0.95) -> Interval:
    """A rate over all items, with Wilson's interval at the effective sample size, clustered; never of zero width.

    Parameters
    ----------
    successes_by_cluster, n_by_cluster : shape (clusters,)
        Successes (fractions allowed, as a tie counted one half) and items of each prompt; prompts without items are
        left out.
    level : confidence level.

    Notes
    -----
    The design effect is that of the ratio estimator, held at 1 or more (Korn and Graubard). Where few prompts show the
    rarer outcome, the data cannot tell whether it comes in whole prompts: so the effect is averaged with its largest
    possible value (each prompt all or nothing), which counts as much as one such prompt. At 0 % and 100 % that leaves
    the number of prompts as the effective size. The normal quantile is replaced by t with (prompts - 1) degrees of
    freedom. With a single prompt nothing is known of others: the interval is [0, 1].

    Raises ValueError for no items, for shapes that differ, or for successes beyond 0..n.
    """
    successes, sizes = as_pair(successes_by_cluster, n_by_cluster)
    if np.any(sizes < 0) or np.any(successes < 0) or np.any(successes > sizes):
        raise ValueError("each cluster needs 0 <= successes <= n")
    kept = sizes > 0
    successes, sizes = successes[kept], sizes[kept]
    n, k = float(sizes.sum()), len(sizes)
    if k == 0:
        raise ValueError("no items: a rate of nothing has no interval")
    rate = float(successes.sum() / n)
    if k == 1:
        return Interval(rate, 0.0, 1.0, round(n), 1)
    largest = float((sizes**2).sum() / n)
    n_informative = int(min((successes > 0).sum(), (successes < sizes).sum()))
    estimated = largest
    if 0 < rate < 1:
        variance = k / (k - 1) * float(((successes - rate * sizes) ** 2).sum()) / n**2
        estimated = max(1.0, variance / (rate * (1 - rate) / n))
    effect = (n_informative * estimated + largest) / (n_informative + 1)
    low, high = wilson(rate, n / effect, t_quantile(0.5 + level / 2, k - 1))
    return Interval(rate, low, high, round(n), k)


def rate_of(values: ArrayLike, clusters: ArrayLike, level: float = 0.95) -> Interval:
    """`rate_interval` of item values in 0..1 (shape (items,)) with the prompt of each item (shape (items,))."""
    codes, k = cluster_codes(clusters)
    return rate_interval(sums_by_cluster(as_floats(values), codes, k), np.bincount(codes, minlength=k), level)


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, level: float = 0.95, bounds: tuple[float, float] | None = None
) -> Interval:
    """The mean of item values with a t interval from the cluster-robust variance (CR1), prompts - 1 degrees of freedom.

    Parameters
    ----------
    values, clusters : shape (items,)
        Values in any unit, and the prompt of each.
    bounds : the smallest and largest value possible, where there are such; the interval is cut to them.

    Notes
    -----
    Where nothing varies between prompts, resampling theory would give zero width. With bounds, the interval is instead
    what seeing no deviation in k prompts allows: at most a share q = 1 - (alpha/2)^(1/k) of prompts deviates (Clopper
    and Pearson), by at most the way to the bound. Without bounds low and high are None. So too for a single prompt.

    Raises ValueError for no values, shapes that differ, or values that are not finite or out of bounds.
    """
    numbers = as_floats(values)
    codes, k = cluster_codes(clusters)
    if len(numbers) == 0 or numbers.shape != codes.shape:
        raise ValueError("values and clusters must have the same length, one or more")
    if bounds and (numbers.min() < bounds[0] or numbers.max() > bounds[1]):
        raise ValueError(f"a value lies outside of {bounds}")
    n, mean = len(numbers), float(numbers.mean())
    error = clustered_error(numbers, codes, k)
    if k > 1 and error > rounding_error(numbers):
        half = t_quantile(0.5 + level / 2, k - 1) * error
        low, high = mean - half, mean + half
        if bounds:
            low, high = max(low, bounds[0]), min(high, bounds[1])
        return Interval(mean, low, high, n, k)
    if bounds is None:
        return Interval(mean, None, None, n, k)
    share = unseen_share(k, level) if k > 1 else 1.0
    return Interval(mean, mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean), n, k)


def unseen_share(k: int, level: float = 0.95) -> float:
    """The largest share of prompts that may deviate when none of `k` did: Clopper and Pearson's bound of 0 of k."""
    return 1.0 - float(((1 - level) / 2) ** (1 / k))


def clustered_error(values: Floats, codes: NDArray[np.intp], k: int) -> float:
    """Cluster-robust standard error of the mean (CR1: k/(k-1)), in the values' unit; 0 for a single cluster."""
    if k < 2:
        return 0.0
    sums = sums_by_cluster(values - values.mean(), codes, k)
    return float(np.sqrt(k / (k - 1) * (sums**2).sum()) / len(values))


def cluster_codes(clusters: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """Clusters of any kind (ids, names) as codes 0..k-1, shape (items,), and k."""
    array = np.asarray(clusters)
    if array.ndim != 1:
        raise ValueError("clusters must be a flat list, one entry an item")
    names, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.intp), len(names)


def wilson(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval for a rate at (effective) size n; exactly 0 or 1 at the end the rate stands at."""
    q2 = quantile**2
    centre = (rate + q2 / (2 * n)) / (1 + q2 / n)
    half = quantile / (1 + q2 / n) * float(np.sqrt(rate * (1 - rate) / n + q2 / (4 * n**2)))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return low, high


def sums_by_cluster(values: Floats, codes: NDArray[np.intp], k: int) -> Floats:
    """Sums of item values, shape (items,), by cluster, shape (k,)."""
    return np.asarray(np.bincount(codes, weights=values, minlength=k), dtype=np.float64)


def rounding_error(values: Floats) -> float:
    """Below this a standard error is the rounding of equal numbers, not variation."""
    return 1e-12 * max(1.0, float(np.abs(values).max()))


def as_floats(values: ArrayLike) -> Floats:
    """A flat array of finite numbers; raises ValueError for anything else."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("a flat list of finite numbers is needed")
    return array


def as_pair(one: ArrayLike, other: ArrayLike) -> tuple[Floats, Floats]:
    """Two flat arrays of finite numbers of one length; raises ValueError for anything else."""
    a, b = as_floats(one), as_floats(other)
    if a.shape != b.shape:
        raise ValueError(f"lengths differ: {len(a)} and {len(b)}")
    return a, b
