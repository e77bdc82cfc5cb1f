"""Rounds: sampling from a checkpoint that was trained, judging what it writes, and training on from it.

A round is a training of a checkpoint's line on labels that no earlier training of the line had read. Its number is
counted from what runs read, so it needs no column and holds for any method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.pairs.models import Pair, PairSet
from app.prompts.models import Prompt
from app.runs.models import Run, RunIo
from app.training.models import Snapshot
from app.training.scorers import LONGEST_LINE

ON_PAIRS = ("dpo", "simpo", "kto", "sft")  # what a next round may train by; after PPO and its kin it is DPO


@dataclass(frozen=True)
class Round:
    """One round of a line: what was trained, from and held to what, and what was new in it."""

    number: int
    checkpoint: Checkpoint  # what the round made
    run: Run  # the training
    start: Checkpoint
    reference: Checkpoint | None
    snapshot: Snapshot
    verdicts: VerdictSet
    judge: Judge
    writer: str  # whose samples were judged
    is_own: bool  # they are those of the checkpoint that the round started from
    n_prompts: int
    n_new_prompts: int  # of these, in no earlier round of the line


def read_rounds(session: Session, checkpoint: Checkpoint) -> list[Round]:
    """The rounds of a checkpoint's line, the first one first; empty where nothing in it was trained on labels."""
    line = [checkpoint]
    while line[0].parent_id is not None and len(line) < LONGEST_LINE:
        line.insert(0, get(session, Checkpoint, line[0].parent_id))
    rounds: list[Round] = []
    read: set[int] = set()
    asked: set[str] = set()
    for row in line:
        run = session.get(Run, row.run_id) if row.run_id else None
        snapshot = labels_of(session, run) if run and row.parent_id else None
        if run is None or snapshot is None or snapshot.verdict_set_id in read:
            continue
        read.add(snapshot.verdict_set_id)
        prompts = _prompts_of(session, snapshot.pair_set_id)
        rounds.append(_as_round(session, len(rounds) + 1, row, run, snapshot, (len(prompts), len(prompts - asked))))
        asked |= prompts
    return rounds


def labels_of(session: Session, run: Run) -> Snapshot | None:
    """The preferences that a training run learned from: its own, or its reward model's."""
    key = run.recipe.get("snapshot")
    if key is None and run.recipe.get("reward") is not None:
        made_by = get(session, Checkpoint, int(run.recipe["reward"])).run_id
        return labels_of(session, get(session, Run, made_by)) if made_by else None
    return get(session, Snapshot, int(key)) if key is not None else None


def _as_round(
    session: Session, number: int, row: Checkpoint, run: Run, snapshot: Snapshot, counts: tuple[int, int]
) -> Round:  # fmt: skip
    verdicts = get(session, VerdictSet, snapshot.verdict_set_id)
    reference = run.recipe.get("reference")
    writing = _written_by(session, get(session, PairSet, snapshot.pair_set_id))
    writer = session.get(Checkpoint, writing.recipe["checkpoint"]) if writing and writing.recipe["checkpoint"] else None
    return Round(
        number=number, checkpoint=row, run=run, start=get(session, Checkpoint, row.parent_id or 0),
        reference=get(session, Checkpoint, int(reference)) if reference is not None else None,
        snapshot=snapshot, verdicts=verdicts, judge=get(session, Judge, verdicts.judge_id),
        writer=writer.name if writer else ("an endpoint" if writing else "others (a file or a revision)"),
        is_own=writer is not None and writer.id == row.parent_id, n_prompts=counts[0], n_new_prompts=counts[1],
    )  # fmt: skip


def _written_by(session: Session, pairs: PairSet) -> Run | None:
    """The run that sampled both sides, where one did."""
    run = session.get(Run, pairs.run_id) if pairs.run_id else None
    return run if run is not None and run.kind == "generate" else None


def _prompts_of(session: Session, pair_set_id: int) -> set[str]:
    """Hashes of the prompts of a pair set: the same prompt in another set is no new one."""
    query = sa.select(col(Prompt.sha256)).join(Pair, col(Pair.prompt_id) == col(Prompt.id))
    return set(session.execute(query.where(col(Pair.pair_set_id) == pair_set_id).distinct()).scalars())


