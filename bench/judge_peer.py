"""distilabel's own loop for bench.judge: run by the Python it is installed in, apart from ours.

    PYTHON bench/judge_peer.py ORIGIN CALLS CONCURRENCY      # prints one line of JSON

Its OpenAILLM asks a batch at a time and waits for the whole batch; the batch is as large as the allowed concurrency, as
`input_batch_size` of a step would make it. Nothing is stored. CPU is the process's own, without its imports.
"""

import json
import sys
import time
from typing import Any

TEXT = "words of a completion, as long as most are. " * 20


def main() -> None:
    """Entry point."""
    from distilabel.models import OpenAILLM

    origin, n, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    llm = OpenAILLM(model="mock", base_url=origin, api_key="none", max_retries=5)
    llm.load()
    prompts: list[Any] = [[{"role": "user", "content": f"{i} {TEXT}\n{TEXT}"}] for i in range(n)]
    cpu, answered = time.process_time(), 0
    for start in range(0, n, concurrency):
        found = llm.generate_outputs(inputs=prompts[start : start + concurrency], max_new_tokens=700)
        answered += sum(bool(one["generations"] and one["generations"][0]) for one in found)
    print(json.dumps({"cpu": time.process_time() - cpu, "failed": n - answered}))


if __name__ == "__main__":
    main()
