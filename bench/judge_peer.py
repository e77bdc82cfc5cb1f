"""Others' loops for bench.judge: run by the Python they are installed in, apart from ours.

    PYTHON bench/judge_peer.py distilabel|openai|gather ORIGIN CALLS CONCURRENCY      # prints one line of JSON

- distilabel: its OpenAILLM asks a batch at a time and waits for the whole batch; the batch is as large as the allowed
  concurrency, as `input_batch_size` of a step would make it;
- openai: a semaphore around one AsyncOpenAI, of the version that environment has;
- gather: all calls at once, and AsyncOpenAI's own connection limit keeps them to the allowed concurrency.

Nothing is stored. CPU is the process's own, without its imports.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

TEXT = "words of a completion, as long as most are. " * 20


def run_distilabel(origin: str, prompts: list[Any], concurrency: int) -> tuple[str, Callable[[], int]]:
    """What it is called, and its loop, which gives how many calls were answered."""
    import distilabel
    from distilabel.models import OpenAILLM

    llm = OpenAILLM(model="mock", base_url=origin, api_key="none", max_retries=5)
    llm.load()

    def ask_all() -> int:
        answered = 0
        for start in range(0, len(prompts), concurrency):
            found = llm.generate_outputs(inputs=prompts[start : start + concurrency], max_new_tokens=700)
            answered += sum(bool(one["generations"] and one["generations"][0]) for one in found)
        return answered

    return f"distilabel {distilabel.__version__}", ask_all


def run_openai(
    origin: str, prompts: list[Any], concurrency: int, is_gather: bool = False
) -> tuple[str, Callable[[], int]]:
    """The same of a plain loop around AsyncOpenAI."""
    import openai

    try:
        import httpx2 as httpx  # under openai 3
    except ModuleNotFoundError:
        import httpx  # type: ignore[no-redef]

    async def ask_all() -> int:
        free = asyncio.Semaphore(len(prompts) if is_gather else concurrency)
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        given: dict[str, Any] = {"http_client": openai.DefaultAsyncHttpxClient(limits=limits)} if is_gather else {}
        # who waits for a connection must not run out of time meanwhile
        given["timeout"] = None if is_gather else openai.NOT_GIVEN
        async with openai.AsyncOpenAI(base_url=origin, api_key="none", max_retries=5, **given) as client:

            async def ask(messages: Any) -> bool:
                async with free:
                    try:
                        found = await client.chat.completions.create(model="mock", messages=messages, max_tokens=700)
                    except openai.OpenAIError:
                        return False
                return bool(found.choices)

            return sum(await asyncio.gather(*map(ask, prompts)))

    name = f"AsyncOpenAI {openai.__version__}, {httpx.__name__} {httpx.__version__}"
    return name + (", gathered" if is_gather else ""), lambda: asyncio.run(ask_all())


def main() -> None:
    """Entry point."""
    loop, origin, n, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    prompts = [[{"role": "user", "content": f"{i} {TEXT}\n{TEXT}"}] for i in range(n)]
    if loop == "distilabel":
        name, ask_all = run_distilabel(origin, prompts, concurrency)
    else:
        name, ask_all = run_openai(origin, prompts, concurrency, is_gather=loop == "gather")
    cpu, began = time.process_time(), time.monotonic()
    answered = ask_all()
    told = {"cpu": time.process_time() - cpu, "seconds": time.monotonic() - began, "failed": n - answered}
    print(json.dumps({"name": name, **told}))


if __name__ == "__main__":
    main()
