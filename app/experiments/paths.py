"""Each arm's path along its own training: what the flight recorder read at its looks, against KL to the reference.

An audit on few prompts, drawn beside what was measured in full and never in its place: a path's KL is k1 on one sample
a prompt (worker/distance.py), a measurement's is exact over the vocabulary on several.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.experiments.frontier import Frontier, Point, percent
from app.experiments.models import Experiment, Step
from app.judging.models import Judge
from app.runs.models import Run
from app.stats.intervals import Interval
from app.training.paths import Look, read_looks
from app.training.scorers import say_signal

By = Literal["held_out", "reward"]
FEWEST = 2  # prompts that paths must share to be drawn together


@dataclass(frozen=True)
class Stand:
    """One look as it is drawn: a KL and a score, each with its interval over prompts."""

    step: int
    kl: Interval
    kl_k3: Interval | None
    score: Interval


@dataclass(frozen=True)
class ArmPath:
    """One run's way."""

    label: str
    path: str  # the arm's name without what was tried, as the frontier's points have it
    method: str
    run: Run
    looks: list[Look]

    def stands(self, by: By) -> list[Stand]:
        """Where it stood at each look that has both a KL and a score."""
        found = []
        for look in self.looks:
            kl, score = look.kl, look.interval(by)
            if kl is not None and score is not None:
                found.append(Stand(look.step, kl, look.interval("kl_k3"), score))
        return found

    @property
    def prompts(self) -> frozenset[str]:
        """What every look was on: the same prompts."""
        return frozenset(self.looks[0].prompts)

    @property
    def reference(self) -> int:
        """What its KL is to."""
        return int(self.run.recipe.get("reference") or self.run.recipe["start"])


@dataclass(frozen=True)
class Paths:
    """Paths on one scale, from one reference, over the same prompts; with the full measurements on that scale."""

    by: By
    said: str  # who scores
    paths: list[ArmPath]
    left_out: list[ArmPath]
    points: list[Point] = field(default_factory=list)

    @property
    def reference(self) -> int:
        """What every KL is to."""
        return self.paths[0].reference

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.paths[0].prompts)

    @cached_property
    def drawn(self) -> list[tuple[ArmPath, list[Stand]]]:
        """Every path with its looks."""
        return [(path, path.stands(self.by)) for path in self.paths]

    @cached_property
    def kl_ends(self) -> tuple[float, float]:
        kls = [stand.kl.value for _, stands in self.drawn for stand in stands] + [one.kl.value for one in self.points]
        right = max(kls) * 1.05 if max(kls) > 0 else 1.0
        return min(-0.03 * right, *kls), right

    @cached_property
    def score_ends(self) -> tuple[float, float]:
        scores = [stand.score.value for _, stands in self.drawn for stand in stands]
        scores += [end for one in self.points for end in (one.quality.value, one.quality.low, one.quality.high)
                   if end is not None]  # fmt: skip
        pad = 0.08 * (max(scores) - min(scores)) or 0.5
        return min(scores) - pad, max(scores) + pad

    def x(self, kl: float) -> str:
        """Where a KL stands, in percent from the left."""
        return percent(kl, self.kl_ends)

    def y(self, score: float) -> str:
        """Where a score stands, in percent from the top."""
        low, high = self.score_ends
        return percent(low + high - score, self.score_ends)


@dataclass(frozen=True)
class Passing:
    """The look of a path that was nearest to a KL at which two arms are compared. Exploratory."""

    label: str
    kl: float  # where the arms are compared
    stand: Stand


def read_paths(session: Session, experiment: Experiment, frontiers: Sequence[Frontier]) -> list[Paths]:
    """The paths of an experiment's arms, a drawing for each scale; runs that kept none are passed over."""
    query = select(Step, Run).join(Run, col(Run.id) == col(Step.run_id)).where(
        Step.experiment_id == experiment.id, Step.arm != ""
    )  # fmt: skip
    rows = session.exec(query.order_by(col(Step.position), col(Step.seed))).all()
    looks = read_looks(session, {run.id for _, run in rows})
    is_many = len(experiment.seeds) > 1
    paths = [
        ArmPath(f"{step.arm}, seed {step.seed}" if step.seed and is_many else step.arm, step.arm.partition(": ")[0],
                run.kind, run, looks[run.id])
        for step, run in rows if run.id in looks
    ]  # fmt: skip
    names = _names(session, [path.run.recipe for path in paths])
    return group_paths(paths, names, frontiers)


