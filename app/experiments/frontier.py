"""Quality against KL to the reference: points with intervals for one drawing, and the paths compared at matched KL."""

import itertools
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
        return _percent(kl, self.kl_ends)

    def y(self, quality: float) -> str:
        """Where a quality stands, in percent from the top."""
        low, high = self.quality_ends
        return _percent(low + high - quality, self.quality_ends)


def _percent(value: float, ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"


def draw_frontiers(points: Sequence[Point]) -> list[Frontier]:
    """A frontier for each way of measuring, the one with most points first. Points without a quality are left out."""
    alike: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        if point.measured.quality is not None:
            alike.setdefault(point.measured.settings, []).append(point)
    return [_draw(many) for many in sorted(alike.values(), key=len, reverse=True)]


def _draw(points: list[Point]) -> Frontier:
    points = sorted(points, key=lambda point: point.kl.value)
    kls = [end for one in points for end in (one.kl.value, one.kl.low, one.kl.high) if end is not None]
    found = [end for p in points for end in (p.quality.value, p.quality.low, p.quality.high) if end is not None]
    low, high = min(found), max(found)
    pad = 0.08 * (high - low) or 0.5
    right = max(kls) * 1.05 or 1.0
    trained = [point for point in points if not point.is_reference]
    return Frontier(points, compare_paths(trained), (min(-0.03 * right, *kls), right), (low - pad, high + pad))


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
        "matched": [
            {
                "a": one.a, "b": one.b, "low": one.found.low, "high": one.found.high, "kl": one.found.kl,
                "difference": one.found.difference and vars(one.found.difference),
            }
            for one in frontier.comparisons
        ],
    }  # fmt: skip
