"""What the training pages show: runs with their headline, snapshots, a run's panel, and warnings before one."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.constitutions.models import Constitution
from app.db import MAX_ID, get
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.projects.access import Member
from app.prompts.hygiene import warnings_of
from app.prompts.models import PromptSet
from app.review.cards import failed_card, judge_of_reward_model, lines_that
from app.runs.models import RUN_STATE, STATES, Metric, Run, RunIo
from app.tables import Column, Filter, Table
from app.training.health import Note, write_notes
from app.training.models import Snapshot
from app.training.recipe_parts import TrainingRecipe
from app.training.recipes import (
    DpoRecipe,
    GrpoRecipe,
    KtoRecipe,
    PpoRecipe,
    RewardRecipe,
    RlooRecipe,
    SftRecipe,
    SimpoRecipe,
)
from app.training.scorers import describe_watcher
from app.training.stale import count_changed_labels, stale_rows

METHODS: dict[str, type[TrainingRecipe]] = {
    "sft": SftRecipe, "reward": RewardRecipe, "dpo": DpoRecipe, "simpo": SimpoRecipe, "kto": KtoRecipe,
    "ppo": PpoRecipe, "grpo": GrpoRecipe, "rloo": RlooRecipe,
}  # fmt: skip
POINTS_READ = 400
# The curve that says most about each method, always on the dev split.
HEADLINES = {
    "sft": "dev_loss", "reward": "dev_accuracy", "dpo": "dev_accuracy", "simpo": "dev_accuracy", "kto": "dev_loss",
    "ppo": "dev_reward", "grpo": "dev_reward", "rloo": "dev_reward",
}  # fmt: skip


def runs_table(member: Member) -> Table:
    """The project's training runs, with the last value of each one's headline curve."""
    root = f"/p/{member.project.slug}/runs"
    name = sa.case(HEADLINES, value=col(Run.kind))
    last = (
        sa.select(col(Metric.value))
        .where(col(Metric.run_id) == col(Run.id), col(Metric.name) == name)
        .order_by(col(Metric.step).desc())
        .limit(1)
        .scalar_subquery()
    )
    columns = [
        Column("id", Run.id, "Run", "number", lambda row: f"{root}/{row['id']}"),
        Column("kind", Run.kind, "Method"),
        Column("title", Run.title, "Title", href=lambda row: f"{root}/{row['id']}"),
        Column("status", RUN_STATE, "Status", "badge"),
        Column("headline", name, "Measured"),
        Column("value", last, "Last value", "number"),
        Column("cost", Run.cost, "Budget"),
        Column("created_at", Run.created_at, "Started", "when", is_sortable=True),
        Column("recipe", Run.recipe, is_shown=False),
    ]
    where = [Run.project_id == member.project.id, col(Run.kind).in_(METHODS)]
    filters = [Filter("kind", Run.kind, "Method", tuple(METHODS)), Filter("status", RUN_STATE, "Status", STATES)]
    return Table("training-runs", columns, Run, Run.id, where, filters)


def snapshots_table(member: Member) -> Table:
    """The project's frozen preferences."""
    root = f"/p/{member.project.slug}"
    columns = [
        Column("id", Snapshot.id, is_shown=False),
        Column("name", Snapshot.name, "Snapshot", href=lambda row: f"{root}/train/snapshots/{row['id']}"),
        Column("state", Snapshot.state, "State", "badge"),
        Column("verdict_set", VerdictSet.name, "Verdicts", href=lambda row: f"{root}/judge/{row['verdict_set_id']}"),
        Column("verdict_set_id", Snapshot.verdict_set_id, is_shown=False),
        Column("n_train", Snapshot.n_train, "Train", "number"),
        Column("n_dev", Snapshot.n_dev, "Dev", "number"),
        Column("labels_version", Snapshot.labels_version, is_shown=False),
        Column("counts", Snapshot.counts, is_shown=False, is_read=False),
        Column("sha256", Snapshot.sha256, is_shown=False),
        Column("created_at", Snapshot.created_at, "Frozen", "when"),
    ]
    source = sa.join(Snapshot, VerdictSet, col(VerdictSet.id) == col(Snapshot.verdict_set_id))
    return Table("snapshots", columns, source, Snapshot.id, [Snapshot.project_id == member.project.id])


