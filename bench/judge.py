"""Judging in flight: a real run with its ledger beside a plain AsyncOpenAI loop, against one mock server in one run.

    python -m bench.judge [--concurrency 32 64 128 256] [--calls 10] [--repeats 3] [--peer LOOP=PYTHON ...]
    python -m bench.judge --faults ten [--concurrency 128] [--hang 60]

The mock server (bench/judge_server.py, a process of its own) answers after a lognormal wait of a second on average and
fails 2 % of the calls: by a quick 503, or with `--faults ten` in ten ways, of which one is to hang. Ours is a run as
users start it: pairs read from SQLite, an intent row before each call, and answer, opinion and verdict stored after it.
The plain loop stores nothing. What is printed of each client:

- of allowed: how many requests the server held, as a mean over time divided by the allowed concurrency, from when a
  tenth of the calls have come until a concurrency's worth is left: the steady state. A request that hangs is held too;
- calls/s: requests that came a second in the steady state;
- of possible: calls that got an answer a second, from the first to the last, divided by the concurrency: the wait is a
  second on average, so more is not possible. The end counts, when a few slow calls are waited for;
- CPU ms/call: CPU of the client's process in the steady state, its threads included, divided by the calls of that time;
- start and end: what the run takes beside that in CPU milliseconds, however many calls it has: its start, connections,
  statements said for the first time, the verdict set, its end. Without the start of the process.

Of the repeats the best is printed. `--peer distilabel=PYTHON` measures others at 128 as well (bench/judge_peer.py),
each by the Python of an environment of its own: distilabel's loop (`pip install "distilabel[openai]" requests`), and
the plain loop of an AsyncOpenAI of another version, `openai=PYTHON` and `gather=PYTHON` (`pip install "openai<3"`: over
httpx 0.28, as most environments of the field have it). Of such a process only its whole CPU a call is known.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.judge_server import Steady, serve

TEXT = "words of a completion, as long as most are. " * 20
PEER = Path(__file__).with_name("judge_peer.py")
SHORT_S = 10.0  # a deadline for one try that a careful user would set, knowing that answers take a second


@dataclass(frozen=True)
class Told:
    """What a client's process says of its run."""

    n_failed: int
    cpu_s: float
    seconds: float
    samples: list[tuple[float, float]] = field(default_factory=list)  # (time, CPU seconds so far)
    name: str = ""  # what a peer calls itself, its version included


@dataclass(frozen=True)
class Figure:
    """One client at one concurrency."""

    steady: Steady
    told: Told
    n: int
    concurrency: int

    @property
    def share(self) -> float:
        """Of the allowed calls in flight, on average in the steady state."""
        return self.steady.held / self.concurrency

    @property
    def of_possible(self) -> float:
        """Answered calls a second over the whole run, of those that a full house would give."""
        return (self.n - self.told.n_failed) / self.told.seconds / self.concurrency

    @property
    def cpu_ms(self) -> float:
        """Of the client's process, a call: in the steady state; of a process without samples, over all."""
        if not self.told.samples:
            return 1000 * self.told.cpu_s / self.n
        spent = _cpu_at(self.told.samples, self.steady.until) - _cpu_at(self.told.samples, self.steady.since)
        calls = self.steady.n_requests * self.n / self.steady.n_seen  # a call that failed was requested again
        return 1000 * spent / calls

    @property
    def fixed_ms(self) -> float | None:
        """CPU beside that of the calls."""
        return 1000 * self.told.cpu_s - self.cpu_ms * self.n if self.told.samples else None


def _cpu_at(samples: list[tuple[float, float]], at: float) -> float:
    """CPU seconds at a moment, between the two samples around it."""
    for (t0, cpu0), (t1, cpu1) in pairwise(samples):
        if t0 <= at <= t1:
            return cpu0 + (cpu1 - cpu0) * (at - t0) / (t1 - t0)
    return samples[0][1] if at < samples[0][0] else samples[-1][1]


