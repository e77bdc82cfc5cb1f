"""Agreement of two raters' scores: Pearson, Spearman, mean absolute and root mean square error, over prompts.

Sources: Pearson, Proc. Royal Society 58 (1895); Spearman, Am. J. Psychology 15 (1904), with mean ranks for ties;
Willmott and Matsuura, Climate Research 30 (2005), MAE beside RMSE. Intervals by bootstrap over prompts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from app.stats.agreement import Codes, bootstrap_interval
from app.stats.intervals import Floats, Interval, as_pair, cluster_codes, sums_by_cluster
from app.stats.resampling import interval_of_sums


@dataclass(frozen=True)
class ScoreAgreement:
    """How near two raters' numbers are. A correlation is None where one of them never varies."""

    pearson: Interval | None
    spearman: Interval | None
    mae: Interval | None
    rmse: Interval | None
    n: int


def score_agreement(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, n_resamples: int = 1_000) -> ScoreAgreement:
    """Two raters' scores of the same items, shape (items,), with the prompt of each. Errors are in the scores' unit."""
    x, y = as_pair(a, b)
    n = len(x)
    if n == 0:
        return ScoreAgreement(None, None, None, None, 0)
    codes, k = cluster_codes(clusters)
    centred = x - x.mean(), y - y.mean()  # sums of squares of large numbers would lose their digits
    columns = [
        np.ones(n),
        *centred,
        centred[0] ** 2,
        centred[1] ** 2,
        centred[0] * centred[1],
        abs(x - y),
        (x - y) ** 2,
    ]
    by_prompt = np.stack([sums_by_cluster(column, codes, k) for column in columns], axis=1)

    def spearman(items: Codes) -> float | None:
        return _correlation(mean_ranks(x[items]), mean_ranks(y[items]))

    return ScoreAgreement(
        interval_of_sums(by_prompt, _pearson, n, n_resamples),
        bootstrap_interval(spearman, clusters, n_resamples),
        interval_of_sums(by_prompt, lambda s: s[:, 6] / s[:, 0], n, n_resamples),
        interval_of_sums(by_prompt, lambda s: np.sqrt(s[:, 7] / s[:, 0]), n, n_resamples),
        n,
    )


def mean_ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)


def _pearson(s: Floats) -> Floats:
    n, x, y, xx, yy, xy = (s[:, i] for i in range(6))
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    is_flat = (spread_x <= 1e-12 * np.maximum(xx, 1e-300)) | (spread_y <= 1e-12 * np.maximum(yy, 1e-300))
    return np.where(is_flat, np.nan, (xy - x * y / n) / np.sqrt(np.maximum(spread_x * spread_y, 1e-300)))


def _correlation(x: Floats, y: Floats) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None
