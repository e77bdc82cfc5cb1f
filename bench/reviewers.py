"""Reviewers at work over HTTP: one, then eight on one queue, for a minute: latencies, double assignments, lost answers.

    python -m bench.reviewers [--seconds 60] [--n 100000] [--database sqlite|postgres]

Seeds an audit, serves it with the real app (uvicorn, one process), and lets each reviewer take pairs and answer them as
fast as they can, going on by itself: the reply to an answer holds the next pair. Afterwards the database is asked: a
pair given to two people is a double assignment, an answer the server acknowledged and did not keep is a lost one.
"""

import argparse
import contextlib
import re
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import sqlalchemy as sa
from sqlmodel import col

from app import db
from app.accounts.logins import COOKIE
from app.review.models import Answer
from bench.web import make_database, p95, serve
from tests.servers import run_postgres


@dataclass
class Reviewed:
    """What the reviewers of one trial were given and what the server acknowledged."""

    took: list[float] = field(default_factory=list)  # ms to take the first pair: POST, redirect, page
    went_on: list[float] = field(default_factory=list)  # ms from an answer to the next pair on the screen
    stored: list[float] = field(default_factory=list)  # ms of that until the answer was acknowledged
    shown: list[tuple[str, int]] = field(default_factory=list)  # (cookie, place)
    acknowledged: list[int] = field(default_factory=list)  # places
    failures: list[str] = field(default_factory=list)


def review(url: str, queue: str, cookies: list[str], seconds: float) -> Reviewed:
    """People take and answer pairs of one queue as fast as they can, each over a connection of their own."""
    done = Reviewed()
    threads = [threading.Thread(target=_work, args=(done, url, queue, cookie, seconds)) for cookie in cookies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def _work(done: Reviewed, url: str, queue: str, cookie: str, seconds: float) -> None:
    root = queue.rpartition("/")[0]
    until = time.monotonic() + seconds
    with httpx.Client(base_url=url, cookies={COOKIE: cookie}, timeout=60) as client:
        began = time.perf_counter()
        page = client.post(f"{queue}/next", data={"auto": "1"}, follow_redirects=True)
        done.took.append((time.perf_counter() - began) * 1000)
        while time.monotonic() < until:
            found = re.search(rf'action="{root}/answers/(\d+)"', page.text)
            if page.status_code != 200 or found is None:
                if "All answered" not in page.text and "Nothing is left for you" not in page.text:
                    done.failures.append(f"{page.status_code} {page.text[:300]}")
                return
            place = int(found[1])
            done.shown.append((cookie, place))
            began = time.perf_counter()
            answer = client.post(f"{root}/answers/{place}", data={"choice": "tie", "auto": "1"})
            if answer.status_code != 303:
                done.failures.append(f"{answer.status_code} {answer.text[:300]}")
                return
            done.acknowledged.append(place)
            stored = time.perf_counter()
            page = client.get(answer.headers["location"])
            done.stored.append((stored - began) * 1000)
            done.went_on.append((time.perf_counter() - began) * 1000)
        client.post(f"{queue}/release")  # the pair on the screen goes back


def doubles(done: Reviewed, overlap: int = 1) -> int:
    """Places shown twice, by whomever; and pairs shown to more people than the overlap asks for."""
    places = [place for _, place in done.shown]
    with db.reading() as session:
        rows = session.execute(sa.select(col(Answer.id), col(Answer.pair_id))).all()
    pair_of = {row.id: row.pair_id for row in rows}
    people: dict[int, list[str]] = {}
    for cookie, place in done.shown:
        people.setdefault(pair_of[place], []).append(cookie)
    too_many = sum(len(them) > overlap or len(set(them)) < len(them) for them in people.values())
    return len(places) - len(set(places)) + too_many


def lost(done: Reviewed) -> int:
    """Answers that the server acknowledged and the database does not hold."""
    with db.reading() as session:
        kept = set(session.execute(sa.select(col(Answer.id)).where(col(Answer.first) == "tie")).scalars())
    return len(set(done.acknowledged) - kept)


def main() -> int:
    """Seeds, serves, measures, prints; exit code 1 when anything was assigned twice or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    args = parser.parse_args()
    n_bad = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preflab-reviewers-")))
        server = stack.enter_context(run_postgres()) if args.database == "postgres" else ""
        site = stack.enter_context(serve(args.n, folder, make_database(server, "reviewers") if server else ""))
        print(f"database: {args.database}; ms, p50 and p95")
        for n_people in (1, 8):
            cookies = site.seeded.graders[:n_people]
            done = review(site.url, "/p/big/review/1", cookies, args.seconds if n_people > 1 else args.seconds / 4)
            n_double, n_lost = doubles(done), lost(done)
            n_bad += n_double + n_lost + len(done.failures)
            stored, went_on = (
                f"{statistics.median(times):.1f} {p95(times):.1f}" for times in (done.stored, done.went_on)
            )
            print(
                f"{n_people} reviewing: submit {stored}; answer to the next pair shown {went_on}; "
                f"{len(done.acknowledged):,} answers; double assignments {n_double}, lost answers {n_lost}, "
                f"failures {len(done.failures)}",
                flush=True,
            )
            db.engine().dispose()  # a throw-away Postgres waits for its connections when it ends
            for failure in done.failures[:3]:
                print(failure)
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
