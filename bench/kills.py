"""kill -9 of a judging run, again and again: nothing lost, nothing doubled, no more paid for twice than was in flight.

    python -m bench.kills [--kills 50] [--pairs 1000] [--concurrency 16] [--seed 1]

The run's real child process (`python -m worker.child`) judges the pairs in both orders against the tests' mock
endpoint, its ledger in SQLite in a fresh folder. The points are drawn by the seed: a number of requests that the
endpoint has got by then, and up to 40 ms more, so that kills fall before, within and after a transaction. “In flight”
are the intents that stand in the ledger when the process is dead, “re-paid” the requests of the next attempt that the
endpoint had got before. Lost: a pair without the verdict the mock's rule gives, or a call without its answer; doubled:
a verdict, opinion, counted label or counted call too many. Ends with 1 if anything is lost, doubled, or re-paid beyond
what was in flight.
"""

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from app import db
from app.judging.models import Call, Opinion, Verdict
from app.runs.models import Run
from app.runs.queue import give_back
from tests.benchmarks.rows import fresh_project
from tests.chat_server import ChatServer, Request, candidates
from tests.judging.rows import claim_next, endpoint_judge, make_pairs, read, set_of, spawn, start

DELAY_S = 0.05  # of the mock's answers
PATIENCE_S = 120.0


@dataclass
class Kill:
    """One kill: how many requests had come, what was in flight, and what of it was asked again."""

    requests: int
    in_flight: int
    repaid: int = 0


def key_of(request: Request) -> tuple[str, str]:
    """What a request asks, whatever its nonce: the candidates as they stand in it, each of them there once."""
    return candidates(request)


def texts(i: int) -> tuple[str, str, str, None]:
    """A pair whose right verdict is known: the longer side, or a tie. Its texts stand nowhere else."""
    return f"question {i}", f"a of {i:04} {'x' * (i % 7)}", f"b of {i:04} yyy", None


def kill_at(run: Run, server: ChatServer, point: int, later_s: float) -> Kill:
    """An attempt that is killed once the endpoint has got so many requests."""
    child = spawn(run)
    point, until = max(point, len(server.requests) + 1), time.monotonic() + PATIENCE_S
    while len(server.requests) < point:
        if child.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the attempt ended by itself, or does not come to {point} requests")
        time.sleep(0.001)
    time.sleep(later_s)
    child.kill()
    child.wait()
    with db.reading() as session:
        query = select(sa.func.count()).select_from(Call).where(Call.run_id == run.id, Call.state == "intent")
        in_flight = session.exec(query).one()
    with db.transaction() as session:
        give_back(session, run.id, run.attempt, is_death=True, why="killed by the bench")
        db.get(session, Run, run.id).deaths = 0  # a run gives up after a few deaths: here they are the point
    return Kill(len(server.requests), in_flight)


def finish(run: Run) -> None:
    """The last attempt, which nobody kills."""
    child = spawn(run)
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        raise SystemExit("the last attempt does not come to an end") from None
    ended = read(Run, run.id)
    if ended.status != "done":
        raise SystemExit(f"the run ended {ended.status}: {ended.error}")


def count_repaid(kills: list[Kill], requests: list[Request]) -> int:
    """Notes with each kill what the next attempt asked again; returns how often one attempt asked the same twice."""
    seen: set[tuple[str, str]] = set()
    n_twice, bounds = 0, [0, *(one.requests for one in kills), len(requests)]
    for place, (first, last) in enumerate(pairwise(bounds)):
        asked = Counter(map(key_of, requests[first:last]))
        n_twice += sum(n - 1 for n in asked.values())
        if place:
            kills[place - 1].repaid = len(seen & asked.keys())
        seen |= asked.keys()
    return n_twice


def check_rows(run: Run, n: int) -> tuple[int, int]:
    """(lost, doubled) by what stands in the database."""
    found = set_of(run)
    cost = read(Run, run.id).cost
    with db.reading() as session:
        verdicts = session.exec(
            select(Verdict).where(Verdict.verdict_set_id == found.id).order_by(col(Verdict.pair_id))
        )
        said: list[tuple[int, Any]] = [(one.pair_id, one.outcome) for one in verdicts]
        opinions = session.exec(select(Opinion).where(Opinion.verdict_set_id == found.id)).all()
        keys = [(one.pair_id, one.is_swapped, one.sample) for one in opinions if one.choice is not None]
        calls = session.exec(select(Call.state).where(Call.run_id == run.id)).all()
    right = [_longer(*texts(i)[1:3]) for i in range(n)]
    outcomes = dict(said)
    n_right = sum(one == outcomes[pair] for pair, one in zip(sorted(outcomes), right, strict=False))
    lost = (n - n_right) + (2 * n - len(set(keys))) + (2 * n - calls.count("answered"))
    counted = int(cost["labels"]) - n, int(cost["judge_calls"]) - 2 * n, found.n - n, len(calls) - 2 * n
    doubled = len(said) - len(outcomes) + len(keys) - len(set(keys)) + sum(max(0, one) for one in counted)
    return lost + sum(max(0, -one) for one in counted), doubled


def _longer(a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else ("a" if len(a) > len(b) else "b")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    points = sorted(rng.sample(range(1, 2 * given.pairs - given.concurrency), given.kills))
    with tempfile.TemporaryDirectory() as folder, ChatServer(delay_s=DELAY_S) as server:
        os.environ["PREFLAB_DATA"] = folder
        db.upgrade()
        project = fresh_project()
        with db.transaction() as session:
            pairs = make_pairs(session, project.id, [texts(i) for i in range(given.pairs)]).id
        judge = endpoint_judge(project.id, server.origin)
        run = start(project.id, kind="judge", pair_set=pairs, judge=judge, concurrency=given.concurrency)
        kills = []
        for point in points:
            kills.append(kill_at(run, server, point, rng.uniform(0, 0.04)))
            run = claim_next()
        finish(run)
        n_twice = count_repaid(kills, server.requests)
        lost, doubled = check_rows(run, given.pairs)
        db.engine().dispose()
    report(kills, lost, doubled, n_twice, len(server.requests))


def report(kills: list[Kill], lost: int, doubled: int, n_twice: int, n_requests: int) -> None:
    """The table, and the exit code."""
    print("kill  after requests  in flight  re-paid")
    for number, one in enumerate(kills, 1):
        print(f"{number:>4}{one.requests:>16}{one.in_flight:>11}{one.repaid:>9}")
    beyond = sum(one.repaid > one.in_flight for one in kills)
    print(
        f"{len(kills)} kills, {n_requests:,} requests: lost {lost}, doubled {doubled}, asked twice within an attempt "
        f"{n_twice}, re-paid {sum(one.repaid for one in kills)} of {sum(one.in_flight for one in kills)} in flight "
        f"(at most {max(one.repaid for one in kills)} at once); kills with more re-paid than in flight: {beyond}"
    )
    if lost or doubled or n_twice or beyond:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
