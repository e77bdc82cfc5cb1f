"""How often a judge that rewards will be asked, known before the start."""

from collections.abc import Mapping
from typing import Any

from app.training.recipes import GroupRecipe, OnlineRecipe, PpoRecipe

MOST_DEV = 64  # dev prompts that an online run looks at; worker/rl_prompts.py keeps to it


def count_judge_calls(recipe: type[OnlineRecipe], values: Mapping[str, Any]) -> tuple[int, int]:
    """(scores of rollouts, scores of dev samples at most) of a form that may be half filled in."""

    def number(name: str) -> int:
        try:
            return max(0, int(values.get(name, recipe.model_fields[name].default)))
        except (TypeError, ValueError):
            return int(recipe.model_fields[name].default)

    if issubclass(recipe, PpoRecipe):
        steps, rollouts = number("iterations"), number("iterations") * number("rollouts")
    else:
        steps = number("steps")
        a_step = number("prompts_per_step") * number("group_size")
        rollouts = -(-steps // max(1, number("num_iterations"))) * a_step
    return rollouts, MOST_DEV * (steps // max(1, number("sample_every")) + 2)


def say_judge_calls(recipe: type[Any], values: Mapping[str, Any]) -> list[str]:
    """One sentence where a judge is chosen."""
    if not issubclass(recipe, PpoRecipe | GroupRecipe) or not str(values.get("judge") or "").isdecimal():
        return []
    rollouts, dev = count_judge_calls(recipe, values)
    limit = "" if values.get("budget_usd") else " No cost is set at which it stops."
    return [
        f"The judge scores up to {rollouts:,} completions of rollouts and {dev:,} dev samples: a call each, and none "
        f"for a text it has scored before.{limit}"
    ]
