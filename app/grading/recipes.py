"""The recipe that prepares a blind grading."""

from typing import ClassVar

from pydantic import Field, model_validator

from app.pairs.recipes import Decoding, Split
from app.runs.recipe import Recipe, points_to


class GradingRecipe(Recipe):
    """The same prompts through every arm; each against the first, side by side, sides shuffled.

    Arms are checkpoints sampled with this decoding, or arms that exist already, with their own prefix and decoding.
    """

    kind: ClassVar[str] = "grading"
    aim: ClassVar[str] = "Prepare a blind grading"
    main: ClassVar[frozenset[str]] = frozenset({"prompt_set", "checkpoints", "arms", "n_prompts", "name", "seed"})
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Prepare"

    prompt_set: int = points_to("prompt_set", title="Prompts")
    splits: list[Split] = Field(["test"], min_length=1, title="Splits")
    checkpoints: list[int] = points_to(
        "checkpoint",
        title="Checkpoints",
        default=[],
        description="The first is what the others are compared with.",
        where={"role": "policy"},
    )
    arms: list[int] = points_to(
        "arm", title="Arms", default=[], description="Checkpoints or endpoints with a prefix and decoding of their own."
    )
    n_prompts: int = Field(20, ge=1, le=10_000, title="Number of prompts")
    is_all_pairs: bool = Field(False, title="Every two arms", description="Otherwise each against the first.")
    decoding: Decoding = Field(Decoding(), title="Decoding")
    batch_size: int = Field(64, ge=1, le=4096, title="Prompts at once")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share of prompts is truncated")
    budget_usd: float | None = Field(
        None,
        ge=0,
        title="Stop at this cost in US dollars",
        description="Of arms at endpoints; a checkpoint costs none.",
    )

    @model_validator(mode="after")
    def _has_two_arms(self) -> "GradingRecipe":
        if len({*self.checkpoints}) + len({*self.arms}) < 2:
            raise ValueError("choose at least two checkpoints or arms to compare")
        return self
