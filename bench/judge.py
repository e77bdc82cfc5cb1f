"""Judging in flight: a real run with its ledger beside a plain AsyncOpenAI loop, against one mock server in one run.

    python -m bench.judge [--concurrency 32 64 128 256] [--calls 10] [--repeats 3] [--peer-python PATH]

The mock server (a process of its own) answers after a lognormal wait of about a second and fails 2 % of the calls. It
counts how many requests it holds; “of allowed” is that count's mean over time divided by the allowed concurrency, from
when a tenth of the calls have come until a concurrency's worth is left: the steady state. Ours is a run as users start
it: pairs read from SQLite, an intent row before each call, and answer, opinion and verdict stored after it. The plain
loop stores nothing. CPU is our process's own, the client's threads included, without the start of the process. Of the
repeats the best is printed. With --peer-python, the Python of an environment of its own in which distilabel is
installed (`pip install "distilabel[openai]" requests`), its loop is measured at 128 as well (bench/judge_peer.py).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

FAULT_RATE = 0.02
SIGMA = 0.5  # of the wait's logarithm; the median is chosen so that the mean is one second
MEDIAN_S = 1 / 2.718281828 ** (SIGMA**2 / 2)
NONCE = re.compile(rb'nonce\\": \\"([0-9a-f]+)')
TEXT = "words of a completion, as long as most are. " * 20
PEER = Path(__file__).with_name("judge_peer.py")


@dataclass(frozen=True)
class Figure:
    """One client at one concurrency."""

    share: float  # of the allowed calls in flight, on average in the steady state
    cpu_ms: float  # of the client's process a call
    calls_a_second: float
    n_failed: int


class Held:
    """How many requests the server holds, as an integral over time."""

    def __init__(self) -> None:
        self.now, self.seen, self.marks = 0, 0, list[tuple[int, float, float]]()
        self._area, self._at = 0.0, time.monotonic()

    def change(self, by: int) -> None:
        at = time.monotonic()
        self._area += self.now * (at - self._at)
        self.now, self._at = self.now + by, at
        if by > 0:
            self.seen += 1
            self.marks.append((self.seen, at, self._area))

    def steady(self, first: int, last: int) -> tuple[float, float]:
        """(mean held, calls a second) between the arrival of one call and of another."""
        (_, start, area), (_, end, area_end) = self.marks[first - 1], self.marks[last - 1]
        return (area_end - area) / (end - start), (last - first) / (end - start)


def serve(pipe: Connection) -> None:
    """The mock server; sends its port, then for each (concurrency) message what held in the steady state."""
    rng, held = random.Random(1), Held()

    async def answer(request: web.Request) -> web.Response:
        held.change(1)
        try:
            found = NONCE.findall(await request.read())
            await asyncio.sleep(rng.lognormvariate(0, SIGMA) * MEDIAN_S)
            if rng.random() < FAULT_RATE:
                return web.json_response({"error": {"message": "busy"}}, status=503)
            said = json.dumps({"reason": "by the rule", "verdict": "A", "nonce": found[-1].decode() if found else ""})
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 600, "completion_tokens": 30, "total_tokens": 630}
            return web.json_response({"id": "x", "object": "chat.completion", "created": 0, "model": "mock",
                                      "choices": [choice], "usage": usage})  # fmt: skip
        finally:
            held.change(-1)

    async def run() -> None:
        nonlocal held
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pipe.send(runner.addresses[0][1])
        while True:
            await asyncio.sleep(0.01)
            if pipe.poll():
                in_flight = pipe.recv()
                n = held.seen
                pipe.send(held.steady(max(1, n // 10, in_flight), max(2, n - in_flight)) if n > 2 else (0.0, 0.0))
                held = Held()

    asyncio.run(run())


def run_ours(origin: str, n: int, concurrency: int) -> tuple[float, int]:
    """A judging of n pairs in one order by the real worker function; (CPU seconds, pairs without a verdict)."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFLAB_DATA"] = folder
        from app import db
        from app.accounts.logins import make_account
        from app.checkpoints.endpoints import make_endpoint
        from app.config import settings
        from app.judging.judges import make_judge
        from app.judging.models import VerdictSet
        from app.judging.recipes import NewJudgeRecipe
        from app.projects.projects import make_project
        from app.recipes import read_recipe
        from app.runs.queue import claim, launch, outputs
        from tests.judging.rows import make_pairs
        from worker.child import work

        settings.cache_clear()
        db.engine.cache_clear()
        db.upgrade()
        with db.transaction() as session:
            project = make_project(session, "bench", "bench", make_account(session, "bench"))
            pairs = make_pairs(session, project.id, [(f"question {i}", f"{i} {TEXT}", TEXT, None) for i in range(n)])
            endpoint = make_endpoint(session, project.id, origin=origin, model="mock")
            judge = make_judge(session, project.id, NewJudgeRecipe(judge_kind="endpoint", endpoint=endpoint.id))
            recipe = {"kind": "judge", "pair_set": pairs.id, "judge": judge.id, "is_both_orders": False,
                      "concurrency": concurrency}  # fmt: skip
            launch(session, read_recipe(recipe), project_id=project.id)
        with db.transaction() as session:
            run = claim(session, ["gpu", "io", "cpu"], "bench", None)
            assert run is not None
            run_id, attempt = run.id, run.attempt
        import worker.judge  # noqa: F401  a run's start is not a call's cost

        cpu = time.process_time()
        assert work(run_id, attempt) == "done"
        cpu = time.process_time() - cpu
        with db.reading() as session:
            (key,) = outputs(session, run_id, "verdict_set")
            row = db.get(session, VerdictSet, key)
            failed = n - row.n + row.n_null
        db.engine().dispose()
        return cpu, failed