def clocked(work: Callable[[], int]) -> Told:
    """Does the work, which gives how many calls failed, while a thread writes down the CPU twenty times a second."""
    samples = [(time.monotonic(), time.process_time())]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            samples.append((time.monotonic(), time.process_time()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    n_failed = work()
    samples.append((time.monotonic(), time.process_time()))
    is_over.set()
    thread.join()
    (start, cpu), (end, cpu_end) = samples[0], max(samples)
    return Told(n_failed, cpu_end - cpu, end - start, sorted(samples))


def run_ours(origin: str, n: int, concurrency: int, **settings: Any) -> Told:
    """A judging of n pairs in one order by the real worker function; failed are pairs without a verdict."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFLAB_DATA"] = folder
        from app import db
        from app.accounts.logins import make_account
        from app.checkpoints.endpoints import make_endpoint
        from app.config import settings as where
        from app.judging.judges import make_judge
        from app.judging.models import VerdictSet
        from app.judging.recipes import NewJudgeRecipe
        from app.projects.projects import make_project
        from app.recipes import read_recipe
        from app.runs.queue import claim, launch, outputs
        from tests.judging.rows import make_pairs
        from worker.child import work

        where.cache_clear()
        db.engine.cache_clear()
        db.upgrade()
        with db.transaction() as session:
            project = make_project(session, "bench", "bench", make_account(session, "bench"))
            pairs = make_pairs(session, project.id, [(f"question {i}", f"{i} {TEXT}", TEXT, None) for i in range(n)])
            endpoint = make_endpoint(session, project.id, origin=origin, model="mock")
            judge = make_judge(session, project.id, NewJudgeRecipe(judge_kind="endpoint", endpoint=endpoint.id))
            recipe = {"kind": "judge", "pair_set": pairs.id, "judge": judge.id, "is_both_orders": False,
                      "concurrency": concurrency, **settings}  # fmt: skip
            launch(session, read_recipe(recipe), project_id=project.id)
        with db.transaction() as session:
            run = claim(session, ["gpu", "io", "cpu"], "bench", None)
            assert run is not None
            run_id, attempt = run.id, run.attempt
        import worker.judge  # noqa: F401  a process's start is not a call's cost

        def judge_all() -> int:
            assert work(run_id, attempt) == "done"
            with db.reading() as session:
                (key,) = outputs(session, run_id, "verdict_set")
                row = db.get(session, VerdictSet, key)
                return n - row.n + row.n_null

        told = clocked(judge_all)
        db.engine().dispose()
        return told


def run_openai(origin: str, n: int, concurrency: int, is_each_call: bool = False, **settings: Any) -> Told:
    """The loop most people write: a semaphore around AsyncOpenAI, its own retries; an error is a call that failed.

    With `is_each_call` a client is made for every call, as some tools do.
    """
    import openai

    text = f"{TEXT}\n{TEXT}"
    given: dict[str, Any] = {"base_url": origin, "api_key": "none", **settings}

    async def ask(client: openai.AsyncOpenAI, i: int) -> bool:
        messages: Any = [{"role": "user", "content": f"{i} {text}"}]
        try:
            found = await client.chat.completions.create(model="mock", messages=messages, max_tokens=700)
            return bool(found.choices)
        except (openai.OpenAIError, ValueError, AttributeError):  # the last two: an answer that is no completion
            return False

    async def all_of_them() -> int:
        free = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(**given) as shared:

            async def one(i: int) -> bool:
                async with free:
                    if not is_each_call:
                        return await ask(shared, i)
                    async with openai.AsyncOpenAI(**given) as own:
                        return await ask(own, i)

            return sum(await asyncio.gather(*(one(i) for i in range(n))))

    return clocked(lambda: n - asyncio.run(all_of_them()))


def run_peer(loop: str, python: str, origin: str, n: int, concurrency: int) -> Told:
    """One of bench/judge_peer.py's loops, by the Python it is installed in."""
    told = subprocess.run(
        [python, str(PEER), loop, origin, str(n), str(concurrency)], check=True, capture_output=True, text=True
    )
    found = json.loads(told.stdout.splitlines()[-1])
    return Told(int(found["failed"]), float(found["cpu"]), float(found["seconds"]), name=str(found["name"]))


QUICK: dict[str, Any] = {
    "PrefLab": run_ours,
    "AsyncOpenAI": partial(run_openai, max_retries=5),
    "AsyncOpenAI, a client a call": partial(run_openai, max_retries=5, is_each_call=True),
}
TEN: dict[str, Any] = {
    "PrefLab": run_ours,
    f"PrefLab, {SHORT_S:g} s a try": partial(run_ours, timeout_s=SHORT_S),
    "AsyncOpenAI": run_openai,
    "AsyncOpenAI, 5 retries": partial(run_openai, max_retries=5),
    f"AsyncOpenAI, 5 retries, {SHORT_S:g} s a try": partial(run_openai, max_retries=5, timeout=SHORT_S),
    "AsyncOpenAI, a client a call": partial(run_openai, is_each_call=True),
}


def _in_child(run: Callable[[str, int, int], Told], pipe: Connection, origin: str, n: int, concurrency: int) -> None:
    pipe.send(run(origin, n, concurrency))


def measure(run: Any, server: Connection, origin: str, n: int, concurrency: int) -> Figure:
    """One client in a fresh process of its own."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=_in_child, args=(run, theirs, origin, n, concurrency))
    child.start()
    theirs.close()
    told = ours.recv()
    child.join()
    server.send(concurrency)
    return Figure(server.recv(), told, n, concurrency)


def show(name: str, one: Figure, cpu_ms: float) -> None:
    """One line of the table."""
    fixed = "–" if one.fixed_ms is None else f"{one.fixed_ms:.0f}"
    print(
        f"{one.concurrency:>7}  {name:<42}{one.share:>10.1%}{one.steady.a_second:>9.1f}{one.of_possible:>13.1%}"
        f"{cpu_ms:>13.2f}{fixed:>15}{one.told.n_failed:>8}",
        flush=True,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[])
    parser.add_argument("--calls", type=int, default=20, help="calls per place in flight")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is printed")
    parser.add_argument(
        "--faults", choices=["quick", "ten"], default="quick", help="what goes wrong with 2 %% of calls"
    )
    parser.add_argument("--hang", type=float, default=60.0, help="seconds that a hanging call hangs")
    parser.add_argument(
        "--peer",
        nargs="+",
        default=[],
        metavar="LOOP=PYTHON",
        help="distilabel, openai or gather, and a Python with it",
    )
    given = parser.parse_args()
    is_ten = given.faults == "ten"
    clients: dict[str, Any] = dict(TEN if is_ten else QUICK)
    clients |= {peer: partial(run_peer, *peer.split("=", 1)) for peer in given.peer}
    ours_end, server_end = multiprocessing.Pipe()
    hang_s = given.hang if is_ten else None
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(server_end, hang_s), daemon=True)
    server.start()
    origin = f"http://127.0.0.1:{ours_end.recv()}/v1"
    print(f"load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'allowed':>7}  {'client':<42}{'of allowed':>10}{'calls/s':>9}{'of possible':>13}{'CPU ms/call':>13}"
          f"{'start and end':>15}{'failed':>8}")  # fmt: skip
    for concurrency in given.concurrency or ([128] if is_ten else [32, 64, 128, 256]):
        best: dict[str, Figure] = {}
        for name, run in clients.items():
            is_ours = name.startswith("PrefLab")
            if not (is_ours or is_ten or concurrency == 128):
                continue
            tries = [
                measure(run, ours_end, origin, concurrency * given.calls, concurrency)
                for _ in range(given.repeats if is_ours else 1)
            ]
            one = max(tries, key=lambda figure: figure.share)
            name = one.told.name or name
            best[name] = one
            show(name, one, min(figure.cpu_ms for figure in tries))
        for name, one in best.items():
            if name != "PrefLab":
                steady = best["PrefLab"].steady.a_second / one.steady.a_second
                whole = best["PrefLab"].of_possible / one.of_possible
                print(json.dumps({"in_flight": concurrency, "PrefLab over": name, "calls/s": round(steady, 2),
                                  "of possible": round(whole, 2)}))  # fmt: skip


if __name__ == "__main__":
    main()
