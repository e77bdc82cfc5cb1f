"""Agreement of judges and people: raw, Cohen, Fleiss, Krippendorff, with intervals by resampling prompts.

Sources: Cohen, Educ. Psychol. Meas. 20 (1960); Fleiss, Psychol. Bull. 76 (1971); Krippendorff, Content Analysis
(4th ed. 2018), ch. 12; Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13, percentile
interval; Davison and Hinkley, Bootstrap Methods (1997), sec. 3.8, resampling clusters.

A label is anything that can be hashed; None is missing (skipped, not read). A coefficient that the data leave undefined
(one category only, so that chance agreement is 1) is None, never NaN.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.stats.intervals import Floats, Interval, cluster_codes, rate_of, sums_by_cluster
from app.stats.resampling import interval_of_sums

Labels = Sequence[Hashable | None]
Level = Literal["nominal", "ordinal", "interval"]
Codes = NDArray[np.intp]


def confusion(
    a: Labels, b: Labels, categories: Sequence[Hashable] | None = None
) -> tuple[list[Hashable], NDArray[np.intp]]:
    """Categories and the table of counts, shape (categories, categories): rows a, columns b.

    Items that miss a label are left out. Categories default to those seen, sorted as text.

    Raises ValueError for lengths that differ or an unknown label.
    """
    if len(a) != len(b):
        raise ValueError(f"lengths differ: {len(a)} and {len(b)}")
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    names = list(categories) if categories is not None else sorted({x for pair in both for x in pair}, key=str)
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)), dtype=np.intp)
    for x, y in both:
        if x not in place or y not in place:
            raise ValueError(f"label {(x if x not in place else y)!r} is not among {names}")
        table[place[x], place[y]] += 1
    return names, table


def raw_agreement(a: Labels, b: Labels, clusters: ArrayLike) -> Interval:
    """The share of items with equal labels, with `rate_interval`'s interval by prompt; missing items are left out.

    Raises ValueError if no item has both labels.
    """
    kept = _both(a, b)
    equal = [float(a[i] == b[i]) for i in kept]
    return rate_of(equal, np.asarray(clusters)[kept])


@dataclass(frozen=True)
class TwoLines:
    """Agreement told twice, so that a judge cannot look better by being unreadable."""

    all_items: Interval  # an unreadable verdict counts as disagreement
    readable_only: Interval | None  # None when nothing could be read
    n_unreadable: int


def two_line_agreement(people: Labels, judge: Labels, clusters: ArrayLike) -> TwoLines:
    """Agreement of a judge with people over the items people labelled (None there leaves the item out).

    Lines: "all items, unreadable = disagreement" and "readable only", each with its n and interval by prompt.
    """
    if len(people) != len(judge):
        raise ValueError(f"lengths differ: {len(people)} and {len(judge)}")
    groups = np.asarray(clusters)
    labelled = [i for i, label in enumerate(people) if label is not None]
    readable = [i for i in labelled if judge[i] is not None]
    everything = rate_of([float(people[i] == judge[i]) for i in labelled], groups[labelled])
    read = rate_of([float(people[i] == judge[i]) for i in readable], groups[readable]) if readable else None
    return TwoLines(everything, read, len(labelled) - len(readable))


def cohen_kappa(a: Labels, b: Labels) -> float | None:
    """Cohen's kappa, unweighted, of two raters over items that both labelled. None if undefined or without items."""
    return _kappa_of_table(confusion(a, b)[1])


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Fleiss' kappa. counts, shape (items, categories): how many raters put the item there, equally many for each item.

    Raises ValueError where the number of raters differs or is below 2. None if undefined.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError("a table of items by categories is needed")
    n_raters = table[0].sum()
    if n_raters < 2 or np.any(table.sum(axis=1) != n_raters):
        raise ValueError("each item needs the same number of raters, at least 2; Krippendorff's alpha does not")
    within = ((table**2).sum(axis=1) - n_raters) / (n_raters * (n_raters - 1))
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return None if chance >= 1 else (float(within.mean()) - chance) / (1 - chance)