def preview(snapshot: Snapshot, *, by_people: bool = False, n: int = 5) -> list[dict[str, Any]] | None:
    """The first rows of a snapshot's file, or of those whose label is a person's; None where the file is gone."""
    path = settings().data_path / snapshot.path
    if not snapshot.path or not path.is_file():
        return None
    rows, said = list[dict[str, Any]](), snapshot.counts.get("overrides", {})
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            row["is_by_people"] = said.get(str(row["pair"])) in {"a", "b"}
            rows += [row] if row["is_by_people"] or not by_people else []
            if len(rows) == n:
                break
    return rows


def read_panel(session: Session, run: Run) -> dict[str, Any]:
    """Start, reference and what else a training run was given, its budget, and the newest point of each curve."""
    named: list[tuple[str, str, str, int]] = []
    for field, label in (("start", "Start"), ("reference", "Reference"), ("reward", "Reward model")):
        if run.recipe.get(field) is not None:
            row = get(session, Checkpoint, int(run.recipe[field]))
            named.append((label, row.name, "checkpoints", row.id))
    if run.recipe.get("judge") is not None:
        judge = get(session, Judge, int(run.recipe["judge"]))
        named.append(("Judge that rewards", judge.name, "judge/judges", judge.id))
    if run.recipe.get("snapshot") is not None:
        frozen = get(session, Snapshot, int(run.recipe["snapshot"]))
        named.append(("Preferences", frozen.name, "train/snapshots", frozen.id))
    newest = (
        sa.select(col(Metric.name), sa.func.max(col(Metric.step)).label("step"))
        .where(col(Metric.run_id) == run.id)
        .group_by(col(Metric.name))
        .subquery()
    )
    latest = session.execute(
        sa.select(col(Metric.name), col(Metric.step), col(Metric.value))
        .join(newest, sa.and_(newest.c.name == col(Metric.name), newest.c.step == col(Metric.step)))
        .where(col(Metric.run_id) == run.id)
        .order_by(col(Metric.name))
    ).all()
    is_watched = "held_out" in run.recipe
    return {
        "named": named, "latest": latest, "headline": HEADLINES[run.kind], "notes": read_notes(session, run),
        "facts": facts_made(session, run), "is_watched": is_watched,
        "held_out": describe_watcher(session, run.recipe) if is_watched else None,
    }  # fmt: skip


def read_notes(session: Session, run: Run) -> list[Note]:
    """The run's health in words: from its curves, and from the rows it trains on."""
    names = sa.select(col(Metric.name), col(Metric.step), col(Metric.value)).where(col(Metric.run_id) == run.id)
    last = session.execute(sa.select(sa.func.max(col(Metric.step))).where(col(Metric.run_id) == run.id)).scalar() or 0
    every = last // POINTS_READ + 1  # long runs are read at every k-th step
    curves: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
    thinned = names.where(sa.or_(col(Metric.step) % every == 0, col(Metric.name).startswith("dev_")))
    for name, step, value in session.execute(thinned.order_by(col(Metric.name), col(Metric.step))):
        curves[name].append((step, value))
    notes = write_notes(
        run.kind, run.recipe, curves, int(run.cost.get("repeated_rows", 0)), facts_made(session, run).get("held_out")
    )
    return [Note("act", str(run.error), ()), *notes] if run.is_paused else notes


def facts_made(session: Session, run: Run) -> dict[str, Any]:
    """What a reward run's checkpoint says of itself; empty for another kind, or until it stands."""
    if run.kind != "reward":
        return {}
    made = select(Checkpoint.facts).where(Checkpoint.run_id == run.id).order_by(col(Checkpoint.step).desc())
    return dict(session.exec(made).first() or {})


