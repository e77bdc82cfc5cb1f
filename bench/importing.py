"""Imports at size: pairs a second and the memory that a large file adds.

    python -m bench.importing --pairs 100000          # seconds and pairs a second, on SQLite in a fresh folder
    python -m bench.importing --megabytes 250         # memory added while a file of this size is imported

The file is generated: every pair has a prompt of its own. Memory is the process's peak resident size less what it had
before the import began.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path


def write_file(path: Path, n: int, n_bytes: int) -> int:
    """Writes `n` pairs, or as many as fill `n_bytes`; returns how many."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5_000)]
    size = made = 0
    with path.open("w", encoding="utf-8") as out:
        while made < n or size < n_bytes:
            prompt, one, two = (" ".join(rng.choices(words, k=k)) for k in (12, 40, 40))
            row = {"prompt": f"{made} {prompt}?", "chosen": one, "rejected": two}
            size += out.write(json.dumps(row) + "\n")
            made += 1
    return made


def resident(line: str) -> int:
    """The process's resident memory in MiB: VmRSS now, or VmHWM at its peak since it was last forgotten (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) // 1024


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFLAB_DATA"] = folder
        measure(
            Path(folder), asked.pairs or (0 if asked.megabytes else 100_000), asked.megabytes * 2**20, asked.profile
        )


def measure(folder: Path, n: int, n_bytes: int, is_profiled: bool) -> None:
    """One import in a fresh folder."""
    import cProfile
    import pstats

    from app import db
    from tests.benchmarks.rows import fresh_project
    from tests.prompts.rows import again, start
    from worker.child import work

    db.upgrade()
    file = folder / "pairs.jsonl"
    made = write_file(file, n, n_bytes)
    size = file.stat().st_size / 2**20
    run = start(fresh_project().id, "import_pairs", path=str(file))
    import worker.importing_pairs  # noqa: F401  its libraries are no part of what a file adds

    Path("/proc/self/clear_refs").write_text("5")  # the peak before this does not count
    before, started, spent = resident("VmRSS"), time.monotonic(), time.process_time()
    profile = cProfile.Profile()
    if is_profiled:
        profile.enable()
    work(run.id, run.attempt)
    profile.disable()
    ended = again(run.id)
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    if ended.status != "done":
        raise SystemExit(f"the import failed: {ended.error}")
    print(
        f"{made:,} pairs, {size:,.0f} MiB: {seconds:.1f} s ({cpu:.1f} s of CPU), {made / seconds:,.0f} pairs a second; "
        f"{resident('VmHWM') - before:,} MiB added to {before:,} MiB"
    )
    if is_profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
