"""The prompts of an online run: train to learn from, dev to look at; too long ones are left out and counted."""

from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from app.db import get
from app.errors import AppError
from app.prompts.models import Prompt, PromptSet
from worker.job import Job
from worker.loading import encode_prompt, render_prompt

MAX_DEV = 64  # enough to see a curve; the test split is for the benchmarks


@dataclass(frozen=True)
class RlPrompt:
    """A prompt to train on: its messages, its token ids and, for the rule, its reference answer."""

    messages: list[dict[str, str]]
    ids: list[int]
    reference: str | None = None


def prompts_of(job: Job, tokenizer: Any, context: int | None) -> tuple[list[RlPrompt], list[RlPrompt]]:
    """(train, dev) of the recipe's prompt set, in its order."""
    recipe = job.recipe
    longest = recipe.max_prompt_tokens
    if context:
        longest = min(longest, context - recipe.max_new_tokens)
    if longest < 1:
        raise AppError(
            f"{recipe.max_new_tokens} new tokens leave no room for a prompt in {context} tokens: ask for fewer.",
            {"max_new_tokens": [f"at most {(context or 0) - 1}, less the prompt"]},
        )
    with job.read() as session:
        name = get(session, PromptSet, recipe.prompt_set).name
        chosen = (
            select(Prompt)
            .where(Prompt.set_id == recipe.prompt_set, col(Prompt.split).in_(["train", "dev"]))
            .order_by(col(Prompt.position))
        )
        rows = session.exec(chosen).all()
    parts: dict[str, list[RlPrompt]] = {"train": [], "dev": []}
    n_long = 0
    for row in rows:
        ids = encode_prompt(tokenizer, render_prompt(tokenizer, row.messages))
        if len(ids) > longest:
            n_long += 1
        else:
            parts[row.split].append(RlPrompt(row.messages, ids, row.reference))
    if not parts["train"]:
        raise AppError(
            f"The prompt set {name} has no train prompt of at most {longest} tokens ({n_long} are longer): "
            "choose another set, or fewer new tokens."
        )
    if n_long:
        job.log(f"{n_long} prompts longer than {longest} tokens are left out", "warning")
    return parts["train"], parts["dev"][:MAX_DEV]