def read_config(session: Session, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The model's configuration where its files are on this machine; an adapter's is its base's."""
    folder = root_folder(session, checkpoint)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "hidden_size" in found else None


def root_folder(session: Session, checkpoint: Checkpoint) -> Path | None:
    """Where the full weights' files and the tokenizer are, if on this machine at all: an adapter's are its base's."""
    row: Checkpoint | None = checkpoint
    while row is not None and row.weights == "adapter" and row.base_id is not None:
        row = session.get(Checkpoint, row.base_id)
    if row is None:
        return None
    return settings().data_path / row.path if row.path else Path(row.source)


def read_warnings(session: Session, member: Member, values: Mapping[str, Any]) -> list[str]:
    """What somebody should know of prompts and judge before training, from a form that may be half filled in."""

    def row_of(kind: Any, name: str) -> Any:
        asked = str(values.get(name, ""))
        key = int(asked) if asked.isdecimal() and len(asked) < 20 else 0
        row = session.get(kind, key) if 0 < key <= MAX_ID else None
        return row if row is not None and row.project_id == member.project.id else None

    prompts = row_of(PromptSet, "prompt_set")
    snapshot = row_of(Snapshot, "snapshot")
    if snapshot is not None:
        prompts = get(session, PromptSet, get(session, PairSet, snapshot.pair_set_id).prompt_set_id)
    said = list(warnings_of(prompts)) if prompts is not None else []
    said += _stale(session, snapshot, {name: row_of(Checkpoint, name) for name in ("reward", "start", "reference")})
    judge = row_of(Judge, "judge")
    constitution = row_of(Constitution, "constitution")
    cards = [failed_card(session, judge.id, constitution.id)] if judge and constitution else []
    reward = row_of(Checkpoint, "reward")
    model = judge_of_reward_model(session, reward.id) if reward is not None else None
    cards += [failed_card(session, model.id, None)] if model is not None else []
    for failed in filter(None, cards):
        broken = "; ".join(lines_that(failed, "failed"))
        said.append(
            f"“{get(session, Judge, failed.judge_id).name}” failed its Judge Card {failed.id} ({broken}): its scores "
            "train only with a reason, to be typed among the other settings."
        )
    return said


def _stale(session: Session, snapshot: Snapshot | None, checkpoints: Mapping[str, Checkpoint | None]) -> list[str]:
    """What was frozen from, or trained on, labels that people have changed since."""
    n = count_changed_labels(session, snapshot) if snapshot is not None else 0
    said = []
    if snapshot is not None and n:
        said.append(
            f"{n:,} label{'s' if n > 1 else ''} of “{snapshot.name}” changed after it was frozen: this trains on the "
            "old ones. Freeze the labels again first, on the snapshot’s page."
        )
    chosen = {
        row.id: (name, row) for name, row in reversed(list(checkpoints.items())) if row is not None and row.run_id
    }
    if chosen:
        stale = stale_rows(session, next(iter(chosen.values()))[1].project_id)["checkpoint"]
        for key, (name, row) in chosen.items():
            if key in stale:
                what = {"reward": "reward model", "start": "start", "reference": "reference"}[name]
                said.append(
                    f"The {what} “{row.name}” grew from labels of which {stale[key]:,} changed since: train it again "
                    "first, or this run follows the old ones."
                )
    return said


def readers_of(session: Session, snapshot: Snapshot) -> list[Run]:
    """The runs that trained on a snapshot, newest first."""
    reads = select(RunIo.run_id).where(RunIo.noun == "snapshot", RunIo.ref_id == snapshot.id, ~col(RunIo.is_output))
    return list(session.exec(select(Run).where(col(Run.id).in_(reads)).order_by(col(Run.id).desc())))
