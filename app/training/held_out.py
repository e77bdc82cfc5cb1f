"""What is kept of a reward model when its training ends: agreement with the labels, calibration, score distributions.

All on dev rows, which training never reads. Calibration: under Bradley and Terry (1952) σ(r_a − r_b) is the probability
that a is preferred, so it can be held against the labels; Brier score and ECE stand beside what a calibrated model with
the same probabilities would show (app/stats/calibration.py). A model that only learned that longer is better shows as
one: the rule “prefer the longer” (or the shorter, whichever the training rows favour) is scored on the same rows, and
the difference is taken row by row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.calibration import excess_brier, excess_calibration_error
from app.stats.intervals import as_floats, mean_interval, rate_of
from app.stats.rewards import ranking_accuracy, reliability, shared_bins


@dataclass(frozen=True)
class Scored:
    """Dev rows as the reward model scores them, shape (rows,) each; lengths in characters."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    n_chosen: Sequence[int]
    n_rejected: Sequence[int]
    prompts: Sequence[str]


@dataclass(frozen=True)
class ArmScores:
    """Scores of one arm's completions."""

    arm: int
    name: str
    method: str
    values: Sequence[float]


def describe_held_out(rows: Scored, share_longer: float) -> dict[str, Any]:
    """Accuracy, the length rule's, their difference, and calibration. `share_longer`: of the training rows, those whose
    chosen completion is the longer one (equal lengths: one half), which fixes the rule's direction."""
    is_right = _ordered(rows.chosen, rows.rejected)
    by_length = _ordered(rows.n_chosen, rows.n_rejected)
    if share_longer < 0.5:
        by_length = 1 - by_length
    p = 1 / (1 + np.exp(-(as_floats(rows.chosen) - as_floats(rows.rejected))))
    happened = np.ones(len(p))
    return {
        "accuracy": asdict(ranking_accuracy(rows.chosen, rows.rejected, rows.prompts)),
        "length_rule": "longer" if share_longer >= 0.5 else "shorter",
        "by_length": asdict(rate_of(by_length, rows.prompts)),
        "over_length": asdict(mean_interval(is_right - by_length, rows.prompts, bounds=(-1.0, 1.0))),
        "brier": asdict(excess_brier(p, happened)),
        "calibration": asdict(excess_calibration_error(p, happened)),
        "reliability": [asdict(one) for one in reliability(p, happened)],
    }


def _ordered(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """1 where a is larger, 0.5 where both are equal."""
    one, other = as_floats(a), as_floats(b)
    return np.where(one > other, 1.0, np.where(one == other, 0.5, 0.0))


def describe_scores(rows: Scored, arms: Sequence[ArmScores]) -> list[dict[str, Any]]:
    """Histograms over one set of bins: of chosen, of rejected, and of each arm's completions."""
    given: dict[str, tuple[Mapping[str, Any], Sequence[float]]] = {
        "chosen": ({"label": "chosen", "method": "other", "arm": None}, rows.chosen),
        "rejected": ({"label": "rejected", "method": "other", "arm": None}, rows.rejected),
        **{f"arm {one.arm}": ({"label": one.name, "method": one.method, "arm": one.arm}, one.values) for one in arms},
    }
    bins = shared_bins({key: values for key, (_, values) in given.items()})
    return [
        {**about, "mean": float(np.mean(values)), "bins": [asdict(one) for one in bins[key]]}
        for key, (about, values) in given.items()
        if len(values)
    ]
