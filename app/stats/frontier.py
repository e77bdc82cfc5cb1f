"""Quality against distance from the reference: arms compared at the same KL.

Sources: KL estimated over whole vocabularies along sampled completions, Amini, Vieira and Cotterell, "Better estimation
of the KL divergence between language models", arXiv:2504.10637 (2025); reward against KL as what optimisation buys,
Gao, Schulman and Hilton, arXiv:2210.10760 (2022), and Rafailov et al., arXiv:2305.18290 (2023), figure 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.stats.comparisons import Difference, paired_difference

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stop:
    """One measured point of an arm's path: its KL, and its quality on each group of prompts, the same at all stops."""

    kl: float
    quality: Floats


@dataclass(frozen=True)
class Matched:
    """Two paths at one KL. `low` and `high`: the stretch that both cover; without one there is nothing to compare."""

    low: float
    high: float
    kl: float | None = None
    difference: Difference | None = None


def quality_at(path: Sequence[Stop], kl: float) -> Floats:
    """Each group's quality at a KL, on the straight line between the two stops beside it.

    Raises ValueError beyond the path's ends: nothing is extrapolated.
    """
    stops = sorted(path, key=lambda stop: stop.kl)
    if not stops or not stops[0].kl <= kl <= stops[-1].kl:
        raise ValueError(f"a KL of {kl:g} lies outside of what was measured")
    after = next(place for place, stop in enumerate(stops) if stop.kl >= kl)
    right = stops[after]
    if right.kl == kl or after == 0:
        return right.quality
    left = stops[after - 1]
    share = (kl - left.kl) / (right.kl - left.kl)
    return (1 - share) * left.quality + share * right.quality


def match(a: Sequence[Stop], b: Sequence[Stop]) -> Matched:
    """a minus b in the middle of the KLs that both paths cover, paired by group of prompts.

    Where the stretches do not meet, `kl` is None and low lies above high. The interval is over groups; the KLs
    themselves are taken as known.
    """
    low = max(min(stop.kl for stop in a), min(stop.kl for stop in b))
    high = min(max(stop.kl for stop in a), max(stop.kl for stop in b))
    if low > high:
        return Matched(low, high)
    kl = (low + high) / 2
    one, other = quality_at(a, kl), quality_at(b, kl)
    return Matched(low, high, kl, paired_difference(one, other, np.arange(len(one)), bounds=None))
