"""Freezing preferences into a file: TRL's prompt/chosen/rejected, hashed, never half-written."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from sqlmodel import Session, select

from app.config import settings
from app.db import get
from app.errors import AppError
from app.judging.models import VerdictSet
from app.pairs.models import PairSet
from app.review.queues import check_judging_is_over
from app.training.models import Snapshot
from app.training.snapshots import SnapshotRecipe, read_preferences, say_cut, standing_overrides
from worker.job import Job


def freeze_snapshot(job: Job) -> None:
    """Writes the file, then its row. Labels that move while it is written start the writing again."""
    recipe: SnapshotRecipe = job.recipe
    target = settings().folder("snapshots") / f"run-{job.run_id}.jsonl"
    while True:
        with job.read() as session:
            verdict_set = get(session, VerdictSet, recipe.verdict_set)
            check_judging_is_over(session, verdict_set)
            recipe.check(session, job.project_id)  # the judge may have failed its card since the launch
            labels_version = get(session, PairSet, verdict_set.pair_set_id).labels_version
            overrides = standing_overrides(session, verdict_set.pair_set_id)
            sha256, counts = _write(job, session, verdict_set, overrides, target)
        if not counts["train"]:
            raise AppError(f"“{verdict_set.name}” gives no preference on the train split: {_said(counts)}. Judge more "
                           "pairs, or answer some of these in a repair queue.")  # fmt: skip
        with job.write() as session:
            pair_set = session.exec(
                select(PairSet).where(PairSet.id == verdict_set.pair_set_id).with_for_update()
            ).one()
            if pair_set.labels_version != labels_version:
                continue
            row = _row_of(session, job, verdict_set)
            row.labels_version, row.sha256, row.waiver = labels_version, sha256, recipe.waiver.strip()
            row.n_train, row.n_dev = counts["train"], counts["dev"]
            row.counts = {"cut": 0, **counts, "overrides": {str(pair): choice for pair, choice in overrides.items()}}
            row.path, row.state = str(target.relative_to(settings().data_path)), "ready"
            session.add(row)
            session.flush()
            job.made(session, "snapshot", row.id, sha256)
        job.log(_said(counts))
        if counts["cut"]:
            job.log(say_cut(counts["cut"]), "warning")
        job.progress(counts["pairs"], counts["pairs"])
        return


def _row_of(session: Session, job: Job, verdict_set: VerdictSet) -> Snapshot:
    """The row this run fills: the one that was made when it was launched, else a new one."""
    known = session.exec(select(Snapshot).where(Snapshot.run_id == job.run_id)).first()
    return known or Snapshot(
        project_id=job.project_id, name=job.recipe.name or f"Preferences of {verdict_set.name}"[:120],
        pair_set_id=verdict_set.pair_set_id, verdict_set_id=verdict_set.id, labels_version=0, run_id=job.run_id,
    )  # fmt: skip


def _write(
    job: Job, session: Session, verdict_set: VerdictSet, overrides: dict[int, str], target: Path
) -> tuple[str, Counter[str]]:
    """The file's sha256 and what was counted; written beside its place, flushed, and renamed."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    pending = target.with_suffix(".partial")
    total = get(session, PairSet, verdict_set.pair_set_id).n
    with pending.open("wb") as file:
        for preference in read_preferences(session, verdict_set, overrides, counts):
            line = json.dumps(preference.row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
            digest.update(line)
            file.write(line)
            if counts["pairs"] % 500 == 0:
                job.check()
        file.flush()
        os.fsync(file.fileno())
    job.progress(min(counts["pairs"], max(0, total - 1)), total)
    pending.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest.hexdigest(), counts


def _said(counts: Counter[str]) -> str:
    left_out = ("ties", "both_bad", "unreadable", "unjudged", "unsettled", "held_out")
    parts = [f"{counts[name]} {name.replace('_', ' ')}" for name in left_out if counts[name]]
    return (
        f"{counts['train']} preferences to train on and {counts['dev']} to measure on, {counts['overridden']} labels "
        f"from people; without a preference: {', '.join(parts) or 'none'}"
    )