def run_openai(origin: str, n: int, concurrency: int) -> tuple[float, int]:
    """The loop most people write: a semaphore around AsyncOpenAI, its own retries."""
    import openai

    text = f"{TEXT}\n{TEXT}"

    async def all_of_them() -> int:
        free = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=origin, api_key="none", max_retries=5) as client:

            async def one(i: int) -> bool:
                async with free:
                    messages: Any = [{"role": "user", "content": f"{i} {text}"}]
                    found = await client.chat.completions.create(model="mock", messages=messages, max_tokens=700)
                    return bool(found.choices)

            return sum(await asyncio.gather(*(one(i) for i in range(n))))

    cpu = time.process_time()
    answered = asyncio.run(all_of_them())
    return time.process_time() - cpu, n - answered


def run_distilabel(python: str, origin: str, n: int, concurrency: int) -> tuple[float, int]:
    """distilabel's loop, by the Python it is installed in."""
    told = subprocess.run(
        [python, str(PEER), origin, str(n), str(concurrency)], check=True, capture_output=True, text=True
    )
    found = json.loads(told.stdout.splitlines()[-1])
    return float(found["cpu"]), int(found["failed"])


def _in_child(
    run: Callable[[str, int, int], tuple[float, int]], pipe: Connection, origin: str, n: int, concurrency: int
) -> None:
    started = time.monotonic()
    cpu, failed = run(origin, n, concurrency)
    pipe.send((time.monotonic() - started, cpu, failed))


def measure(run: Any, server: Connection, origin: str, n: int, concurrency: int) -> Figure:
    """One client in a fresh process of its own."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=_in_child, args=(run, theirs, origin, n, concurrency))
    child.start()
    theirs.close()
    _, cpu, failed = ours.recv()
    child.join()
    server.send(concurrency)
    held, rate = server.recv()
    return Figure(held / concurrency, 1000 * cpu / n, rate, failed)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--calls", type=int, default=20, help="calls per place in flight")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is printed")
    parser.add_argument("--peer-python", default="", help="a Python with distilabel, to measure that as well")
    given = parser.parse_args()
    clients: list[tuple[str, Any]] = [("PrefLab", run_ours), ("AsyncOpenAI", run_openai)]
    if given.peer_python:
        clients.append(("distilabel", partial(run_distilabel, given.peer_python)))
    ours_end, server_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(server_end,), daemon=True)
    server.start()
    origin = f"http://127.0.0.1:{ours_end.recv()}/v1"
    print(f"{'allowed':>7}  {'client':<12}{'of allowed':>11}{'calls/s':>9}{'CPU ms/call':>13}{'failed':>8}")
    for concurrency in given.concurrency:
        best: dict[str, Figure] = {}
        for name, run in clients:
            if name != "PrefLab" and concurrency != 128:
                continue
            tries = [
                measure(run, ours_end, origin, concurrency * given.calls, concurrency)
                for _ in range(given.repeats if name == "PrefLab" else 1)
            ]
            one = best[name] = max(tries, key=lambda figure: figure.share)
            print(f"{concurrency:>7}  {name:<12}{one.share:>11.1%}{one.calls_a_second:>9.1f}"
                  f"{min(figure.cpu_ms for figure in tries):>13.2f}{one.n_failed:>8}", flush=True)  # fmt: skip
        for name, one in best.items():
            if name != "PrefLab":
                ratio = best["PrefLab"].calls_a_second / one.calls_a_second
                print(json.dumps({"in_flight": concurrency, f"ours_over_{name.lower()}": round(ratio, 2)}))


if __name__ == "__main__":
    main()