def krippendorff_alpha(ratings: Sequence[Labels], level: Level = "nominal") -> float | None:
    """Krippendorff's alpha of any number of raters with gaps.

    Parameters
    ----------
    ratings : one row a rater, each of shape (items,), None where the rater gave none. Nominal labels may be anything;
        ordinal and interval ones must be numbers.
    level : how far apart two labels are: "nominal" (equal or not), "ordinal" (ranks between), "interval" (squared gap).

    Items with fewer than two ratings do not count. None without a pair of ratings or if only one value occurs.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"unknown level {level!r}")
    if len({len(row) for row in ratings}) > 1:
        raise ValueError("each rater's row must have one entry an item")
    counts, values = _counts_by_item(ratings, level)
    counts = counts[counts.sum(axis=1) >= 2]
    if len(counts) == 0:
        return None
    value = _alpha_of(_coincidences(counts).sum(axis=0), values, level)
    return None if np.isnan(value) else value


def bootstrap_interval(
    statistic: Callable[[Codes], float | None],
    clusters: ArrayLike,
    n_resamples: int = 1_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of a statistic, resampling whole prompts.

    `statistic` takes item places, shape (m,), repeats included, and gives a number or None (undefined). The result is
    None where the statistic of all items is undefined. low and high are None with a single prompt, where over half of
    the resamples are undefined, and where all of them agree: that resampling saw no variation is no evidence of none.
    """
    codes, k = cluster_codes(clusters)
    n = len(codes)
    value = statistic(np.arange(n)) if n else None
    if value is None:
        return None
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=k))[:-1])
    random = np.random.default_rng(seed)
    drawn = [statistic(np.concatenate([members[c] for c in random.integers(0, k, k)])) for _ in range(n_resamples)]
    known = np.array([x for x in drawn if x is not None])
    if k < 2 or len(known) < n_resamples / 2 or np.ptp(known) < 1e-12:
        return Interval(value, None, None, n, k)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, k)


