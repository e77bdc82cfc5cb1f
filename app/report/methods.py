"""What was done, in sentences made from the recipes and the rows they led to."""

from sqlmodel import Session

from app.checkpoints.models import Checkpoint
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.prompts.models import PromptSet
from app.report.arms import Material
from app.training.models import Snapshot

JUDGE_KINDS = {
    "endpoint": "a model behind an OpenAI-compatible endpoint",
    "checkpoint": "a local checkpoint, by log-probabilities",
    "reward": "a reward model",
    "rule": "a rule",
    "panel": "a panel of judges",
    "imported": "labels that came with the data",
}


PAIRINGS = {
    "none": "not paired",
    "random": "paired at random",
    "best_worst": "the best against the worst",
    "across": "paired across two arms",
}


def describe(session: Session, material: Material) -> list[str]:
    """Sentences in the order of the work, one a row that was made; the same row is said once."""
    said: list[str] = []
    for step in material.steps:
        if step.status != "done":
            continue
        for noun, key in material.makes.get(step.run_id or 0, []):
            sentence = _describe_row(session, material, noun, key)
            if sentence and sentence not in said:
                said.append(sentence)
    return said


def _describe_row(session: Session, material: Material, noun: str, key: int) -> str:
    if noun == "prompt_set":
        found = get(session, PromptSet, key)
        splits = ", ".join(f"{n:,} {split}" for split, n in found.counts.items() if n)
        return f"Prompts “{found.name}”: {found.n:,}" + (f" ({splits}; split by prompt group)." if splits else ".")
    if noun == "pair_set":
        pairs = get(session, PairSet, key)
        return f"Pairs “{pairs.name}”: {pairs.n:,}{_how_sampled(session, material, key)}."
    if noun == "verdict_set":
        return _describe_verdicts(session, get(session, VerdictSet, key))
    if noun == "snapshot":
        return _describe_snapshot(get(session, Snapshot, key))
    return ""


def _how_sampled(session: Session, material: Material, pair_set_id: int) -> str:
    run = material.runs.get(material.maker.get(("pair_set", pair_set_id), 0))
    if run is None or run.kind != "generate":
        return ", with their labels, from a file"
    recipe = run.recipe
    who = get(session, Checkpoint, recipe["checkpoint"]).name if recipe.get("checkpoint") else "an endpoint"
    decoding = recipe["decoding"]
    return (
        f", of {recipe['samples']} completion{'' if recipe['samples'] == 1 else 's'} a prompt by {who} "
        f"at temperature {decoding['temperature']:g} "
        f"({decoding['max_new_tokens']} new tokens at most), {PAIRINGS[recipe['pairing']]}"
    )


def _describe_verdicts(session: Session, verdicts: VerdictSet) -> str:
    judge = get(session, Judge, verdicts.judge_id)
    oracle = ", an oracle: it reads gold answers" if judge.is_oracle else ""
    flips = judge.settings.get("flip_rate", 0)
    errors = f"; errs on purpose on {flips:.0%} of pairs" if flips else ""
    anew = ", re-aggregated with other weights and not re-judged" if verdicts.parent_id else ""
    counts = f"{verdicts.n_a:,} a, {verdicts.n_b:,} b, {verdicts.n_tie:,} ties, {verdicts.n_null:,} unreadable"
    return f"Judge “{judge.name}” ({JUDGE_KINDS[judge.kind]}{oracle}{errors}): {verdicts.n:,} verdicts{anew}, {counts}."


def _describe_snapshot(snapshot: Snapshot) -> str:
    n_overridden = snapshot.counts.get("overridden", 0)
    people = f", {n_overridden:,} of them set by a person" if n_overridden else ""
    return (
        f"Preferences “{snapshot.name}”: {snapshot.n_train:,} to train on, {snapshot.n_dev:,} held out{people}; frozen "
        f"with hash {snapshot.sha256[:12]}."
    )
