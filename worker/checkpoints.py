"""Between a checkpoint's row and its files: what to load for a row, and the row for what a run has written."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import get
from worker.job import Job
from worker.loading import Weights
from worker.saving import save_folder


def weights_of(session: Session, checkpoint_id: int) -> Weights:
    """Where a checkpoint's files are, with its base underneath where it is an adapter."""
    row = get(session, Checkpoint, checkpoint_id)
    place = str(settings().data_path / row.path) if row.path else row.source
    base = weights_of(session, row.base_id) if row.weights == "adapter" and row.base_id else None
    return Weights(place, row.manifest_sha256, base, row.revision or None)


def store_checkpoint(
    job: Job,
    write: Callable[[Path], None],
    *,
    method: str,
    role: str = "policy",
    start: int | None = None,
    is_adapter: bool = False,
    step: int = 0,
    n_parameters: int = 0,
    facts: dict[str, Any] | None = None,
) -> int:
    """Writes what `write` puts into a folder, and its row; returns the row's id.

    An attempt that died between the two is made good: the next one writes again, and finds the row if there is one.
    """
    with job.read() as session:
        base_id = _base_of(session, start) if is_adapter and start is not None else None
        base_sha256 = get(session, Checkpoint, base_id).manifest_sha256 if base_id is not None else ""
    # An attempt writes into a folder of its own: one that was taken over can change nothing that a row points to.
    mark = f"run-{job.run_id}-{role}"
    target = settings().folder("checkpoints") / f"{mark}-{job.attempt}"
    known = {"method": method, "role": role, "base_sha256": base_sha256, "run": job.run_id, "step": step}
    _, manifest_sha256 = save_folder(target, write, known)
    with job.write() as session:
        mine = select(Checkpoint).where(
            Checkpoint.run_id == job.run_id, Checkpoint.step == step, Checkpoint.role == role
        )
        row = session.exec(mine).first() or Checkpoint(
            project_id=job.project_id, name="", method=method, role=role, run_id=job.run_id, step=step
        )
        row.name = job.recipe.name or f"{method} of run {job.run_id}"
        row.weights = "adapter" if is_adapter else "full"
        row.base_id, row.parent_id = base_id, start
        row.path = str(target.relative_to(settings().data_path))
        row.manifest_sha256, row.n_parameters = manifest_sha256, n_parameters
        row.seed, row.facts = job.seed, facts or {}
        session.add(row)
        session.flush()
        job.made(session, "checkpoint", row.id, manifest_sha256)
        checkpoint_id = row.id
    for earlier in target.parent.glob(f"{mark}-*"):
        if earlier != target:
            shutil.rmtree(earlier, ignore_errors=True)
    return checkpoint_id


def store_trained(
    job: Job, model: Any, tokenizer: Any, curves: dict[str, float], *, role: str = "policy", step: int,
    facts: dict[str, Any] | None = None,
) -> int:  # fmt: skip
    """Stores what a trainer left in `model`: an adapter alone, or all weights; with the tokenizer."""
    is_adapter = hasattr(model, "peft_config")

    def write(folder: Path) -> None:
        if is_adapter:
            model.save_pretrained(folder, selected_adapters=["default"])  # not the frozen copies beside it
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    # What is not finite has no number, and Postgres stores no JSON that holds one.
    held_out = {
        name: value if math.isfinite(value) else None
        for name, value in curves.items()
        if name.startswith("dev_") or name in {"kept_step", "last_step"}
    }
    return store_checkpoint(
        job,
        write,
        method=job.recipe.kind,
        role=role,
        start=job.recipe.start,
        is_adapter=is_adapter,
        step=step,
        n_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        facts={**facts_of(model, tokenizer), **held_out, **(facts or {})},
    )


def facts_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a page says of a checkpoint beside its row."""
    return {
        "context": getattr(model.config, "max_position_embeddings", None),
        "has_chat_template": bool(tokenizer.chat_template),
    }


def _base_of(session: Session, checkpoint_id: int) -> int:
    """The full weights an adapter trained from this checkpoint sits on."""
    row = get(session, Checkpoint, checkpoint_id)
    return _base_of(session, row.base_id) if row.weights == "adapter" and row.base_id else row.id
