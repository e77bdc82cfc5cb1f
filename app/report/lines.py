"""Curves of training runs as points for drawings by the server, which print."""

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from app.report.arms import Material
from app.runs.curves import read_curves

POINTS = 160
# What a reader of each kind of training looks for: (metric, caption), most telling first.
WANTED: dict[str, tuple[tuple[str, str], ...]] = {
    "demo_base": (("loss", "loss"),),
    "sft": (("loss", "loss"),),
    "reward": (("loss", "loss"), ("accuracy", "accuracy")),
    "dpo": (("loss", "loss"), ("accuracy", "accuracy of the implicit reward")),
    "ppo": (("policy_loss", "policy loss"), ("reward", "reward of the rollouts"), ("kl", "KL to the reference")),
    "simpo": (("loss", "loss"), ("accuracy", "accuracy of the implicit reward")),
    "kto": (("loss", "loss"), ("kl", "KL to the reference")),
    "grpo": (("loss", "loss"), ("reward", "reward of the rollouts"), ("kl", "KL to the reference")),
    "rloo": (("loss", "loss"), ("reward", "reward of the rollouts"), ("kl", "KL to the reference")),
}


@dataclass(frozen=True)
class Line:
    """One run's curve: points in 0..100, x to the right and y downwards."""

    label: str
    is_dev: bool
    points: str
    n: int
    first: float
    last: float


@dataclass(frozen=True)
class Drawing:
    """One metric of one step of the file, a line a seed, on shared axes."""

    title: str
    method: str
    lines: list[Line]
    low: float
    high: float
    steps: int


def read_drawings(session: Session, material: Material) -> list[Drawing]:
    """The loss and reward curves of every training step, in the file's order."""
    found: list[Drawing] = []
    for name in dict.fromkeys(step.name for step in material.steps):
        steps = [step for step in material.steps if step.name == name and step.run_id is not None]
        kind = steps[0].recipe.get("kind", "") if steps else ""
        if kind not in WANTED:
            continue
        title = steps[0].arm or name.replace("_", " ")
        for figure, caption in WANTED[kind]:
            series = {
                (step.seed, curve["label"].endswith("dev")): _finite(curve)
                for step in steps
                for curve in read_curves(session, [material.runs[step.run_id or 0]], figure, points=POINTS)
            }
            drawing = _draw(f"{title}: {caption}", kind, series)
            if drawing is not None:
                found.append(drawing)
    return found


def _finite(curve: dict[str, Any]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in zip(curve["step"], curve["value"], strict=True) if value is not None]


def _draw(title: str, kind: str, series: dict[tuple[int, bool], list[tuple[float, float]]]) -> Drawing | None:
    points = [point for one in series.values() for point in one]
    if len(points) < 2:
        return None
    last_step = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0
    lines = [
        Line(
            (f"seed {seed}" if seed else "all seeds") + (", dev" if is_dev else ""),
            is_dev,
            " ".join(f"{100 * step / last_step:.2f},{100 * (high - value) / span:.2f}" for step, value in one),
            len(one), one[0][1], one[-1][1],
        )
        for (seed, is_dev), one in series.items() if one
    ]  # fmt: skip
    method = {"demo_base": "base", "reward": "other"}.get(kind, kind)
    return Drawing(title, method, lines, low, high, int(last_step))
