"""How often a judge that rewards, or that watches, will be asked, known before the start."""

from collections.abc import Mapping
from typing import Any

from app.training.recipe_parts import SampledRecipe
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
    """A sentence for a judge that rewards, and one for a judge that only watches."""
    is_online = issubclass(recipe, PpoRecipe | GroupRecipe)
    limit = "" if values.get("budget_usd") else " No cost is set at which it stops."
    said = []
    if is_online and _is_chosen(values, "judge"):
        rollouts, dev = count_judge_calls(recipe, values)
        said.append(
            f"The judge scores up to {rollouts:,} completions of rollouts and {dev:,} dev samples: a call each, and "
            f"none for a text it has scored before.{limit}"
        )
    if (is_online or issubclass(recipe, SampledRecipe)) and _is_chosen(values, "held_out_judge"):
        n = f"{count_judge_calls(recipe, values)[1]:,} dev samples" if is_online else "16 dev samples at each look"
        said.append(f"The held-out judge scores up to {n}: a call each where it is an endpoint.{limit}")
    return said


def _is_chosen(values: Mapping[str, Any], name: str) -> bool:
    return str(values.get(name) or "").isdecimal()
