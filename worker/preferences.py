"""Reading a snapshot of preferences (TRL's prompt/chosen/rejected, one JSON object a line) for a trainer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import settings
from app.db import get
from app.errors import AppError
from app.runs.models import Run
from app.training.models import Snapshot
from app.training.rows import Fit, as_messages, split_of
from app.training.snapshots import say_cut
from worker.job import Job
from worker.saving import sha256_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Preferences:
    """Rows of messages: `prompt` (list), `chosen` and `rejected` (lists of one assistant message), and `p_chosen`: the
    judge's probability that the label is right, 1 where it gave none or a person has spoken."""

    train: list[Row]
    dev: list[Row]
    fit: Fit | None = None  # once those that are too long are left out (worker/fitting.py)


def read_preferences(path: Path, sha256: str = "", dev_share: float = 0.1) -> Preferences:
    """Reads a snapshot after checking its hash.

    The dev rows are those whose `split` is "dev"; where a file names no split, a share of the groups, chosen by
    their hash, so that paraphrases never stand on both sides.
    """
    if not path.is_file():
        raise AppError(f"The snapshot {path.name} is gone: freeze the preferences again.")
    if sha256 and sha256_of(path) != sha256:
        raise AppError(f"The snapshot {path.name} is not the file that was frozen: freeze the preferences again.")
    train: list[Row] = []
    dev: list[Row] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            if not {"prompt", "chosen", "rejected"} <= row.keys():
                raise AppError(f"The snapshot {path.name}, line {number}, has no prompt, chosen and rejected.")
            split = split_of(row, dev_share)
            if split in {"train", "dev"}:
                (train if split == "train" else dev).append(as_messages(row))
    if not train:
        raise AppError(f"The snapshot {path.name} has no preference on the train split: judge more pairs.")
    return Preferences(train, dev)


def preferences_of(job: Job) -> Preferences:
    """The rows of the snapshot that a run's recipe names; says in the log how many."""
    with job.read() as session:
        snapshot = get(session, Snapshot, job.recipe.snapshot)
    if snapshot.state != "ready":
        raise AppError(f"The snapshot {snapshot.name} is not written yet: wait for its run to end.")
    found = read_preferences(settings().data_path / snapshot.path, snapshot.sha256)
    job.log(f"{len(found.train)} preferences on the train split, {len(found.dev)} held out (dev)")
    if snapshot.counts.get("cut"):
        job.log(say_cut(snapshot.counts["cut"]), "warning")
    repeated = len(found.train) - len({json.dumps(row, sort_keys=True) for row in found.train})
    if repeated:
        job.log(f"{repeated} of them are equal to an earlier one", "warning")
        with job.read() as session:
            is_counted = "repeated_rows" in get(session, Run, job.run_id).cost  # by an attempt before
        if not is_counted:
            job.spend(repeated_rows=repeated)
    return found
