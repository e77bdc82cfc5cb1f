"""Recipes of training runs: at once the form's fields, the row's JSON, the API's body and the worker's argument."""

from typing import ClassVar

from pydantic import Field

from app.runs.recipe import Recipe, points_to


class DemoBaseRecipe(Recipe):
    """Makes the demo's own tiny base model from a corpus written by code."""

    kind: ClassVar[str] = "demo_base"
    queue: ClassVar[str] = "gpu"

    steps: int = Field(320, ge=1, le=100_000)
    batch_size: int = Field(64, ge=1, le=4096)
    lr: float = Field(4e-3, gt=0, le=1)
    vocabulary: int = Field(800, ge=300, le=100_000)
    hidden: int = Field(128, ge=16, le=4096)
    mlp: int = Field(344, ge=16, le=16384)
    layers: int = Field(2, ge=1, le=64)
    heads: int = Field(4, ge=1, le=64)
    positions: int = Field(512, ge=64, le=32768)


class SnapshotRecipe(Recipe):
    """Freezes the preferences of a pair set, overrides over verdicts, into a hashed file."""

    kind: ClassVar[str] = "snapshot"
    verb: ClassVar[str] = "Freeze"

    verdict_set: int = points_to("verdict_set", title="Verdicts")


class SftRecipe(Recipe):
    kind: ClassVar[str] = "sft"
    queue: ClassVar[str] = "gpu"
    start: int = points_to("checkpoint", title="Start")
    snapshot: int = points_to("snapshot", title="Snapshot")


class RewardRecipe(SftRecipe):
    kind: ClassVar[str] = "reward"


class DpoRecipe(SftRecipe):
    kind: ClassVar[str] = "dpo"
    reference: int | None = points_to("checkpoint", title="Reference", default=None)


class PpoRecipe(DpoRecipe):
    kind: ClassVar[str] = "ppo"


class GrpoRecipe(DpoRecipe):
    kind: ClassVar[str] = "grpo"
