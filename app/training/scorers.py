"""Who scores a policy's samples: what trains it, what only watches, and whether the two are of one family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlmodel import Session

from app.checkpoints.models import Checkpoint, Endpoint
from app.constitutions.constitutions import read_principles
from app.db import get
from app.errors import Invalid
from app.judging.models import Judge, VerdictSet
from app.judging.recipes import members_of
from app.runs.models import Run
from app.training.health import ONLINE
from app.training.models import Snapshot

LONGEST_LINE = 50  # weights one upon another that are followed back


def say_signal(recipe: Mapping[str, Any], names: Mapping[tuple[str, int], str]) -> str:
    """What rewards an online run, with its weights; empty for a run that no score of its samples trains."""
    if recipe.get("kind") not in ONLINE:
        return ""
    by = recipe.get("reward_by", "mix")  # PPO adds whatever has a weight
    parts = []
    for field, noun, called in (("reward", "checkpoint", "reward_model"), ("judge", "judge", "judge")):
        key, weight = recipe.get(field), recipe.get(f"{field}_weight", 1.0)
        if key is not None and weight and by in {called, "mix"}:
            parts.append(_times(weight, f"{called.replace('_', ' ')} “{names[noun, key]}”"))
    if recipe.get("rule_weight", 0.0) and by in {"rule", "mix"}:
        flips = recipe.get("flip_rate", recipe.get("rule_flip_rate", 0.0))
        parts.append(_times(recipe["rule_weight"], "the rule" + (f" with {flips:.0%} turned round" if flips else "")))
    missing = recipe.get("missing_end_penalty", 0.0)
    return " + ".join(parts) + (f" − {missing:g} where it did not end" if missing else "")


def _times(weight: float, what: str) -> str:
    return what if weight == 1 else f"{weight:g} × {what}"


# ------------------------------------------------------------------------------- what watches, and where it comes from


@dataclass(frozen=True)
class Source:
    """A scorer at its root. The same key is the same scorer; the same family one base, or one model of one server."""

    said: str
    key: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class HeldOut:
    """What watches a run, and how it stands to what trains it."""

    noun: Literal["checkpoint", "judge"]
    id: int
    name: str
    families: str
    relation: Literal["other", "family", "labels", "same"]
    kin: str  # what of the training it is kin to, or differs from

    @property
    def said(self) -> str:
        """One sentence for a page."""
        also = {
            "other": f"of another family than what trains it ({self.kin})" if self.kin else "nothing else scores here",
            "family": f"not of another family: {self.kin} comes from there too, so both may share a fault",
            "labels": f"not of another family: its own labels are behind what trains it ({self.kin})",
            "same": f"not held out: it is what trains ({self.kin})",
        }[self.relation]
        return f"{self.families}; {also}"


def source_of_checkpoint(session: Session, key: int) -> Source:
    """A reward model, or a local judge, by the weights that its line of trainings began with."""
    row = first = get(session, Checkpoint, key)
    for _ in range(LONGEST_LINE):
        above = row.base_id or row.parent_id
        if above is None:
            break
        row = get(session, Checkpoint, above)
    root = row.source or row.name or f"checkpoint {row.id}"
    return Source(f"“{first.name}”", ("checkpoint", str(key)), f"base {root}")


def sources_of_judge(session: Session, judge: Judge) -> list[Source]:
    """A judge, or every member of a panel."""
    found = []
    for one in members_of(session, judge):
        said = f"“{one.name}”"
        if one.checkpoint_id is not None:
            source = source_of_checkpoint(session, one.checkpoint_id)
            found.append(Source(said, source.key, source.family))
        elif one.endpoint_id is not None:
            endpoint = get(session, Endpoint, one.endpoint_id)
            family = f"{endpoint.model} at {endpoint.origin}"
            found.append(Source(said, ("endpoint", endpoint.origin, endpoint.model), family))
        else:
            family = "the rule" if one.kind == "rule" else f"imported labels {said}"
            found.append(Source(said, (one.kind, "" if one.kind == "rule" else str(one.id)), family))
    return found


def sources_of_training(session: Session, recipe: Mapping[str, Any]) -> tuple[list[Source], list[Source]]:
    """(what scores or labels for the training itself, who gave the labels behind its reward model)."""
    direct, behind = [], []
    by = recipe.get("reward_by", "mix")
    if recipe.get("reward") is not None and recipe.get("reward_weight", 1.0) and by in {"reward_model", "mix"}:
        direct.append(source_of_checkpoint(session, recipe["reward"]))
        made = get(session, Checkpoint, recipe["reward"]).run_id
        if made is not None:
            behind = _labellers(session, get(session, Run, made).recipe)
    if recipe.get("judge") is not None and recipe.get("judge_weight", 1.0):
        direct += sources_of_judge(session, get(session, Judge, recipe["judge"]))
    if recipe.get("kind") in ONLINE and recipe.get("rule_weight", 0.0) and by in {"rule", "mix"}:
        direct.append(Source("the rule", ("rule", ""), "the rule"))
    return [*direct, *_labellers(session, recipe)], behind


def _labellers(session: Session, recipe: Mapping[str, Any]) -> list[Source]:
    """Whose verdicts a snapshot holds."""
    if recipe.get("snapshot") is None:
        return []
    verdicts = get(session, VerdictSet, get(session, Snapshot, recipe["snapshot"]).verdict_set_id)
    return sources_of_judge(session, get(session, Judge, verdicts.judge_id))


def describe_watcher(session: Session, recipe: Mapping[str, Any]) -> HeldOut | None:
    """What watches a run; None where nothing does."""
    noun: Literal["checkpoint", "judge"]
    if recipe.get("held_out") is not None:
        noun, key = "checkpoint", int(recipe["held_out"])
        mine, name = [source_of_checkpoint(session, key)], get(session, Checkpoint, key).name
    elif recipe.get("held_out_judge") is not None:
        noun, key = "judge", int(recipe["held_out_judge"])
        judge = get(session, Judge, key)
        mine, name = sources_of_judge(session, judge), judge.name
    else:
        return None
    direct, behind = sources_of_training(session, recipe)
    keys, families = {one.key for one in mine}, {one.family for one in mine}
    same = [one.said for one in direct if one.key in keys]
    labels = [one.said for one in behind if one.key in keys]
    kin = [one.said for one in [*direct, *behind] if one.family in families]
    relation: Literal["other", "family", "labels", "same"] = (
        "same" if same else "labels" if labels else "family" if kin else "other"
    )
    told = same or labels or kin or [one.family for one in direct]
    return HeldOut(noun, key, name, ", ".join(sorted(families)), relation, ", ".join(dict.fromkeys(told)))


def check_watcher(session: Session, recipe: Mapping[str, Any]) -> None:
    """Raises Invalid for a held-out scorer that rewards this very run, or a judge that cannot score by itself."""
    found = describe_watcher(session, recipe)
    if found is None:
        return
    field = "held_out" if found.noun == "checkpoint" else "held_out_judge"
    if found.relation == "same" and recipe.get("kind") in ONLINE:
        message = f"“{found.name}” is not held out: it is what rewards this run ({found.kin}). Choose another, or none."
        raise Invalid(message, {field: [message]})
    if found.noun == "judge":
        _check_judge(session, get(session, Judge, found.id), recipe.get("held_out_constitution"))


def _check_judge(session: Session, judge: Judge, constitution: int | None) -> None:
    kinds = {one.kind for one in members_of(session, judge)}
    wrong = ""
    if "imported" in kinds:
        wrong = f"“{judge.name}” came with its labels: it can score nothing new."
    elif "reward" in kinds and judge.kind == "panel":
        wrong = f"“{judge.name}” has a reward model as a member, whose scores have no scale in common with the others’."
    elif kinds & {"endpoint", "checkpoint"} and constitution is None:
        wrong = f"“{judge.name}” scores by a constitution: choose one."
    if wrong:
        raise Invalid(wrong, {"held_out_judge": [wrong]})
    if constitution is not None and not any(one.weight for one in read_principles(session, constitution)):
        wrong = "An overall score needs a constitution with a weight above 0."
        raise Invalid(wrong, {"held_out_constitution": [wrong]})
