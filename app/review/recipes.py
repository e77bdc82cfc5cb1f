"""The recipe that draws pairs for people."""

from typing import ClassVar, Literal

from pydantic import Field

from app.runs.recipe import Recipe, points_to


class AuditRecipe(Recipe):
    """A random audit (feeds every estimate) or a repair queue (feeds label fixes only)."""

    kind: ClassVar[str] = "audit"
    aim: ClassVar[str] = "Draw pairs for people"
    verb: ClassVar[str] = "Draw"

    verdict_set: int = points_to("verdict_set", title="Verdicts")
    purpose: Literal["audit", "repair"] = Field("audit", title="Purpose")
    n: int = Field(20, ge=1, le=100_000, title="Pairs")
    overlap: int = Field(1, ge=1, le=20, title="People per pair")
