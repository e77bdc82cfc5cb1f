"""Drawing a review queue: a random sample, the pairs that most need a person, or those on which people split."""

from app.db import get
from app.judging.models import RatingSet, VerdictSet
from app.review.coverage import read_part
from app.review.queues import check_judging_is_over, make_queue
from app.review.recipes import AuditRecipe
from app.runs.models import Run
from worker.job import Job


def draw_queue(job: Job) -> None:
    """Stores the queue with all its places in one transaction."""
    recipe: AuditRecipe = job.recipe
    with job.write() as session:
        source = (
            get(session, RatingSet, recipe.rating_set or 0)
            if recipe.purpose == "scoring"
            else get(session, VerdictSet, recipe.verdict_set or 0)
        )
        check_judging_is_over(session, source)
        queue = make_queue(session, recipe, job.project_id, job.run_id)
        session.flush()
        job.made(session, "queue", queue.id)
        run = get(session, Run, job.run_id)
        run.cost = {**run.cost, "drawn_from": source.n}
        n, part = queue.n, read_part(session, queue)
    if part.said:
        job.log(part.said, "warning")
    if n < recipe.n and recipe.purpose != "adjudication":
        what = "completions" if recipe.purpose == "scoring" else "pairs"
        job.log(f"{recipe.n} {what} were asked for, {n} could be drawn", "warning")
    job.progress(n, n)
