"""The demo, run once as a person runs it; its data folder is copied for the browser, report and screenshot tests."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 1800  # the demo takes six minutes on two idle cores; CI's may be busy
NOT_COPIED = ("logs", "broker.url", "services.json", "up.lock")


@dataclass(frozen=True)
class Seeded:
    """A data folder in which the demo has ended, what it printed, and how long it took (0: given, not run)."""

    folder: Path
    printed: str
    seconds: float

    def copy_to(self, folder: Path) -> Path:
        """A copy that a test may change; the services' own notes stay behind."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        return folder


def run_demo(folder: Path, *options: str) -> Seeded:
    """`preflab demo --exit` into `folder`, without a terminal; fails the test unless it ends with exit code 0."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFLAB_")}
    env |= {"PREFLAB_DATA": str(folder), "PREFLAB_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--exit", *options],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    print(
        f"{done.stdout}\n{done.stderr}\npreflab demo {' '.join(options)}: {seconds:.0f} s, exit code {done.returncode}"
    )
    if done.returncode != 0:
        pytest.fail(f"preflab demo ended with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    (folder / "printed.txt").write_text(done.stdout)
    with sqlite3.connect(folder / "preflab.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return Seeded(folder, done.stdout, seconds)


def read_seeded(folder: Path) -> Seeded:
    """A folder in which somebody has run the demo before (`pytest --demo-data DIR`, while developing)."""
    return Seeded(folder, (folder / "printed.txt").read_text(), 0.0)
