"""Bootstrap over prompts of statistics that are functions of sums: the sums of each prompt are made once.

Source: Davison and Hinkley, Bootstrap Methods (1997), sec. 3.8, resampling clusters; Efron and Tibshirani, An
Introduction to the Bootstrap (1993), ch. 13, the percentile interval. A resample of prompts is a count of each, so its
sums are one product of matrices; agreement, kappa, alpha, Pearson's r and mean errors are all functions of such sums.
"""

from collections.abc import Callable

import numpy as np

from app.stats.intervals import Floats, Interval

BLOCK = 4_000_000  # counts drawn at once


def resample_sums(by_prompt: Floats, n_resamples: int, seed: int) -> Floats:
    """Sums over resampled prompts, shape (resamples, columns), of sums by prompt, shape (prompts, columns)."""
    k = len(by_prompt)
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // max(k, 1))
    parts = []
    for start in range(0, n_resamples, rows):
        counts = random.multinomial(k, np.full(k, 1 / k), size=min(rows, n_resamples - start))
        parts.append(counts.astype(np.float64) @ by_prompt)
    return np.concatenate(parts)


def interval_of_sums(
    by_prompt: Floats,
    statistic: Callable[[Floats], Floats],
    n: int,
    n_resamples: int = 1_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """A statistic of sums, shape (rows, columns) to (rows,), with its percentile interval over prompts; NaN: undefined.

    None where the statistic of everything is undefined. low and high are None with a single prompt, where over half of
    the resamples are undefined, and where all agree: that resampling saw no variation is no evidence of none.
    """
    k = len(by_prompt)
    if k == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(by_prompt.sum(axis=0)[None, :])[0])
        if not np.isfinite(value):
            return None
        if k < 2:
            return Interval(value, None, None, n, k)
        drawn = statistic(resample_sums(by_prompt, n_resamples, seed))
    known = drawn[np.isfinite(drawn)]
    if len(known) < n_resamples / 2 or np.ptp(known) < 1e-12:
        return Interval(value, None, None, n, k)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, k)
