"""Preparing a blind grading: the same prompts through every arm, then items with shuffled sides and random tokens."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_arm, same_decoding
from app.checkpoints.models import Arm
from app.db import get
from app.errors import Invalid
from app.grading.items import make_grading
from app.grading.recipes import GradingRecipe
from app.pairs.models import Completion
from app.pairs.recipes import Decoding
from app.prompts.models import Prompt
from worker.generate import Item, pick_prompts, write_completions
from worker.job import Job


def prepare_grading(job: Job) -> None:
    """Samples what is missing and stores the grading with all its items in one transaction."""
    recipe: GradingRecipe = job.recipe
    prompts = pick_prompts(job, recipe, recipe.n_prompts)
    arms = _arms(job, recipe)
    write_completions(job, [arm for arm in arms if arm.kind != "imported"], [Item(prompt, 0) for prompt in prompts])
    with job.read() as session:
        written: dict[tuple[int, int], Completion] = {}
        for arm in arms:
            written |= _completions(session, job, arm, prompts)
    with job.write() as session:
        ids = [arm.id for arm in arms]
        grading = make_grading(session, recipe, job.project_id, job.run_id, job.seed, ids, written)
        job.made(session, "grading", grading.id)
        said = f"{grading.planned_n} items to grade, {grading.n_identical} more are identical: ties, never shown"
    job.log(said)
    odd = [arm.name for arm in arms if arm.kind != "imported" and not _is_sampled_alike(arm, recipe)]
    if odd:
        job.log(
            f"{', '.join(odd)}: sampled with other settings than the recipe’s, which may show in a win rate", "warning"
        )
    if grading.planned_n == 0:
        job.log("every completion is the same for all arms: there is nothing to grade", "warning")


def _is_sampled_alike(arm: Arm, recipe: GradingRecipe) -> bool:
    asked = same_decoding(recipe.decoding.model_dump())
    return {**Decoding().model_dump(), **arm.decoding} == asked


def _arms(job: Job, recipe: GradingRecipe) -> list[Arm]:
    """The recipe's arms in its order, checkpoints first; each once."""
    with job.write() as session:
        arms = [
            find_or_make_arm(session, job.project_id, checkpoint=checkpoint, decoding=recipe.decoding.model_dump())
            for checkpoint in recipe.checkpoints
        ]
        arms += [get(session, Arm, arm) for arm in recipe.arms]
        arms = list({arm.id: arm for arm in arms}.values())
    if len(arms) < 2:
        raise Invalid("These are one arm: choose at least two that differ.", {"checkpoints": ["at least two"]})
    return arms


def _completions(session: Session, job: Job, arm: Arm, prompts: Sequence[Prompt]) -> dict[tuple[int, int], Completion]:
    """(prompt, arm) → the completion: this run's own, or for an imported arm the newest there is."""
    wanted = {prompt.id for prompt in prompts}
    rows = select(Completion).where(Completion.arm_id == arm.id, Completion.sample == 0).order_by(col(Completion.id))
    if arm.kind != "imported":
        rows = rows.where(Completion.run_id == job.run_id)
    found = {(row.prompt_id, arm.id): row for row in session.exec(rows) if row.prompt_id in wanted}
    if len(found) < len(wanted):
        n = len(wanted) - len(found)
        raise Invalid(f"“{arm.name}” has no completion for {n} of {len(wanted)} prompts: import them, or leave it out.")
    return found
