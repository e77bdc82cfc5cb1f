"""An arm that follows a constitution in context: a row and nothing else, since nothing is trained."""

from app.constitutions.models import Constitution
from app.db import get
from app.revising.in_context_arm import build_in_context_arm
from app.revising.recipes import InContextRecipe
from worker.job import Job


def make_in_context(job: Job) -> None:
    """Stores the arm; the same recipe twice is the same arm."""
    recipe: InContextRecipe = job.recipe
    with job.write() as session:
        constitution = get(session, Constitution, recipe.constitution)
        arm = build_in_context_arm(session, job.project_id, constitution, recipe, recipe.few_shot, recipe.name)
        job.made(session, "arm", arm.id, arm.sha256)