def round_as_json(one: Round) -> dict[str, Any]:
    """A round as plain values."""
    return {
        "round": one.number, "checkpoint": one.checkpoint.id, "run": one.run.id, "start": one.start.id,
        "reference": one.reference and one.reference.id, "judge": one.judge.name, "verdict_set": one.verdicts.id,
        "labels": one.snapshot.n_train, "samples_of": one.writer, "is_own_samples": one.is_own,
        "prompts": one.n_prompts, "new_prompts": one.n_new_prompts,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- the next round


@dataclass(frozen=True)
class Step:
    """One step of a next round: what was made already, newest first, and forms filled in for what comes."""

    title: str
    about: str
    made: list[tuple[str, str]]  # (name, address below the project)
    forms: list[tuple[str, str]]  # (what the button says, address below the project); none: it waits for the step above


def read_next_round(session: Session, checkpoint: Checkpoint, rounds: list[Round]) -> list[Step]:
    """What a round from this checkpoint takes, with the settings of the last round of its line."""
    last = rounds[-1] if rounds else None
    name = f"round {len(rounds) + 1}"
    pairs = _pairs_sampled_from(session, checkpoint)
    verdicts = _rows(session, VerdictSet, col(VerdictSet.pair_set_id).in_([one.id for one in pairs]))
    snapshots = _rows(session, Snapshot, col(Snapshot.verdict_set_id).in_([one.id for one in verdicts]))
    trained = _rows(session, Checkpoint, Checkpoint.parent_id == checkpoint.id)
    writing = _written_by(session, get(session, PairSet, last.snapshot.pair_set_id)) if last else None
    judging = session.get(Run, last.verdicts.run_id) if last and last.verdicts.run_id else None
    like_judging = judging.recipe if judging and judging.kind == "judge" else {}
    judge_form = _form("judge", like_judging, name=name, pair_set=pairs[0].id, compare_with=None) if pairs else ""
    freeze_form = _form("snapshot", {}, name=name, verdict_set=verdicts[0].id) if verdicts else ""
    sample_form = _form(
        "generate", writing.recipe if writing else {}, name=name, checkpoint=checkpoint.id, endpoint=None,
        other_checkpoint=None, **({"pairing": "random"} if writing and writing.recipe["pairing"] == "across" else {}),
    )  # fmt: skip
    return [
        Step("Sample pairs from it", "The same prompts and decoding as the last round, unless you change them.",
             [(one.name, f"pairs/{one.id}") for one in pairs], [("Sample pairs", sample_form)]),
        Step("Judge them", "By the same judge and constitution as the last round.",
             [(one.name, f"judge/{one.id}") for one in verdicts], [("Judge", judge_form)] if judge_form else []),
        Step("Freeze preferences", "Audit or repair labels before, as in any round.",
             [(one.name, f"train/snapshots/{one.id}") for one in snapshots],
             [("Freeze", freeze_form)] if freeze_form else []),
        Step("Train on from it", "Held to this checkpoint, the KL begins at zero again; held to where the rounds "
             "began, it is what PPO’s is: the distance from the first start.",
             [(one.name, f"checkpoints/{one.id}") for one in trained if one.role == "policy"],
             _training_forms(checkpoint, rounds, snapshots[0].id, name) if snapshots else []),
    ]  # fmt: skip


def _training_forms(checkpoint: Checkpoint, rounds: list[Round], snapshot: int, name: str) -> list[tuple[str, str]]:
    last = rounds[-1].run if rounds else None
    kind = last.kind if last and last.kind in ON_PAIRS else "dpo"
    like = last.recipe if last and last.kind == kind else {}
    given: dict[str, Any] = {"name": name, "start": checkpoint.id, "snapshot": snapshot}
    if kind in {"simpo", "sft"}:
        return [("Train on", _form(kind, like, **given))]
    forms = [
        ("Train on, held to this checkpoint", _form(kind, like, **given, reference=checkpoint.id, is_later_round=None))
    ]
    began = rounds[0].start.id if rounds else checkpoint.id
    if kind == "dpo" and began != checkpoint.id:
        held = _form(kind, like, **given, reference=began, is_later_round=True)
        forms.append(("Train on, held to where the rounds began", held))
    return forms


def _pairs_sampled_from(session: Session, checkpoint: Checkpoint) -> list[PairSet]:
    read = select(RunIo.run_id).where(
        RunIo.noun == "checkpoint", RunIo.ref_id == checkpoint.id, col(RunIo.is_output).is_(False)
    )
    return _rows(
        session, PairSet, col(PairSet.run_id).in_(select(Run.id).where(Run.kind == "generate", col(Run.id).in_(read)))
    )


def _rows(session: Session, kind: Any, where: Any) -> list[Any]:
    """The newest few of these; what was put away is left out."""
    query = select(kind).where(where)
    if hasattr(kind, "archived_at"):
        query = query.where(kind.archived_at.is_(None))
    return list(session.exec(query.order_by(kind.id.desc()).limit(5)))


def _form(kind: str, like: Mapping[str, Any], **given: Any) -> str:
    """The address of a recipe's form, filled in as an earlier run was, with some fields given."""
    filled: list[tuple[str, str]] = []
    for field, value in {**like, **given}.items():
        if field != "kind":
            filled += _flat(field, value)
    return f"new/{kind}?{urlencode(filled)}"


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    """A field as the form sends it: dotted names, one entry a list's item; nothing for what is not set."""
    if isinstance(value, dict):
        return [pair for inner, one in value.items() for pair in _flat(f"{name}.{inner}", one)]
    if isinstance(value, list):
        return [pair for one in value for pair in _flat(name, one)]
    if value is None or value == "":
        return []
    return [(name, str(value).lower() if isinstance(value, bool) else str(value))]
