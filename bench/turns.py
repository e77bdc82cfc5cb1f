"""Taking turns: a trainer in a process of its own waits for its turn and says after it what its steps took.

Needs torch alone, so that a peer in an environment of its own can be timed by the same code.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Turns:
    """The trainer's side. It calls step() after each step; the first call ends the warm-up. A turn is so many steps as
    the line on stdin says, and ends with one JSON object of seconds and counts on stdout."""

    def __init__(self) -> None:
        self._out = sys.stdout
        sys.stdout = sys.stderr  # what libraries print must not stand between the answers
        self._found: dict[str, float] = defaultdict(float)
        self._from = (0.0, 0.0)
        self._left: int | None = None

    def step(self) -> None:
        """One step is over: says what the turn took where it was its last, and waits for the next turn."""
        if self._left is not None:
            self._left -= 1
            if self._left:
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - self._from[0], time.process_time() - self._from[1]
            print(json.dumps({**self._found, "wall": wall, "cpu": cpu}), file=self._out, flush=True)
        asked = sys.stdin.readline()
        if not asked:
            os._exit(0)  # the bench has seen enough
        self._left = int(asked)
        self._found.clear()
        self._from = time.perf_counter(), time.process_time()

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
    """The bench's side: a process that takes its turns. What it says beside goes to `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True
            )

    def turn(self, steps: int) -> dict[str, float]:
        """What so many steps took."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trainer ended with {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        found: dict[str, float] = json.loads(line)
        return found

    def end(self) -> None:
        """Lets it end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)
