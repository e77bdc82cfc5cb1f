"""Recipes of training runs: at once the form's fields, the row's JSON, the API's body and the worker's argument."""

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DemoBaseRecipe(Recipe):
    """Makes the demo's own tiny base model from a corpus written by code."""

    steps: int = Field(320, ge=1, le=100_000)
    batch_size: int = Field(64, ge=1, le=4096)
    lr: float = Field(4e-3, gt=0, le=1)
    vocabulary: int = Field(800, ge=300, le=100_000)
    hidden: int = Field(128, ge=16, le=4096)
    mlp: int = Field(344, ge=16, le=16384)
    layers: int = Field(2, ge=1, le=64)
    heads: int = Field(4, ge=1, le=64)
    positions: int = Field(512, ge=64, le=32768)