def group_paths(
    paths: Iterable[ArmPath], names: Mapping[tuple[str, int], str], frontiers: Sequence[Frontier] = ()
) -> list[Paths]:
    """Paths that can stand in one drawing: scored alike, from one reference, on prompts that all of them share."""
    alike: dict[tuple[By, int, str], list[ArmPath]] = {}
    for path in paths:
        for by in ("held_out", "reward"):
            said = _say_scale(by, path.run.recipe, names)
            if said and path.stands(by):
                alike.setdefault((by, path.reference, said), []).append(path)
    found = []
    for (by, reference, said), many in alike.items():
        together, left_out = share_prompts(many)
        kept = [path for path in together if path.stands(by)]  # something was read of the prompts that all share
        if not kept:
            continue
        scorer = many[0].run.recipe.get("held_out") if by == "held_out" else None
        points = [
            point for one in frontiers for point in one.points
            if scorer is not None and one.recipe.get("reward") == scorer and one.recipe["reference"] == reference
        ]  # fmt: skip
        found.append(Paths(by, said, kept, left_out, points))
    return found


def share_prompts(paths: Sequence[ArmPath]) -> tuple[list[ArmPath], list[ArmPath]]:
    """The paths over the prompts that they share with the first, and those that share too few of them."""
    shared, kept, left_out = paths[0].prompts, [paths[0]], []
    for path in paths[1:]:
        if len(shared & path.prompts) >= min(FEWEST, len(shared)):
            shared &= path.prompts
            kept.append(path)
        else:
            left_out.append(path)
    only = [ArmPath(one.label, one.path, one.method, one.run, [look.only(shared) for look in one.looks])
            for one in kept]  # fmt: skip
    return only, left_out


def find_passings(drawings: Sequence[Paths], frontiers: Sequence[Frontier]) -> list[Passing]:
    """For each KL at which two arms are compared, the look of either that came nearest, where its path spans it."""
    found: dict[tuple[str, float], Passing] = {}
    for frontier in frontiers:
        near = [one for one in drawings if one.reference == frontier.recipe["reference"]]
        for compared in frontier.matched:
            kl = compared.found.kl
            for paths in near:
                for path, stands in paths.drawn:
                    kls = [stand.kl.value for stand in stands]
                    if kl is not None and path.path in {compared.a, compared.b} and min(kls) <= kl <= max(kls):
                        nearest = min(stands, key=lambda stand: abs(stand.kl.value - kl))
                        found.setdefault((path.label, kl), Passing(path.label, kl, nearest))
    return list(found.values())


def _say_scale(by: By, recipe: Mapping[str, Any], names: Mapping[tuple[str, int], str]) -> str:
    """Who scores, in words that are the same for the same scale; empty where nobody does."""
    if by == "reward":
        return say_signal(recipe, names)
    if recipe.get("held_out") is not None:
        return f"reward model “{names['checkpoint', recipe['held_out']]}”"
    if recipe.get("held_out_judge") is not None:
        by_what = recipe.get("held_out_constitution")
        return f"judge “{names['judge', recipe['held_out_judge']]}”" + (
            f" by constitution {by_what}" if by_what else ""
        )
    return ""


def _names(session: Session, recipes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """(noun, id) → name of every scorer of these recipes."""
    fields: dict[str, tuple[Any, tuple[str, ...]]] = {
        "checkpoint": (Checkpoint, ("held_out", "reward")), "judge": (Judge, ("held_out_judge", "judge")),
    }  # fmt: skip
    found: dict[tuple[str, int], str] = {}
    rows = list(recipes)
    for noun, (kind, names) in fields.items():
        keys = {recipe[name] for recipe in rows for name in names if recipe.get(name) is not None}
        for key, name in session.exec(select(kind.id, kind.name).where(kind.id.in_(keys))):
            found[noun, key] = name or f"{noun} {key}"
    return found


def paths_as_json(paths: Paths) -> dict[str, Any]:
    """Every number of a drawing."""
    return {
        "scored_by": paths.by, "scorer": paths.said, "reference": paths.reference, "n_prompts": paths.n,
        "about": "along training, one sample a prompt: an audit, not a measurement",
        "estimators": {"kl": "k1, mean log π/π_ref of the samples", "kl_k3": "k3, never negative"},
        "paths": [
            {"label": path.label, "method": path.method, "run": path.run.id, "looks": [_as_json(one) for one in stands]}
            for path, stands in paths.drawn
        ],
        "left_out": [one.label for one in paths.left_out],
    }  # fmt: skip


def _as_json(stand: Stand) -> dict[str, Any]:
    each = {"kl": stand.kl, "kl_k3": stand.kl_k3, "score": stand.score}
    return {"step": stand.step} | {
        name: one and {"value": one.value, "low": one.low, "high": one.high, "n": one.n} for name, one in each.items()
    }
