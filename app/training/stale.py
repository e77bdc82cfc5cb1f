"""What was trained on labels that people have changed since, and training it again on the new ones."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.db import get
from app.errors import Conflict, Invalid
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.prompts.models import Prompt
from app.runs.models import Run, RunIo
from app.runs.queue import launch
from app.training.models import Snapshot
from app.training.recipe_parts import OfflineRecipe
from app.training.recipes import DpoRecipe, KtoRecipe, RewardRecipe, SftRecipe, SimpoRecipe
from app.training.snapshots import TRAINED_ON, SnapshotRecipe, standing_overrides

OFFLINE: dict[str, type[OfflineRecipe]] = {
    "sft": SftRecipe, "reward": RewardRecipe, "dpo": DpoRecipe, "simpo": SimpoRecipe, "kto": KtoRecipe
}  # fmt: skip


def count_changed_labels(session: Session, snapshot: Snapshot) -> int:
    """How many labels of train and dev pairs are others now than when the snapshot was frozen.

    An override that was made and withdrawn again changes nothing, and so does one that says what the verdict says.
    """
    pair_set = get(session, PairSet, snapshot.pair_set_id)
    if snapshot.state != "ready" or pair_set.labels_version == snapshot.labels_version:
        return 0
    then: dict[int, str] = {int(pair): choice for pair, choice in snapshot.counts.get("overrides", {}).items()}
    now = standing_overrides(session, snapshot.pair_set_id)
    touched = [pair for pair in then.keys() | now.keys() if then.get(pair) != now.get(pair)]
    n = 0
    for start in range(0, len(touched), 500):
        some = touched[start : start + 500]
        rows = session.execute(
            sa.select(col(Pair.id), col(Verdict.outcome))
            .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
            .outerjoin(Verdict, sa.and_(col(Verdict.pair_id) == col(Pair.id),
                                        col(Verdict.verdict_set_id) == snapshot.verdict_set_id))
            .where(col(Pair.id).in_(some), col(Prompt.split).in_(TRAINED_ON))
        ).all()  # fmt: skip
        labels = [(then.get(row.id) or row.outcome, now.get(row.id) or row.outcome) for row in rows]
        n += sum(_preferred(before) != _preferred(after) for before, after in labels)
    return n


def _preferred(label: str | None) -> str | None:
    return label if label in {"a", "b"} else None


def stale_snapshots(session: Session, project_id: int) -> dict[int, int]:
    """snapshot → changed labels, of those that are stale."""
    moved = (
        select(Snapshot)
        .join(PairSet, col(PairSet.id) == col(Snapshot.pair_set_id))
        .where(Snapshot.project_id == project_id, Snapshot.state == "ready")
        .where(col(PairSet.labels_version) != col(Snapshot.labels_version))
    )
    found = {row.id: count_changed_labels(session, row) for row in session.exec(moved).all()}
    return {key: n for key, n in found.items() if n}


def stale_rows(session: Session, project_id: int) -> dict[str, dict[int, int]]:
    """Noun (snapshot, run, checkpoint) → id → changed labels: what was made of stale snapshots, however indirectly.

    A checkpoint trained from, against or towards a stale one (start, reference, reward model) is stale too.
    """
    found: dict[str, dict[int, int]] = {"snapshot": stale_snapshots(session, project_id), "run": {}, "checkpoint": {}}
    fresh = {("snapshot", key): n for key, n in found["snapshot"].items()}
    while fresh:
        made: dict[tuple[str, int], int] = {}
        for (noun, key), n in fresh.items():
            reads = select(RunIo.run_id).where(RunIo.noun == noun, RunIo.ref_id == key, ~col(RunIo.is_output))
            for run_id in session.exec(reads.distinct()).all():
                found["run"][run_id] = max(n, found["run"].get(run_id, 0))
            checkpoints = select(RunIo.ref_id).where(
                col(RunIo.run_id).in_(reads), col(RunIo.is_output), RunIo.noun == "checkpoint"
            )
            for checkpoint in session.exec(checkpoints).all():
                if found["checkpoint"].get(checkpoint, 0) < n:
                    found["checkpoint"][checkpoint] = made["checkpoint", checkpoint] = n
        fresh = made
    return found


def refreeze(session: Session, snapshot: Snapshot, account_id: int) -> tuple[Snapshot, Run]:
    """A new snapshot of the same verdicts with the labels as they stand now, launched; asking twice is once.

    Its row exists at once, in the state `writing`, so that what trains on it can be launched in the same breath.
    """
    labels_version = get(session, PairSet, snapshot.pair_set_id).labels_version
    name = get(session, VerdictSet, snapshot.verdict_set_id).name
    run = launch(
        session,
        SnapshotRecipe(
            name=f"{name}, labels {labels_version}"[:120], verdict_set=snapshot.verdict_set_id, waiver=snapshot.waiver
        ),
        project_id=snapshot.project_id, account_id=account_id,
        form_key=f"refreeze-{snapshot.verdict_set_id}-{labels_version}",
    )  # fmt: skip
    row = session.exec(select(Snapshot).where(Snapshot.run_id == run.id)).first()
    if row is None:
        row = Snapshot(
            project_id=snapshot.project_id, name=run.recipe["name"], pair_set_id=snapshot.pair_set_id,
            verdict_set_id=snapshot.verdict_set_id, labels_version=labels_version, run_id=run.id,
        )  # fmt: skip
        session.add(row)
        session.flush()
    return row, run


def retrain(session: Session, run: Run, account_id: int) -> Run:
    """The same training on labels as they stand now: a new snapshot, and a copy of the run that waits for it.

    Raises Invalid for a run that read no snapshot itself, and Conflict when its labels have not changed.
    """
    if run.kind not in OFFLINE:
        raise Invalid(
            f"A {run.kind} run reads no preferences itself: train what it starts from, or its reward model, again."
        )
    if run.recipe.get("snapshot") is None:
        raise Invalid("This run copied what an arm wrote: no label was part of it.")
    old = get(session, Snapshot, int(run.recipe["snapshot"]))
    if not count_changed_labels(session, old):
        raise Conflict("No label of its snapshot has changed since: there is nothing new to train on.")
    snapshot, freezing = refreeze(session, old, account_id)
    values: dict[str, Any] = {k: v for k, v in run.recipe.items() if k != "kind"} | {"snapshot": snapshot.id}
    return launch(
        session, OFFLINE[run.kind].model_validate(values), project_id=run.project_id, account_id=account_id,
        needs=[freezing.id], form_key=f"retrain-{run.id}-{snapshot.id}",
    )  # fmt: skip
