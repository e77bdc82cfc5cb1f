"""Judging by the rule: no call, no model, seeded errors."""

from app.db import get
from app.judging.material import chunks, read_pairs
from app.judging.models import Judge
from app.judging.protocol import Seat
from app.judging.rule import opine_by_rule
from worker.job import Job
from worker.judge_book import VerdictBook, given
from worker.ledger import add_cost


def judge_by_rule(job: Job, book: VerdictBook, seat: Seat) -> None:
    """Scores both completions by the rule; equal scores tie; a seeded share of the labels is flipped."""
    with job.read() as session:
        settings = get(session, Judge, seat.judge_id).settings
    for ids in chunks(book.to_do):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        found = [
            given(seat, pair.id, asked, opine_by_rule(pair, settings, book.recipe.seed))
            for pair in pairs for asked in book.missing(seat, pair.id)
        ]  # fmt: skip
        with job.write() as session:
            labels = book.store(session, found)
            add_cost(session, job.run_id, judge_calls=len(found), **labels)
        book.progress()
        book.check_shares()
