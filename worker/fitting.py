"""Leaves out the rows that are too long, before a trainer sees them: one rule for every method (app/training/rows.py).

TRL by itself would drop them in reward models, and cut them in SFT, DPO and KTO, without a word.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.db import get
from app.errors import AppError
from app.runs.models import Run
from app.training.recipe_parts import OfflineRecipe
from app.training.rows import measure_fit, sides_read
from worker.job import Job, Watch
from worker.llm import encode_parts
from worker.loading import Weights, context_of, encode_prompt, render_prompt
from worker.preferences import Preferences, Row

Count = Callable[[Row, str], int]


def count_whole(tokenizer: Any) -> Count:
    """How many tokens prompt and completion are together, its end included, as TRL reads them."""

    def count(row: Row, side: str) -> int:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
        else:
            text = render_prompt(tokenizer, row["prompt"]) + row[side][0]["content"]
            end = tokenizer.eos_token or ""
            text = text if text.endswith(end) else text + end
        return len(encode_prompt(tokenizer, text))

    return count


def count_parts(tokenizer: Any) -> Count:
    """The same for a bi-encoder, whose towers read the two apart."""
    return lambda row, side: sum(map(len, encode_parts(tokenizer, row["prompt"], row[side][0]["content"])))


def limit_of(recipe: OfflineRecipe, start: Weights) -> int:
    """The longest text in tokens: the recipe's, or what the model was made for where that is less."""
    return min(recipe.max_length, context_of(start) or recipe.max_length)


def keep_fitting(
    watch: Watch, recipe: OfflineRecipe, start: Weights, preferences: Preferences, count: Count,
    noun: str = "preferences",
) -> Preferences:  # fmt: skip
    """The rows that fit, with what was left out; says so in the log. Raises AppError where none is left to train on."""
    limit, sides = limit_of(recipe, start), sides_read(recipe.kind)
    lengths = [
        [max(count(row, side) for side in sides) for row in rows] for rows in (preferences.train, preferences.dev)
    ]  # fmt: skip
    fit = measure_fit(lengths[0], lengths[1], limit, recipe.max_length)
    if fit.say_lowered():
        watch.log(fit.say_lowered())
    if not fit.train:
        raise AppError(fit.say_nothing_fits(noun))
    watch.log(fit.say(noun), "warning" if fit.left_out or fit.dev_left_out else "info")
    if fit.n_dev and not fit.dev:
        watch.log("no dev row fits: nothing is measured on dev", "warning")
    kept = [
        [row for row, n in zip(rows, counted, strict=True) if n <= limit]
        for rows, counted in zip((preferences.train, preferences.dev), lengths, strict=True)
    ]
    return replace(preferences, train=kept[0], dev=kept[1], fit=fit)


def note_fit(job: Job, preferences: Preferences) -> None:
    """Counts what was left out beside the run's cost, once for all attempts."""
    fit = preferences.fit
    if fit is None:
        return
    with job.read() as session:
        is_known = "row_limit" in get(session, Run, job.run_id).cost
    if not is_known:
        job.spend(row_limit=fit.limit, left_out_rows=fit.left_out, left_out_dev_rows=fit.dev_left_out)


def facts_of_rows(preferences: Preferences) -> dict[str, Any]:
    """For a checkpoint's facts: of how many rows it was trained, and how many were too long."""
    return {"rows": preferences.fit.facts()} if preferences.fit else {}
