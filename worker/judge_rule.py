"""Judging by the rule: no call, no model, seeded errors."""

from app.judging.material import chunks, read_pairs
from app.judging.rule import opine_by_rule
from worker.job import Job
from worker.judge_book import Given, VerdictBook


def judge_by_rule(job: Job, book: VerdictBook) -> None:
    """Scores both completions by the rule; equal scores tie; a seeded share of the labels is flipped."""
    for ids in chunks(book.to_do):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        given = [Given(pair.id, opine_by_rule(pair, book.judge.settings, job.seed)) for pair in pairs]
        with job.write() as session:
            book.store(session, given)
            book.spend(session, judge_calls=len(given))
        book.progress()
        book.check_shares()
