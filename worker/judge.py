"""Judging a pair set: by an endpoint, a checkpoint, a reward model, a rule or a panel. Adding judges and endpoints."""

from app.checkpoints.endpoints import make_endpoint
from app.db import get
from app.errors import AppError
from app.judging.judges import make_judge
from app.judging.models import Judge
from app.judging.protocol import Seat
from app.judging.recipes import JudgeRecipe
from app.runs.queue import outputs
from worker.job import Job
from worker.judge_book import VerdictBook
from worker.judge_endpoint import judge_by_endpoint
from worker.judge_rule import judge_by_rule


def judge_pairs(job: Job) -> None:
    """Every pair that has no verdict yet gets one. Resuming goes on with what is not done."""
    judge_set(job, job.recipe)


def judge_set(job: Job, recipe: JudgeRecipe, *, name: str = "", is_hidden: bool = False) -> int:
    """Judges recipe.pair_set as a part of any run: one verdict set for each run and pair set. Gives the set's id.

    Several sets may be judged in one run; each is resumed by itself. A hidden one is archived from the start.
    """
    with job.read() as session:
        judge = get(session, Judge, recipe.judge)
    if judge.kind == "imported":
        raise AppError(f"“{judge.name}” came with its labels: it judges nothing. Choose another judge.")
    book = VerdictBook(job, recipe, judge, name=name, is_hidden=is_hidden)
    book.progress()
    for seat in book.protocol.seats:
        if len(book.protocol.seats) > 1:
            job.log(f"the panel's member “{seat.name}” judges")
        judge_seat(job, book, seat)
    book.check_shares(is_end=True)
    book.progress()
    return book.set_id


def judge_seat(job: Job, book: VerdictBook, seat: Seat) -> None:
    """What one judge has to say of every pair."""
    if seat.kind == "endpoint":
        judge_by_endpoint(job, book, seat)
    elif seat.kind == "rule":
        judge_by_rule(job, book, seat)
    else:
        from worker.judge_local import judge_by_checkpoint, judge_by_reward  # loads torch

        (judge_by_checkpoint if seat.kind == "checkpoint" else judge_by_reward)(job, book, seat)


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
                requests_per_minute=recipe.requests_per_minute, tokens_per_minute=recipe.tokens_per_minute,
                extra_body=recipe.extra_body,
            )  # fmt: skip
            job.made(session, "endpoint", row.id)
    job.progress(1, 1)
