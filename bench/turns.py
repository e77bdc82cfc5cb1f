"""Taking turns: a trainer in a process of its own waits for its turn before a step and says after it what it took.

Needs torch alone, so that a peer in an environment of its own can be timed by the same code.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Turns:
    """The trainer's side: wait() for a line on stdin, done() prints one JSON object of seconds and counts."""

    def __init__(self) -> None:
        self._out = sys.stdout
        sys.stdout = sys.stderr  # what libraries print must not stand between the answers
        self._found: dict[str, float] = defaultdict(float)
        self._from = (0.0, 0.0)

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self._found.clear()
        self._from = time.perf_counter(), time.process_time()

    def done(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self._from[0], time.process_time() - self._from[1]
        print(json.dumps({**self._found, "wall": wall, "cpu": cpu}), file=self._out, flush=True)

    def count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._found[name] += amount

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Adds the wall and CPU seconds of a block."""
        start = time.perf_counter(), time.process_time()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.count(**{
            f"{name}_wall": time.perf_counter() - start[0], f"{name}_cpu": time.process_time() - start[1]
        })  # fmt: skip

    def watch(self, *models: Any) -> None:
        """Counts the tokens that pass through each model's embeddings: the work, whatever the machine."""
        tables = {id(m): m for model in models if model is not None for m in model.modules()}
        for module in tables.values():
            if isinstance(module, torch.nn.Embedding):
                module.register_forward_hook(lambda _m, args, _out: self.count(forward_tokens=args[0].numel()))


class Player:
    """The bench's side: a process that takes its turns."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> dict[str, float]:
        """One step; what it took."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trainer ended with {self.process.wait()}: its words stand above")
        found: dict[str, float] = json.loads(line)
        return found

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)
