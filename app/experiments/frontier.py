"""Quality against KL to the reference: points with intervals for one drawing, and the paths compared at matched KL."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.stats.frontier import Matched, Stop, match
from app.stats.intervals import Interval
from app.training.measured import Measured


@dataclass(frozen=True)
class Point:
    """One measured checkpoint. `path`: points of one path are joined, and paths are compared."""

    label: str
    path: str
    method: str
    measured: Measured
    is_selected: bool = False

    @property
    def rest(self) -> str:
        """What the label says beyond the path's name."""
        return self.label.removeprefix(self.path).lstrip(":, ")

    @property
    def is_reference(self) -> bool:
        """Whether it is what the others are measured from."""
        recipe = self.measured.run.recipe
        return bool(recipe["checkpoint"] == recipe["reference"])

    @property
    def kl(self) -> Interval:
        return self.measured.kl

    @property
    def quality(self) -> Interval:
        if self.measured.quality is None:
            raise ValueError("a point of the frontier has a quality")
        return self.measured.quality


@dataclass(frozen=True)
class Comparison:
    """Two paths at the same KL."""

    a: str
    b: str
    found: Matched


@dataclass(frozen=True)
class Frontier:
    """Points that were measured alike, nearest to the reference first."""

    points: list[Point]
    comparisons: list[Comparison]
    kl_ends: tuple[float, float]
    quality_ends: tuple[float, float]
    left_out: list[Point]  # measured by the same settings, and yet on other prompts

    @property
    def n_prompts(self) -> int:
        """Prompts that every point was measured on."""
        return len(self.points[0].measured.prompts)

    @property
    def recipe(self) -> dict[str, Any]:
        """How they were measured."""
        return self.points[0].measured.run.recipe

    @property
    def matched(self) -> list[Comparison]:
        """Paths that cover a KL in common."""
        return [one for one in self.comparisons if one.found.kl is not None]

    @property
    def apart(self) -> list[Comparison]:
        """Paths that do not."""
        return [one for one in self.comparisons if one.found.kl is None]

    def x(self, kl: float) -> str:
        """Where a KL stands, in percent from the left."""
        return percent(kl, self.kl_ends)

    def y(self, quality: float) -> str:
        """Where a quality stands, in percent from the top."""
        low, high = self.quality_ends
        return percent(low + high - quality, self.quality_ends)


def percent(value: float, ends: tuple[float, float]) -> str:
    """Where a value stands between two ends."""
    low, high = ends
    return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"


def draw_frontiers(points: Sequence[Point]) -> list[Frontier]:
    """A frontier for each way of measuring, the one with most points first. Points without a quality are left out."""
    alike: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        if point.measured.quality is not None:
            alike.setdefault(point.measured.settings, []).append(point)
    parted = [part_by_prompts(many) for many in alike.values()]
    return [_draw(*both) for both in sorted(parted, key=lambda both: len(both[0]), reverse=True)]


def part_by_prompts(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Points on the prompts that most of them were measured on (of equally many, the first point's), and the others:
    what a base with a shorter context cannot read leaves other prompts to be measured on."""
    same = Counter(point.measured.prompts for point in points)
    most = max(same, key=lambda prompts: same[prompts])
    return (
        [point for point in points if point.measured.prompts == most],
        [point for point in points if point.measured.prompts != most],
    )


def _draw(points: list[Point], left_out: list[Point]) -> Frontier:
    points = sorted(points, key=lambda point: point.kl.value)
    kls = [end for one in points for end in (one.kl.value, one.kl.low, one.kl.high) if end is not None]
    found = [end for p in points for end in (p.quality.value, p.quality.low, p.quality.high) if end is not None]
    low, high = min(found), max(found)
    pad = 0.08 * (high - low) or 0.5
    right = max(kls) * 1.05 or 1.0
    trained = [point for point in points if not point.is_reference]
    ends = (min(-0.03 * right, *kls), right), (low - pad, high + pad)
    return Frontier(points, compare_paths(trained), *ends, left_out)


def compare_paths(points: Sequence[Point]) -> list[Comparison]:
    """Each two paths at the middle of the KLs that both cover."""
    paths: dict[str, list[Stop]] = {}
    for point in points:
        paths.setdefault(point.path, []).append(Stop(point.kl.value, point.measured.by_group))
    return [Comparison(a, b, match(paths[a], paths[b])) for a, b in itertools.combinations(paths, 2)]


def frontier_as_json(frontier: Frontier) -> dict[str, Any]:
    """Every number of a frontier."""

    def interval(one: Interval) -> dict[str, Any]:
        return {"value": one.value, "low": one.low, "high": one.high, "n": one.n, "clusters": one.n_clusters}

    return {
        "estimator": "KL summed over whole vocabularies along sampled completions (arXiv:2504.10637)",
        "recipe": frontier.recipe,
        "points": [
            {
                "label": one.label, "path": one.path, "run": one.measured.run.id, "is_selected": one.is_selected,
                "kl": interval(one.kl), "quality": interval(one.quality), "log_ratio": interval(one.measured.ratio),
            }
            for one in frontier.points
        ],
        "prompts": frontier.n_prompts,
        "left_out": [
            {"label": one.label, "run": one.measured.run.id, "prompts": len(one.measured.prompts)}
            for one in frontier.left_out
        ],
        "matched": [
            {
                "a": one.a, "b": one.b, "low": one.found.low, "high": one.found.high, "kl": one.found.kl,
                "difference": one.found.difference and vars(one.found.difference),
            }
            for one in frontier.comparisons
        ],
    }  # fmt: skip