def cohen_kappa_interval(
    a: Labels, b: Labels, clusters: ArrayLike, n_resamples: int = 1_000, seed: int = 0
) -> Interval | None:
    """Cohen's kappa with an interval over prompts; None if undefined.

    With perfect agreement resampling has no width: low is then kappa at the lower end of the raw agreement's interval,
    chance agreement held at what was seen.
    """
    kept = _both(a, b)
    names = sorted({x for i in kept for x in (a[i], b[i])}, key=str)
    place = {name: i for i, name in enumerate(names)}
    cells = np.array([place[a[i]] * len(names) + place[b[i]] for i in kept], dtype=np.intp)
    groups = np.asarray(clusters)[kept]

    codes, k = cluster_codes(groups)
    size = len(names) ** 2
    by_prompt = np.bincount(codes * size + cells, minlength=k * size).reshape(k, size).astype(np.float64)
    found = interval_of_sums(by_prompt, _kappas, len(kept), n_resamples, seed)
    if found is None or found.low is not None or found.value < 1:
        return found
    agreed = rate_of(np.ones(len(kept)), groups)
    chance = float(sum((np.bincount(cells // len(names)) / len(cells)) ** 2))
    return Interval(1.0, ((agreed.low or 0.0) - chance) / (1 - chance), 1.0, found.n, found.n_clusters)


def fleiss_kappa_interval(
    counts: ArrayLike, clusters: ArrayLike, n_resamples: int = 1_000, seed: int = 0
) -> Interval | None:
    """Fleiss' kappa with an interval over prompts; None if undefined. n counts items."""
    table = np.asarray(counts)
    return bootstrap_interval(lambda items: fleiss_kappa(table[items]), clusters, n_resamples, seed)


def krippendorff_alpha_interval(
    ratings: Sequence[Labels], clusters: ArrayLike, level: Level = "nominal", n_resamples: int = 1_000, seed: int = 0
) -> Interval | None:
    """Krippendorff's alpha with an interval over prompts; None if undefined. n counts items, also those rated once."""

    if level == "interval":
        return _interval_of_numbers(ratings, clusters, n_resamples, seed)
    counts, values = _counts_by_item(ratings, level)
    kept = counts.sum(axis=1) >= 2
    groups, n = np.asarray(clusters), len(counts)
    if not kept.any():
        return None
    codes, k = cluster_codes(groups[kept])
    by_prompt = np.zeros((k, len(values) ** 2))
    np.add.at(by_prompt, codes, _coincidences(counts[kept]).reshape(len(codes), -1))

    def alphas(sums: Floats) -> Floats:
        return np.array([_alpha_of(row.reshape(len(values), -1), values, level) for row in sums])

    found = interval_of_sums(by_prompt, alphas, n, n_resamples, seed)
    return found and Interval(found.value, found.low, found.high, n, cluster_codes(groups)[1])


def _interval_of_numbers(
    ratings: Sequence[Labels], clusters: ArrayLike, n_resamples: int, seed: int
) -> Interval | None:
    """Alpha of numbers with its interval, from sums and squares alone: there may be as many values as ratings."""
    numbers = np.array([[np.nan if x is None else float(x) for x in row] for row in ratings])  # type: ignore[arg-type]
    groups, n = np.asarray(clusters), numbers.shape[1] if numbers.size else 0
    given = np.isfinite(numbers).sum(axis=0) if n else np.zeros(0)
    kept = given >= 2
    if not kept.any():
        return None
    m, values = given[kept], numbers[:, kept] - np.nanmean(numbers[:, kept])
    first, second = np.nansum(values, axis=0), np.nansum(values**2, axis=0)
    columns = [m.astype(np.float64), first, second, 2 * (m * second - first**2) / (m - 1)]
    codes, k = cluster_codes(groups[kept])
    by_prompt = np.stack([sums_by_cluster(column, codes, k) for column in columns], axis=1)

    def alphas(s: Floats) -> Floats:
        expected = 2 * (s[:, 0] * s[:, 2] - s[:, 1] ** 2) / (s[:, 0] - 1)
        return np.where(expected > 1e-12 * s[:, 2], 1 - s[:, 3] / expected, np.nan)

    found = interval_of_sums(by_prompt, alphas, n, n_resamples, seed)
    return found and Interval(found.value, found.low, found.high, n, cluster_codes(groups)[1])


def _both(a: Labels, b: Labels) -> list[int]:
    if len(a) != len(b):
        raise ValueError(f"lengths differ: {len(a)} and {len(b)}")
    return [i for i in range(len(a)) if a[i] is not None and b[i] is not None]


def _kappas(tables: Floats) -> Floats:
    """Kappa of each row, a flattened table; NaN where chance agreement is 1 or nothing was rated."""
    size = round(tables.shape[1] ** 0.5)
    square = tables.reshape(-1, size, size)
    n = square.sum(axis=(1, 2))
    seen = np.trace(square, axis1=1, axis2=2) / n
    chance = (square.sum(axis=1) * square.sum(axis=2)).sum(axis=1) / n**2
    return np.where(chance < 1 - 1e-12, (seen - chance) / (1 - chance), np.nan)


def _coincidences(counts: Floats) -> Floats:
    """Krippendorff's coincidences of each item, shape (items, values, values), from items rated at least twice."""
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs -= counts[:, :, None] * np.eye(counts.shape[1])
    return np.asarray(pairs / (counts.sum(axis=1) - 1)[:, None, None])


def _alpha_of(coincidence: Floats, values: list[Hashable], level: Level) -> float:
    """Alpha of a table of coincidences; NaN if undefined."""
    margin = coincidence.sum(axis=1)
    if margin.sum() <= 1:
        return np.nan
    distance = _distances(margin, values, level)
    expected = float((np.outer(margin, margin) * distance).sum()) / (margin.sum() - 1)
    return np.nan if expected <= 0 else 1 - float((coincidence * distance).sum()) / expected


def _kappa_of_table(table: NDArray[np.intp]) -> float | None:
    n = int(table.sum())
    if n == 0:
        return None
    chance = float(table.sum(axis=0) @ table.sum(axis=1)) / n**2
    return None if chance >= 1 else (float(np.trace(table)) / n - chance) / (1 - chance)


def _counts_by_item(ratings: Sequence[Labels], level: Level) -> tuple[NDArray[np.float64], list[Hashable]]:
    seen = {label for row in ratings for label in row if label is not None}
    values: list[Hashable] = sorted(seen, key=str if level == "nominal" else float)  # type: ignore[arg-type]
    place = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(ratings[0]) if ratings else 0, len(values)))
    for row in ratings:
        for i, label in enumerate(row):
            if label is not None:
                counts[i, place[label]] += 1
    return counts, values


def _distances(margin: NDArray[np.float64], values: list[Hashable], level: Level) -> NDArray[np.float64]:
    """Squared distances between values, shape (values, values)."""
    k = len(values)
    if level == "nominal":
        return 1.0 - np.eye(k)
    if level == "interval":
        numbers = np.array(values, dtype=np.float64)
        return (numbers[:, None] - numbers[None, :]) ** 2
    ranks = np.cumsum(margin) - margin / 2  # the ratings between two values, half of each end counted
    return (ranks[:, None] - ranks[None, :]) ** 2
