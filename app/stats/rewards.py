"""Quality of scores that order pairs: ranking accuracy, Brier score, calibration error; and bins for their histograms.

Sources: Brier, Monthly Weather Review 78 (1950); Naeini, Cooper and Hauskrecht, AAAI (2015), and Guo et al., ICML
(2017), expected calibration error; Lambert et al., RewardBench, arXiv:2403.13787 (2024), accuracy as the
share ranked rightly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.intervals import Interval, as_floats, as_pair, rate_of


def ranking_accuracy(chosen: ArrayLike, rejected: ArrayLike, clusters: ArrayLike) -> Interval:
    """The share of pairs whose chosen side scores higher (equal scores: one half), by prompt; all shape (pairs,)."""
    a, b = as_pair(chosen, rejected)
    return rate_of(np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0)), clusters)


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared distance of probabilities from outcomes (0, 1, or 0.5 for a tie), shape (items,); 0 is best."""
    p, y = _probabilities(probabilities, outcomes)
    return float(((p - y) ** 2).mean())


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, n_bins: int = 10) -> float:
    """Mean gap of a bin's probability and its outcomes over equal-width bins, weighted by items; 0 is best.

    Biased upward for few items: 10 bins of a perfectly calibrated judge with 100 items give about 0.1.
    """
    p, y = _probabilities(probabilities, outcomes)
    bins = np.minimum((p * n_bins).astype(int), n_bins - 1)
    gaps = np.abs(np.bincount(bins, weights=p - y, minlength=n_bins))
    return float(gaps.sum() / len(p))


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: values in [low, high), the last bin closed."""

    low: float
    high: float
    count: int


def shared_bins(series: Mapping[str, ArrayLike], n_bins: int = 20) -> dict[str, list[Bin]]:
    """Histograms of several series (arm's name → values) over one set of equal bins, so that they compare by eye.

    A series without values has all counts 0; no values at all give empty lists.
    """
    values = {name: as_floats(numbers) for name, numbers in series.items()}
    together = np.concatenate(list(values.values())) if values else np.array([])
    if len(together) == 0:
        return {name: [] for name in values}
    edges = np.histogram_bin_edges(together, bins=n_bins)
    return {
        name: [
            Bin(float(low), float(high), int(count))
            for low, high, count in zip(edges[:-1], edges[1:], np.histogram(numbers, edges)[0], strict=True)
        ]
        for name, numbers in values.items()
    }


def _probabilities(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = as_pair(probabilities, outcomes)
    if len(p) == 0 or min(p.min(), y.min()) < 0 or max(p.max(), y.max()) > 1:
        raise ValueError("probabilities and outcomes must lie in 0..1, one item or more")
    return p, y


@dataclass(frozen=True)
class Reliability:
    """One bin of a reliability diagram: items whose confidence lies in [low, high), and the share that were right."""

    low: float
    high: float
    n: int
    confidence: float  # mean
    right: float


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, n_bins: int = 5) -> list[Reliability]:
    """Confidence of the side that is favoured, max(p, 1 - p), against how often it was right; bins of equal width
    over 0.5..1, empty ones left out. `outcomes` in {0, 1}, both shape (items,). Guo et al. 2017, figure 1."""
    p, y = _probabilities(probabilities, outcomes)
    confidence, right = np.maximum(p, 1 - p), np.where(p >= 0.5, y, 1 - y)
    place = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    found = []
    for one in np.unique(place):
        inside = place == one
        edges = 0.5 + np.array([one, one + 1]) / (2 * n_bins)
        found.append(Reliability(float(edges[0]), float(edges[1]), int(inside.sum()),
                                 float(confidence[inside].mean()), float(right[inside].mean())))  # fmt: skip
    return found
