"""Coverage of prediction-powered intervals, fall-back rule included: prints the tables of docs/statistics.md.

    python -m bench.ppi [--repeats 4000] [--seed 1]

The grid: rate of decided answers .5 to .97 × judge accuracy .5 to .95 × ties 0 to .3 × three ways of clustering ×
n 50 to 500, beside 2,000 judged items that nobody audited. A cell is a seeded simulation of `repeats` audits, which all
pass through app.stats.ppi.bounds_of at once.

What is simulated: an answer is a tie with probability `ties`, else a win at `rate`; the judge says the same with
probability `accuracy`, else one of the other answers. Clustering: "none" has one item a prompt; in the other two a
prompt has four items, each of which copies with probability 1/2 the prompt's own answer and verdict; "random" audits
single items of prompts whose other three are judged only, as the app's audit does; "whole" audits prompts as a whole.
"""

import argparse
import itertools
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.stats.ppi import Bounds, Moments, bounds_of

RATES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97)
ACCURACIES = (0.5, 0.65, 0.8, 0.95)
TIES = (0.0, 0.15, 0.3)
CLUSTERINGS = ("none", "random", "whole")
SIZES = (50, 100, 200, 500)
OTHERS = 2_000
PER_PROMPT = 4
COPIED = 0.5
VALUES = np.array([0.0, 0.5, 1.0])
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    clustering: str
    n: int
    rate: float
    accuracy: float
    ties: float

    @property
    def truth(self) -> float:
        """The mean answer, a tie counted one half."""
        return self.ties / 2 + (1 - self.ties) * self.rate


@dataclass(frozen=True)
class Covered:
    """What one cell showed."""

    cell: Cell
    combined: float
    people: float
    ratio: float  # median width of the combined interval over people's alone
    used: float  # how often verdicts were used


def simulate(cell: Cell, repeats: int, seed: int) -> Covered:
    """One cell. The seed of its numbers comes from the cell too, so that no cell depends on which others ran."""
    key = [
        seed,
        CLUSTERINGS.index(cell.clustering),
        cell.n,
        *(round(1000 * x) for x in (cell.rate, cell.accuracy, cell.ties)),
    ]
    found: Bounds = bounds_of(draw_moments(cell, repeats, np.random.default_rng(key)))
    covered = (found.low <= cell.truth) & (cell.truth <= found.high)
    people = (found.people_low <= cell.truth) & (cell.truth <= found.people_high)
    ratio = (found.high - found.low) / (found.people_high - found.people_low)
    return Covered(
        cell, float(covered.mean()), float(people.mean()), float(np.median(ratio)), float(found.is_combined.mean())
    )


