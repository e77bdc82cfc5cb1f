"""Measuring a policy on dev prompts: how far it is from a reference (KL), and how good what it says is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from sqlmodel import Session, col, select

from app.runs.models import Run, Sampled
from app.runs.recipe import Recipe, points_to
from app.stats.intervals import Interval, mean_interval
from app.training.recipe_parts import POLICY

# What must be the same for two measurements to be compared.
SETTINGS = ("reference", "quality", "reward", "prompt_set", "n_prompts", "samples", "max_new_tokens")


class MeasureRecipe(Recipe):
    """KL to a reference and quality of a policy's own samples on the dev prompts of a set; test is never read."""

    kind: ClassVar[str] = "measure"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Measure"
    aim: ClassVar[str] = "Measure KL and quality on dev"

    checkpoint: int = points_to("checkpoint", title="Checkpoint", where=POLICY)
    reference: int = points_to(
        "checkpoint", title="Reference", where=POLICY, description="What the KL is to; the start of all arms compared."
    )
    prompt_set: int = points_to("prompt_set", title="Prompts", description="The first of its dev split.")
    quality: Literal["reward", "rule", "none"] = Field(
        "reward", title="Quality", description="Of a held-out reward model, or of the rule: it reads gold answers."
    )
    reward: int | None = points_to(
        "checkpoint", title="Held-out reward model", default=None, where={"role": "reward"},
        description="Best one that trained none of the arms.",
    )  # fmt: skip
    n_prompts: int = Field(64, ge=1, le=10_000, title="Prompts at most")
    samples: int = Field(2, ge=1, le=64, title="Completions per prompt", description="At temperature 1.")
    max_new_tokens: int = Field(64, ge=1, le=32768, title="New tokens at most")
    dtype: Literal["float32", "bfloat16"] = Field("float32", title="Number format")

    @model_validator(mode="after")
    def _has_its_reward_model(self) -> "MeasureRecipe":
        if (self.quality == "reward") != (self.reward is not None):
            raise ValueError("choose a held-out reward model exactly when it measures quality")
        return self


@dataclass(frozen=True)
class Measured:
    """What a measure run found: one KL and one quality for each completion, in the order of the prompts."""

    run: Run
    kls: NDArray[np.float64]
    ratios: NDArray[np.float64]
    qualities: NDArray[np.float64] | None
    groups: NDArray[np.int64]  # the group of prompts that each completion belongs to
    prompts: frozenset[int] = frozenset()  # whose completions they are

    @property
    def settings(self) -> tuple[Any, ...]:
        """What must be the same in what it is compared with."""
        return tuple(self.run.recipe.get(name) for name in SETTINGS)

    @cached_property
    def kl(self) -> Interval:
        """KL in nats per completion, with its interval over groups of prompts."""
        return mean_interval(self.kls, self.groups)

    @cached_property
    def ratio(self) -> Interval:
        """The plain Monte Carlo estimate of the same: the mean of log π/π_ref."""
        return mean_interval(self.ratios, self.groups)

    @cached_property
    def quality(self) -> Interval | None:
        """Mean quality, with its interval over groups of prompts."""
        if self.qualities is None:
            return None
        bounds = (0.0, 1.0) if self.run.recipe["quality"] == "rule" else None
        return mean_interval(self.qualities, self.groups, bounds=bounds)

    @property
    def by_group(self) -> NDArray[np.float64]:
        """Mean quality of each group of prompts."""
        if self.qualities is None:
            raise ValueError("no quality was measured")
        _, places = np.unique(self.groups, return_inverse=True)
        return np.asarray(np.bincount(places, self.qualities) / np.bincount(places))


def read_measured(session: Session, runs: Iterable[Run]) -> dict[int, Measured]:
    """What finished measure runs found."""
    rows = {run.id: run for run in runs if run.kind == "measure" and run.status == "done"}
    found: dict[int, list[tuple[float | None, Mapping[str, Any]]]] = {key: [] for key in rows}
    query = select(Sampled.run_id, Sampled.reward, Sampled.detail).where(col(Sampled.run_id).in_(rows))
    for key, reward, detail in session.exec(query.order_by(col(Sampled.run_id), col(Sampled.place))):
        found[key].append((reward, detail))
    return {key: _as_measured(rows[key], many) for key, many in found.items() if many}


def _as_measured(run: Run, many: list[tuple[float | None, Mapping[str, Any]]]) -> Measured:
    rewards = [reward for reward, _ in many if reward is not None]
    return Measured(
        run,
        np.array([detail["kl"] for _, detail in many]),
        np.array([detail["log_ratio"] for _, detail in many]),
        np.array(rewards) if len(rewards) == len(many) else None,
        np.array([int(detail["group"]) for _, detail in many]),
        frozenset(int(detail["prompt"]) for _, detail in many),
    )
