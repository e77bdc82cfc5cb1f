"""The call ledger's turn by what it asks of the database: counted, since a clock would measure the machine."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlmodel import select

from app import db
from app.checkpoints.chat import ChatAnswer
from app.judging.models import Call, CallText, Judge, Opinion, Verdict
from app.projects.models import Project
from app.runs.models import Run
from tests.judging.rows import endpoint_judge, make_pairs, read, start
from worker.job import Job
from worker.judge_book import VerdictBook
from worker.judge_endpoint import PairWork, askings_of
from worker.ledger import Key, Ledger, take_turn

STATEMENTS = (
    9  # fence, settled calls, texts, intents, opinions, verdicts, counters, and the run's cost read and written
)


@contextmanager
def hear() -> Iterator[list[str]]:
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if not statement.startswith("BEGIN"):
            said.append(statement)

    sa.event.listen(db.engine(), "before_cursor_execute", note)
    yield said
    sa.event.remove(db.engine(), "before_cursor_execute", note)


def test_a_turn_says_few_statements_and_as_many_for_many_answers(project: Project) -> None:
    n, at_once = 100, 16
    with db.transaction() as session:
        pairs = make_pairs(session, project.id, [(f"q{i}", "x" * i, "yyy", None) for i in range(n)]).id
    judge_id = endpoint_judge(project.id, "http://127.0.0.1:1/v1")
    run = start(project.id, kind="judge", pair_set=pairs, judge=judge_id, is_both_orders=False, concurrency=n)
    job = Job(run.id, run.attempt)
    book = VerdictBook(job, job.recipe, read(Judge, judge_id))
    (seat,) = book.protocol.seats
    ledger = Ledger(job, PairWork(book, seat, askings_of(job, book, seat)), None, look_ahead=n)

    def answer(key: Key) -> tuple[Key, ChatAnswer]:
        said = {"reason": "", "verdict": "A", "nonce": ledger.in_flight[key].request["nonce"]}
        return key, ChatAnswer(json.dumps(said), "stop", 5, 3, tries=1, status=200)

    take_turn(ledger, [], at_once)  # looks up pairs and what is known of them, for many turns
    counts = {}
    for n_arrived in (1, 2, 4, 8, at_once):
        arrived = [answer(key) for key in list(ledger.in_flight)[:n_arrived]]
        with hear() as said:
            sent = take_turn(ledger, arrived, n_arrived)
        assert len(sent) == n_arrived
        counts[n_arrived] = len(said)
    assert set(counts.values()) == {STATEMENTS}, counts
    stored = sum(counts)
    with db.reading() as session:
        rows = {
            kind: session.scalar(sa.select(sa.func.count()).select_from(kind)) for kind in (Opinion, Verdict, CallText)
        }
        states = Counter(one.state for one in session.exec(select(Call)).all())
    assert rows == {Opinion: stored, Verdict: stored, CallText: stored}
    assert states == {"answered": stored, "intent": at_once}, "a row for each call before it leaves"
    assert read(Run, run.id).cost == {"judge_calls": stored, "judge_tokens": 8 * stored, "usd": 0, "labels": stored}