def draw_moments(cell: Cell, repeats: int, random: np.random.Generator) -> Moments:
    """Moments of `repeats` audits. The unaudited prompts enter by how many of them have which sum of verdicts."""
    n, size = cell.n, 1 if cell.clustering == "none" else PER_PROMPT
    k = -(-n // PER_PROMPT) if cell.clustering == "whole" else n
    y, f = _draw_prompts(cell, (repeats, k, size), random)
    counts, siblings, n_siblings = np.ones(k), np.zeros((repeats, k)), 0
    if cell.clustering == "whole":
        inside = np.ones((k, size))
        inside[-1] = np.arange(size) < n - size * (k - 1)
        counts, y, f = inside.sum(axis=1), (y * inside).sum(axis=2), (f * inside).sum(axis=2)
    else:
        siblings, n_siblings = f[..., 1:].sum(axis=2), size - 1
        y, f = y[..., 0], f[..., 0]
    sums = np.arange(2 * size + 1) / 2
    n_prompts = (OTHERS - n_siblings * k) // size
    drawn = random.multinomial(max(n_prompts, 0), _sum_shares(cell, size), size=repeats)
    n_others = max(n_prompts, 0) * size + n_siblings * k
    other = ((drawn * sums).sum(axis=1) + siblings.sum(axis=1)) / n_others
    mean_y, mean_f = y.sum(axis=1) / n, f.sum(axis=1) / n
    people = (y - mean_y[:, None] * counts) / n
    gap = (f - mean_f[:, None] * counts) / n - (siblings - n_siblings * other[:, None]) / n_others
    rest = (drawn * (sums - size * other[:, None]) ** 2).sum(axis=1) / n_others**2
    few = k / (k - 1)
    return Moments(
        n=float(n), k=k, y=mean_y, gap=mean_f - other, var_y=few * (people**2).sum(axis=1),
        covariance=few * (people * gap).sum(axis=1), var_gap=few * ((gap**2).sum(axis=1) + rest),
        largest=float((counts**2).sum() / n), n_informative=np.minimum((y > 0).sum(axis=1), (y < counts).sum(axis=1)),
    )  # fmt: skip


def _draw_prompts(cell: Cell, shape: tuple[int, int, int], random: np.random.Generator) -> tuple[Array, Array]:
    """Answers and verdicts of each prompt's items, shape (repeats, prompts, items)."""
    y, f = _draw_items(cell, shape, random)
    if shape[2] > 1:
        own_y, own_f = _draw_items(cell, (*shape[:2], 1), random)
        is_copied = random.random(shape) < COPIED
        y, f = np.where(is_copied, own_y, y), np.where(is_copied, own_f, f)
    return y, f


def _draw_items(cell: Cell, shape: tuple[int, ...], random: np.random.Generator) -> tuple[Array, Array]:
    y = np.where(random.random(shape) < cell.ties, 0.5, (random.random(shape) < cell.rate).astype(np.float64))
    is_first = random.random(shape) < 0.5
    other = 1 - y
    if cell.ties:
        other = np.where(y == 0.5, is_first.astype(np.float64), np.where(is_first, 0.5, 1 - y))
    return y, np.where(random.random(shape) < cell.accuracy, y, other)


def _sum_shares(cell: Cell, size: int) -> Array:
    """How often the verdicts of a prompt sum to 0, .5, …, size: exactly, by convolution."""
    answers = np.array([(1 - cell.ties) * (1 - cell.rate), cell.ties, (1 - cell.ties) * cell.rate])
    wrong = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) if cell.ties else np.fliplr(np.eye(3))
    verdicts = cell.accuracy * answers + (1 - cell.accuracy) * answers @ wrong
    if size == 1:
        return verdicts
    shares = np.zeros(2 * size + 1)
    for own in range(3):
        one, total = (1 - COPIED) * verdicts + COPIED * np.eye(3)[own], np.ones(1)
        for _ in range(size):
            total = np.convolve(total, one)
        shares += verdicts[own] * total
    return shares


def print_tables(found: list[Covered]) -> None:
    """Minimum coverage and median width by clustering and n, and by accuracy and n."""
    for title, name, values in (("clustering", "clustering", CLUSTERINGS), ("judge accuracy", "accuracy", ACCURACIES),
                                ("rate", "rate", RATES), ("ties", "ties", TIES)):  # fmt: skip
        print(f"\n| {title} | n | cells | least coverage | people only, least | median width ratio | verdicts used |")
        print("|---|---|---|---|---|---|---|")
        for value, n in itertools.product(values, SIZES):
            rows = [row for row in found if getattr(row.cell, name) == value and row.cell.n == n]
            if rows:
                print(
                    f"| {value} | {n} | {len(rows)} | {min(row.combined for row in rows):.3f} "
                    f"| {min(row.people for row in rows):.3f} | {np.median([row.ratio for row in rows]):.2f} "
                    f"| {np.mean([row.used for row in rows]):.2f} |"
                )


def main() -> None:
    """Runs the whole grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    started = time.monotonic()
    grid = [Cell(*point) for point in itertools.product(CLUSTERINGS, SIZES, RATES, ACCURACIES, TIES)]
    found = [simulate(cell, asked.repeats, asked.seed) for cell in grid]
    print_tables(found)
    worst = sorted(found, key=lambda row: row.combined)[:5]
    print(
        f"\n{len(grid)} cells × {asked.repeats} repeats in {time.monotonic() - started:.0f} s; the five least covered:"
    )
    for row in worst:
        print(f"  {row.combined:.4f} (people only {row.people:.4f}) {row.cell}")


if __name__ == "__main__":
    main()
