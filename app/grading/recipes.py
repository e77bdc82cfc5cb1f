"""The recipe that prepares a blind grading."""

from typing import ClassVar

from pydantic import Field

from app.pairs.recipes import Decoding, Split
from app.runs.recipe import Recipe, points_to


class GradingRecipe(Recipe):
    """The same prompts through every checkpoint; each against the first, side by side, sides shuffled."""

    kind: ClassVar[str] = "grading"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Prepare"

    prompt_set: int = points_to("prompt_set", title="Prompts")
    splits: list[Split] = Field(["test"], min_length=1, title="Splits")
    checkpoints: list[int] = points_to(
        "checkpoint",
        title="Checkpoints",
        description="The first is what the others are compared with.",
        where={"role": "policy"},
    )
    n_prompts: int = Field(20, ge=1, le=10_000, title="Prompts")
    is_all_pairs: bool = Field(False, title="Every two arms", description="Otherwise each against the first.")
    decoding: Decoding = Field(Decoding(), title="Decoding")
    batch_size: int = Field(64, ge=1, le=4096, title="Prompts at once")
