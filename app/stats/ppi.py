"""Prediction-powered inference: a rate people would give, from few human answers and many verdicts of a judge.

Sources: Angelopoulos, Duchi and Zrnic, PPI++, arXiv:2311.01453 (2023), the estimator and its power tuning; Boyeau et
al., AutoEval done right, arXiv:2403.07008 (2024), win rates and the effective sample size; Korn and Graubard, Survey
Methodology 24 (1998), and Franco et al., J. Survey Statistics and Methodology 7 (2019), Wilson's interval at the
effective size with Student's t, in place of PPI's normal interval, which undercovers near 0 and 1; Agresti and Coull,
American Statistician 52 (1998), pseudo-observations; Cochran, Sampling Techniques (3rd ed. 1977), sec. 7.7.

The estimate is y - lam (f - u): y the mean answer of people over n audited items, f the mean verdict on the same items,
u the mean verdict on the N others. lam = cov(y, f - u) / var(f - u), held to 0..1, is the weight with the least
variance. Variances and covariance are cluster-robust: prompts, not items, are independent, and a prompt may have items
on both sides.

The interval is Wilson's at the effective size of people's answers alone, divided by the share of variance that the
verdicts leave, with t at (audited prompts - 1) degrees of freedom. That share is estimated from few disagreements where
the judge is good, so one pseudo-observation on which people and judge differ is added to both of its sides, and one
degree of freedom is paid for the fitted lam.

Fall-back: people's answers alone count where the correlation of y and f - u over prompts is not significantly above
0 (one-sided, 5 %), where fewer than 4 prompts show the rarer outcome, or where no variance would be saved.
bench/ppi.py shows what the whole rule covers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.distributions import t_quantile
from app.stats.intervals import Floats, Interval, as_pair, cluster_codes, sums_by_cluster

MIN_INFORMATIVE = 4  # prompts on which people gave the rarer outcome, below which no correlation can be learned
SIGNIFICANCE = 0.05  # of the correlation, one-sided
LEAST_EFFECT = 0.5  # of the design: answers with ties vary less than a coin of the same rate


@dataclass(frozen=True)
class Moments:
    """What an estimate needs of a sample. Fields may be arrays of one shape, one entry a sample, as in the bench."""

    n: float  # audited items
    k: int  # their prompts
    y: Floats  # mean of people's answers, 0..1
    gap: Floats  # mean verdict on the audited items less that on the others
    var_y: Floats  # cluster-robust variance of y
    covariance: Floats  # of y and the gap
    var_gap: Floats
    largest: float  # the largest possible design effect: each prompt all or nothing
    n_informative: NDArray[np.intp]  # prompts that show the rarer outcome


@dataclass(frozen=True)
class Bounds:
    """Estimates with intervals, combined and from people alone; arrays as in Moments."""

    value: Floats
    low: Floats
    high: Floats
    people_low: Floats
    people_high: Floats
    lam: Floats  # weight of the verdicts; 0 where people's answers alone count
    share: Floats  # of the variance that is left; 1 where people's answers alone count
    is_combined: NDArray[np.bool_]
    correlation: Floats


@dataclass(frozen=True)
class Estimate:
    """A rate that people would give to all items."""

    combined: Interval
    people: Interval  # from the audited items alone
    judge: float  # the mean verdict over all items: no estimate of people
    n_others: int  # items with a verdict only
    lam: float
    correlation: float | None  # None where nothing varies
    is_combined: bool
    why: str  # why people's answers alone count; "" where verdicts help
    n_saved: int  # labels that people would have had to give in addition for the same precision


def estimate_rate(
    answers: ArrayLike,
    verdicts: ArrayLike,
    prompts: ArrayLike,
    other_verdicts: ArrayLike,
    other_prompts: ArrayLike,
    other_sizes: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """The rate people would give, from people's answers, the verdicts on the same items, and the other verdicts.

    Parameters
    ----------
    answers, verdicts, prompts : shape (items,)
        Of the audited items: people's value and the judge's in 0..1, and the prompt.
    other_verdicts, other_prompts, other_sizes : shape (others,)
        Of the rest: the judge's value, the prompt, and how many items the row stands for (1 each by default).

    Raises ValueError without audited items, for lengths that differ, or for values beyond 0..1.
    """
    y, f = as_pair(answers, verdicts)
    others = np.asarray(other_verdicts, dtype=np.float64)
    sizes = np.ones(len(others)) if other_sizes is None else np.asarray(other_sizes, dtype=np.float64)
    names, other_names = np.asarray(prompts), np.asarray(other_prompts)
    if len(y) == 0 or len(names) != len(y) or not len(others) == len(sizes) == len(other_names):
        raise ValueError("audited items are needed, and one prompt for each item")
    if any(len(values) and (values.min() < 0 or values.max() > 1) for values in (y, f, others)):
        raise ValueError("answers and verdicts must lie in 0..1")
    moments = moments_of(y, f, names, others, other_names, sizes)
    found = bounds_of(moments, level)
    mean_verdict = float((f.sum() + (others * sizes).sum()) / (len(f) + sizes.sum()))
    is_combined, share = bool(found.is_combined), float(found.share)
    n, k = len(y), moments.k
    return Estimate(
        combined=Interval(float(found.value), float(found.low), float(found.high), n, k),
        people=Interval(float(moments.y), float(found.people_low), float(found.people_high), n, k),
        judge=mean_verdict,
        n_others=int(sizes.sum()),
        lam=float(found.lam),
        correlation=None if np.isnan(found.correlation) else float(found.correlation),
        is_combined=is_combined,
        why="" if is_combined else _why(moments, found, int(sizes.sum())),
        n_saved=int(n / share - n) if is_combined else 0,
    )


def moments_of(
    y: Floats,
    f: Floats,
    prompts: NDArray[np.generic],
    others: Floats,
    other_prompts: NDArray[np.generic],
    sizes: Floats,
) -> Moments:
    """The moments of one sample; arrays as in `estimate_rate`."""
    both, n_prompts = cluster_codes(np.concatenate([prompts, other_prompts]))
    codes, other_codes = both[: len(y)], both[len(y) :]
    counts = np.bincount(codes, minlength=n_prompts).astype(np.float64)
    k, n, n_others = int((counts > 0).sum()), len(y), float(sizes.sum())
    sums = sums_by_cluster(y, codes, n_prompts)
    mean_other = float((others * sizes).sum() / n_others) if n_others else 0.0
    people = sums_by_cluster(y - y.mean(), codes, n_prompts) / n
    gap = sums_by_cluster(f - f.mean(), codes, n_prompts) / n
    if n_others:
        gap = gap - sums_by_cluster((others - mean_other) * sizes, other_codes, n_prompts) / n_others
    few = k / (k - 1) if k > 1 else 0.0
    if not n_others:
        gap = np.zeros_like(gap)
    difference = f.mean() - mean_other if n_others else 0.0
    return Moments(
        n=float(n), k=k, y=np.asarray(y.mean()), gap=np.asarray(difference),
        var_y=np.asarray(few * (people**2).sum()), covariance=np.asarray(few * (people * gap).sum()),
        var_gap=np.asarray(few * (gap**2).sum()), largest=float((counts**2).sum() / n),
        n_informative=np.asarray(np.minimum((sums > 0).sum(), (sums < counts).sum())),
    )  # fmt: skip


def bounds_of(m: Moments, level: float = 0.95) -> Bounds:
    """Estimate, interval and fall-back of one sample or of many at once; see the module's text."""
    if m.k < 3:
        return _bounds_of_few(m, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = m.y * (1 - m.y)
        seen = np.where(spread > 0, np.maximum(LEAST_EFFECT, m.var_y / (spread / m.n)), m.largest)
        effect = (m.n_informative * seen + m.largest) / (m.n_informative + 1)
        size = m.n / effect
        lam = np.clip(np.where(m.var_gap > 0, m.covariance / m.var_gap, 0.0), 0.0, 1.0)
        left = (m.var_y - 2 * lam * m.covariance + lam**2 * m.var_gap) * (m.k - 1) / (m.k - 2)
        pseudo = m.largest / m.n**2
        share = (np.maximum(left, 0.0) + pseudo) / (m.var_y + pseudo)
        correlation = m.covariance / np.sqrt(m.var_y * m.var_gap)
        r2 = np.minimum(correlation**2, 1.0)
        t = np.sign(correlation) * np.sqrt(r2 * (m.k - 2) / (1 - r2))
    is_known = t > t_quantile(1 - SIGNIFICANCE, m.k - 2)  # NaN, where nothing varies, is not
    is_combined = is_known & (m.n_informative >= MIN_INFORMATIVE) & (share < 1)
    lam, share = np.where(is_combined, lam, 0.0), np.where(is_combined, share, 1.0)
    value = np.clip(m.y - lam * m.gap, 0.0, 1.0)
    quantile = t_quantile(0.5 + level / 2, m.k - 1)
    low, high = _wilson(value, size / share, quantile)
    people_low, people_high = _wilson(m.y, size, quantile)
    return Bounds(value, low, high, people_low, people_high, lam, share, is_combined, correlation)


def _bounds_of_few(m: Moments, level: float) -> Bounds:
    """One prompt or two: no correlation can be learned, and one says nothing of others."""
    y, none, one = np.asarray(m.y), np.zeros_like(m.y), np.ones_like(m.y)
    if m.k == 1:
        low, high = none, one
    else:
        low, high = _wilson(y, m.n / m.largest, t_quantile(0.5 + level / 2, 1))
    return Bounds(y, low, high, low, high, none, one, none.astype(bool), none * np.nan)


def _wilson(rate: Floats, n: Floats | float, quantile: float) -> tuple[Floats, Floats]:
    """`intervals.wilson` of arrays."""
    q2 = quantile**2
    centre = (rate + q2 / (2 * n)) / (1 + q2 / n)
    half = quantile / (1 + q2 / n) * np.sqrt(rate * (1 - rate) / n + q2 / (4 * n**2))
    low, high = np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)
    return np.where(rate <= 0, 0.0, low), np.where(rate >= 1, 1.0, high)


def _why(m: Moments, found: Bounds, n_others: int) -> str:
    if n_others == 0:
        return "every judged item is audited"
    if m.k < 3:
        return "fewer than 3 prompts are audited"
    if m.n_informative < MIN_INFORMATIVE:
        return f"fewer than {MIN_INFORMATIVE} audited prompts show the rarer outcome"
    if np.isnan(found.correlation):
        return "the verdicts do not vary"
    return f"people and judge correlate at {float(found.correlation):.2f}, too little for {m.k} audited prompts"
