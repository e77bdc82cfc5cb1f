"""Freezing preferences: overrides over verdicts, as a hashed file of TRL's prompt/chosen/rejected rows."""

from typing import ClassVar

from app.runs.recipe import Recipe, points_to


class SnapshotRecipe(Recipe):
    """Freezes the preferences of a verdict set, overrides over verdicts, into a hashed file."""

    kind: ClassVar[str] = "snapshot"
    verb: ClassVar[str] = "Freeze"

    verdict_set: int = points_to("verdict_set", title="Verdicts")
