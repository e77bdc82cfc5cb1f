"""Drawing a review queue: a random audit of a verdict set, or the pairs that most need a person."""

from app.db import get
from app.judging.models import VerdictSet
from app.review.queues import check_judging_is_over, make_queue
from app.review.recipes import AuditRecipe
from worker.job import Job


def draw_queue(job: Job) -> None:
    """Stores the queue with all its places in one transaction."""
    recipe: AuditRecipe = job.recipe
    with job.write() as session:
        check_judging_is_over(session, get(session, VerdictSet, recipe.verdict_set))
        queue = make_queue(session, recipe, job.project_id, job.run_id)
        session.flush()
        job.made(session, "queue", queue.id)
        n = queue.n
    if n < recipe.n:
        job.log(f"{recipe.n} pairs were asked for, {n} could be drawn", "warning")
    job.progress(n, n)
