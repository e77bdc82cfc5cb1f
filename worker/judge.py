"""Judging a pair set: by an endpoint, a checkpoint, a reward model or a rule. Also: adding judges and endpoints."""

from app.checkpoints.endpoints import make_endpoint
from app.db import get
from app.errors import AppError
from app.judging.judges import make_judge
from app.judging.models import Judge
from app.runs.queue import outputs
from worker.job import Job
from worker.judge_book import VerdictBook
from worker.judge_endpoint import judge_by_endpoint
from worker.judge_rule import judge_by_rule


def judge_pairs(job: Job) -> None:
    """Every pair that has no verdict yet gets one. Resuming goes on with what is not done."""
    with job.read() as session:
        judge = get(session, Judge, job.recipe.judge)
    if judge.kind == "imported":
        raise AppError(f"“{judge.name}” came with its labels: it judges nothing. Choose another judge.")
    book = VerdictBook(job, job.recipe, judge)
    book.progress()
    if judge.kind == "endpoint":
        judge_by_endpoint(job, book)
    elif judge.kind == "rule":
        judge_by_rule(job, book)
    else:
        from worker.judge_local import judge_by_checkpoint, judge_by_reward  # loads torch

        (judge_by_checkpoint if judge.kind == "checkpoint" else judge_by_reward)(job, book)
    book.check_shares(is_end=True)
    book.progress()


def add_judge(job: Job) -> None:
    """Makes a judge, once."""
    with job.write() as session:
        if not outputs(session, job.run_id, "judge"):
            job.made(session, "judge", make_judge(session, job.project_id, job.recipe).id)
    job.progress(1, 1)


def add_endpoint(job: Job) -> None:
    """Makes an endpoint that needs no key, once. It is not called: its page tests the connection."""
    recipe = job.recipe
    with job.write() as session:
        if not outputs(session, job.run_id, "endpoint"):
            row = make_endpoint(
                session, job.project_id, name=recipe.name, origin=recipe.origin, model=recipe.model,
                usd_per_million_in=recipe.usd_per_million_in, usd_per_million_out=recipe.usd_per_million_out,
            )  # fmt: skip
            job.made(session, "endpoint", row.id)
    job.progress(1, 1)
