"""Calibration of a judge's probabilities: Brier score and ECE, as excess over what a calibrated judge would show.

Sources: Brier, Monthly Weather Review 78 (1950); Naeini, Cooper and Hauskrecht, AAAI 2015, and Guo et al.,
arXiv:1706.04599 (2017), expected calibration error; Broecker and Smith, Weather and Forecasting 22 (2007), consistency
resampling: with few items even a calibrated judge shows an error, so what it would show is drawn from its own
probabilities; Vaicenavicius et al., arXiv:1902.06977 (2019), the same as a test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.intervals import Floats, as_pair

BINS = 10
BLOCK = 500_000  # numbers drawn at once


@dataclass(frozen=True)
class Excess:
    """A score, what a calibrated judge with the same probabilities shows on average, and the difference.

    low and high are the score less the null's 97.5 % and 2.5 % quantiles: 0 lies between them as long as the score is
    one that a calibrated judge might well show. p is one-sided: the share of nulls at least as large, never 0.
    """

    score: float
    null_mean: float
    value: float  # score - null_mean
    low: float
    high: float
    p: float
    n: int


def brier_score(p: ArrayLike, y: ArrayLike) -> float:
    """Mean of (p - y)^2 for probabilities p of an event and y in {0, 1}, shape (items,)."""
    probabilities, happened = _checked(p, y)
    return float(np.mean((probabilities - happened) ** 2))


def calibration_error(p: ArrayLike, y: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error of a choice between two: |mean confidence - share right| over bins of confidence.

    `p` is the probability of one of two sides, shape (items,), y whether it was that side. Confidence is that of the
    side chosen, max(p, 1 - p), so which side is called a makes no difference; bins of equal width over 0.5..1.
    """
    probabilities, happened = _checked(p, y)
    return float(_errors(probabilities, happened[None, :], bins)[0])


def excess_brier(p: ArrayLike, y: ArrayLike, *, n_draws: int = 2_000, seed: int = 0) -> Excess:
    """The Brier score against its distribution under y ~ Bernoulli(p)."""
    return _excess(p, y, lambda a, b: np.mean((a - b) ** 2, axis=1), n_draws, seed)


def excess_calibration_error(
    p: ArrayLike, y: ArrayLike, *, bins: int = BINS, n_draws: int = 2_000, seed: int = 0
) -> Excess:
    """The ECE against its distribution under y ~ Bernoulli(p), which is not 0: with few items bins err by chance."""
    return _excess(p, y, lambda a, b: _errors(a, b, bins), n_draws, seed)


def _excess(p: ArrayLike, y: ArrayLike, score: Callable[[Floats, Floats], Floats], n_draws: int, seed: int) -> Excess:
    probabilities, happened = _checked(p, y)
    seen = float(score(probabilities, happened[None, :])[0])
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(probabilities))
    parts: list[Floats] = []
    for start in range(0, n_draws, rows):
        shape = (min(rows, n_draws - start), len(probabilities))
        parts.append(score(probabilities, (random.random(shape) < probabilities).astype(np.float64)))
    null = np.concatenate(parts)
    low, high = (float(value) for value in np.quantile(null, [0.025, 0.975]))
    mean = float(null.mean())
    n_larger = int((null >= seen - 1e-12).sum())
    return Excess(seen, mean, seen - mean, seen - high, seen - low, (1 + n_larger) / (1 + n_draws), len(probabilities))


def _errors(p: Floats, y: NDArray[np.float64], bins: int) -> Floats:
    """ECE of each row of y, shape (rows, items), for the same p, shape (items,)."""
    is_a = p >= 0.5
    confidence = np.where(is_a, p, 1 - p)
    right = np.where(is_a, y, 1 - y)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.intp), bins - 1)
    gaps = np.zeros(len(y))
    for one in np.unique(place):
        inside = place == one
        gaps += np.abs(confidence[inside].sum() - right[:, inside].sum(axis=1))
    return gaps / len(p)


def _checked(p: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Raises ValueError for no items, lengths that differ, p beyond 0..1, or y other than 0 and 1."""
    probabilities, happened = as_pair(p, y)
    if len(probabilities) == 0:
        raise ValueError("no items: nothing to be calibrated on")
    if np.any((probabilities < 0) | (probabilities > 1)) or np.any((happened != 0) & (happened != 1)):
        raise ValueError("probabilities lie in 0..1, and what happened is 0 or 1")
    return probabilities, happened
