"""Pages do not grow with the data: as many statements at 2,000 pairs as at 20,000, and no plan that walks a table.

How long they take is measured by bench/web.py; what people wait for most, an answer and the next pair, is also held to
a number of statements, since each costs the server more of its time than the database.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session
from starlette.requests import Request
from starlette.testclient import TestClient

from app import db
from app.accounts.logins import COOKIE
from app.judging.models import VerdictSet
from app.judging.pages import verdicts_table
from app.tables import BATCH, CHUNK, respond
from bench.million import Seeded, seed
from bench.web import PAGES, resolve
from tests.conftest import forget_settings

LARGE = {"prompt", "completion", "pair", "opinion", "verdict", "answer"}
NEXT, ANSWER = "POST /p/big/review/1/next", "answer a pair"


class Watched:
    """A client, and the statements that its requests send."""

    def __init__(self, seeded: Seeded) -> None:
        from app.main import create_app

        self.client = TestClient(create_app(), base_url="http://127.0.0.1", cookies={COOKIE: seeded.owner})
        self.sent: list[tuple[str, Any]] = []
        sa.event.listen(db.engine(), "before_cursor_execute", self._hear)

    def _hear(self, _connection: Any, _cursor: Any, statement: str, given: Any, *_more: Any) -> None:
        if not statement.startswith(("BEGIN", "SAVEPOINT", "RELEASE")):
            self.sent.append((statement, given))

    def statements(self, address: str) -> list[tuple[str, Any]]:
        """What a page asks the database."""
        self.sent.clear()
        answer = self.client.get(address)
        assert answer.status_code == 200, answer.text[:500]
        return list(self.sent)

    def review(self) -> dict[str, list[tuple[str, Any]]]:
        """What taking and answering a pair asks the database."""
        self.sent.clear()
        page = self.client.post("/p/big/review/1/next", follow_redirects=True)
        found = {NEXT: list(self.sent)}
        address = page.text.partition('action="/p/big/review/answers/')[2].partition('"')[0]
        self.sent.clear()
        assert self.client.post(f"/p/big/review/answers/{address}", data={"choice": "left"}).status_code == 200
        return found | {ANSWER: list(self.sent)}


def walks(connection: sa.Connection, statement: str, given: Any) -> list[str]:
    """The steps of SQLite's plan that read a large table from its front, or sort more than one page's rows."""
    cursor = connection.connection.cursor()
    cursor.execute(f"EXPLAIN QUERY PLAN {statement}", given)
    steps = [str(row[3]) for row in cursor.fetchall()]
    found = [step for step in steps if step.startswith("SCAN ") and step.split()[1] in LARGE]
    # sorting all the rows of one set is as bad as scanning them: only sets of few rows may be sorted
    by_set = any(f"{column}=?)" in step for step in steps for column in ("(set_id", "(pair_set_id", "(verdict_set_id"))
    by_set = by_set and statement.count("LIMIT") < 2  # what is sorted comes from a part that has a limit of its own
    return found + ([step for step in steps if step == "USE TEMP B-TREE FOR ORDER BY"] if by_set else [])


def fill(n: int, template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    folder.mkdir()
    (folder / "preflab.db").write_bytes(template.read_bytes())
    monkeypatch.setenv("PREFLAB_DATA", str(folder))
    forget_settings()
    return Watched(seed(n))


def test_pages_ask_the_same_of_a_large_set_as_of_a_small_one(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[dict[str, int]] = []
    for n in (2_000, 20_000):
        watched = fill(n, sqlite_template, tmp_path / str(n), monkeypatch)
        asked = {name: watched.statements(resolve(watched.client, page)) for name, page in PAGES.items()}
        # sides exchanged by a coin and labels overridden cost a statement or two: the plainest of some counts
        trials = [watched.review() for _ in range(7)][1:]
        asked |= {part: min((trial[part] for trial in trials), key=len) for part in trials[0]}
        counts.append({name: len(sent) for name, sent in asked.items()})
        with db.engine().connect() as connection:
            found = {
                f"{name}: {step} in {statement}": None
                for name, sent in asked.items()
                for statement, given in sent
                for step in walks(connection, statement, given)
            }
        assert not found, "\n".join(found)
    assert counts[0] == counts[1]
    assert max(counts[0].values()) < 40
    assert counts[0][NEXT] <= 14 and counts[0][ANSWER] <= 22, counts[0]


def test_the_plans_would_show_a_walk(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(100, sqlite_template, tmp_path / "few", monkeypatch)
    with db.engine().connect() as connection:
        assert walks(connection, "SELECT count(*) FROM verdict WHERE reason = ?", ("x",))
        assert walks(connection, "SELECT * FROM verdict WHERE verdict_set_id = ? ORDER BY reason LIMIT 50", (1,))
        assert not walks(connection, "SELECT * FROM verdict WHERE verdict_set_id = ? ORDER BY pair_id LIMIT 50", (1,))


@pytest.fixture
def read_rows(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many verdicts have been fetched so far, from 5,000."""
    watched = fill(5_000, sqlite_template, tmp_path / "export", monkeypatch)
    return lambda: sum(given[-2] if "LIMIT ? OFFSET ?" in text else 0 for text, given in watched.sent)


@pytest.mark.parametrize("fmt", ["csv", "jsonl"])
def test_a_download_leaves_before_its_last_row_is_read(read_rows: Callable[[], int], fmt: Any) -> None:
    with db.reading() as session:
        chunks = _stream(session, fmt)
        first = next(chunks)
        assert len(first.splitlines()) <= BATCH + 1
        assert read_rows() <= CHUNK + 1
        rest = "".join([first, *chunks])
    assert len(rest.splitlines()) == 5_000 + (fmt == "csv")
    assert read_rows() >= 5_000


def _stream(session: Session, fmt: Any) -> Iterator[str]:
    """A download's parts, one at a time."""
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})
    answer: Any = respond(request, session, verdicts_table(db.get(session, VerdictSet, 1)), fmt, "")
    parts = answer.body_iterator
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:  # an open browser of an earlier test keeps this one's event loop running
        while True:
            part = thread.submit(loop.run_until_complete, anext(parts, None)).result()
            if part is None:
                break
            yield part
    loop.close()
