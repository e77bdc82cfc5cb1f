"""Every kind of run and its recipe: one explicit dict. Reading a recipe from JSON; errors keyed by field."""

from typing import Any

from pydantic import ValidationError

from app.annotations.recipes import ImportAnnotationsRecipe
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.recipes import ExportRecipe, ImportCheckpointRecipe, NewEndpointRecipe
from app.errors import Invalid, invalid
from app.grading.recipes import GradingRecipe
from app.judging.rating_recipes import RateRecipe
from app.judging.recipes import JudgeRecipe, NewJudgeRecipe
from app.pairs.playing import PlayRecipe
from app.pairs.recipes import GenerateRecipe
from app.prompts.recipes import CheckPromptsRecipe, ImportPairsRecipe, ImportPromptsRecipe, PeekHubRecipe
from app.review.card_recipes import CardRecipe
from app.review.recipes import AuditRecipe
from app.revising.recipes import BestOfRecipe, HandOverRecipe, InContextRecipe, RedTeamRecipe, ReviseRecipe
from app.runs.recipe import Recipe
from app.training.measured import MeasureRecipe
from app.training.recipes import (
    DemoBaseRecipe,
    DpoRecipe,
    GrpoRecipe,
    KtoRecipe,
    PpoRecipe,
    RewardRecipe,
    RlooRecipe,
    SftRecipe,
    SimpoRecipe,
)
from app.training.snapshots import SnapshotRecipe

RECIPES: dict[str, type[Recipe]] = {
    recipe.kind: recipe
    for recipe in (
        ImportPromptsRecipe, ImportPairsRecipe, ImportAnnotationsRecipe, ImportCheckpointRecipe, NewEndpointRecipe,
        PeekHubRecipe, CheckPromptsRecipe, DemoBaseRecipe, ExportRecipe,
        GenerateRecipe, NewJudgeRecipe, JudgeRecipe, RateRecipe, AuditRecipe, CardRecipe, SnapshotRecipe,
        RedTeamRecipe, ReviseRecipe, HandOverRecipe, BestOfRecipe, InContextRecipe,
        SftRecipe, RewardRecipe, DpoRecipe, SimpoRecipe, KtoRecipe, PpoRecipe, GrpoRecipe, RlooRecipe,
        MeasureRecipe, BenchmarkRecipe, GradingRecipe, PlayRecipe,
    )
}  # fmt: skip


# Kinds with a page of their own: equation, paper, every field.
METHOD_PAGES = {
    **{kind: f"docs/methods/{kind}.md" for kind in ("sft", "reward", "dpo", "simpo", "kto", "ppo")},
    **dict.fromkeys(("grpo", "rloo"), "docs/methods/grpo-rloo.md"),
    **dict.fromkeys(("revise", "hand_over"), "docs/methods/critique-and-revise.md"),
    "best_of": "docs/methods/best-of-n.md",
    "in_context": "docs/methods/in-context.md",
}


def recipe_class(kind: str) -> type[Recipe]:
    """The recipe of a kind; raises Invalid."""
    if kind not in RECIPES:
        raise Invalid(f"There is no kind of run called “{kind[:60]}”. Kinds: {', '.join(RECIPES)}.")
    return RECIPES[kind]


def read_recipe(stored: dict[str, Any]) -> Recipe:
    """A recipe from its JSON, `kind` included; raises Invalid with messages by dotted field name."""
    values = dict(stored)
    cls = recipe_class(str(values.pop("kind", "")))
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error
