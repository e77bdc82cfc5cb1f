"""Judge calls in flight: our endpoint client beside a plain AsyncOpenAI loop, against one mock server in one run.

    python -m bench.judge [--concurrency 32 64 128 256] [--calls 10]

The mock server (a process of its own) answers after a lognormal wait of about a second and fails 2 % of the calls. A
client that always kept C calls in flight would need calls × mean wait / C seconds; printed is the share of that which
each client reaches, and its own CPU time per call. The ledger is not part of this: `calls` are not stored.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from typing import Any

import openai
from aiohttp import web

from app.checkpoints.chat import Target, chat_body
from worker.endpoint import ask_all

FAULT_RATE = 0.02
SIGMA = 0.5  # of the wait's logarithm; the median is chosen so that the mean is one second
MEDIAN_S = 1 / 2.718281828 ** (SIGMA**2 / 2)
ANSWER = {
    "id": "x", "object": "chat.completion", "created": 0, "model": "mock",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 200, "completion_tokens": 1, "total_tokens": 201},
}  # fmt: skip


def serve(pipe: Connection) -> None:
    """The mock server; sends its port, and from then on the sum of waits whenever asked."""
    rng = random.Random(1)
    waited = 0.0

    async def answer(request: web.Request) -> web.Response:
        nonlocal waited
        await request.read()
        wait = rng.lognormvariate(0, SIGMA) * MEDIAN_S
        waited += wait
        await asyncio.sleep(wait)
        if rng.random() < FAULT_RATE:
            return web.json_response({"error": {"message": "busy"}}, status=503)
        return web.json_response(ANSWER)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        nonlocal waited
        while True:
            await asyncio.sleep(0.01)
            if pipe.poll():
                pipe.recv()
                pipe.send(waited)
                waited = 0.0

    asyncio.run(run())


def run_ours(origin: str, bodies: list[dict[str, Any]], concurrency: int) -> int:
    """How many calls were answered."""
    arrived = ask_all(Target(origin, "mock"), enumerate(bodies), concurrency=concurrency)
    return sum(not answer.failure for batch in arrived for _, answer in batch)


def run_openai(origin: str, bodies: list[dict[str, Any]], concurrency: int) -> int:
    """The loop most people write: a semaphore around AsyncOpenAI, its own retries."""

    async def all_of_them() -> int:
        free = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=origin, api_key="none", max_retries=5) as client:

            async def one(body: dict[str, Any]) -> bool:
                async with free:
                    found = await client.chat.completions.create(**body)
                    return bool(found.choices)

            return sum(await asyncio.gather(*(one(body) for body in bodies)))

    return asyncio.run(all_of_them())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--calls", type=int, default=10, help="calls per place in flight")
    given = parser.parse_args()
    ours_end, server_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(server_end,), daemon=True)
    server.start()
    origin = f"http://127.0.0.1:{ours_end.recv()}/v1"
    target = Target(origin, "mock")
    print(f"{'in flight':>9}  {'client':<12}{'seconds':>8}{'of possible':>13}{'CPU ms/call':>13}{'answered':>10}")
    for concurrency in given.concurrency:
        n = concurrency * given.calls
        bodies = [chat_body(target, [{"role": "user", "content": f"{i} " + "x" * 800}], max_tokens=8) for i in range(n)]
        shares = {}
        for name, run in (("PrefLab", run_ours), ("AsyncOpenAI", run_openai)):
            wall, cpu = time.monotonic(), time.process_time()
            answered = run(origin, bodies, concurrency)
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            ours_end.send("waited?")
            shares[name] = ours_end.recv() / concurrency / wall
            print(
                f"{concurrency:>9}  {name:<12}{wall:>8.1f}{shares[name]:>12.0%}{1000 * cpu / n:>14.2f}{answered:>9}/{n}"
            )
        print(json.dumps({"in_flight": concurrency, "ratio": round(shares["PrefLab"] / shares["AsyncOpenAI"], 2)}))


if __name__ == "__main__":
    main()
