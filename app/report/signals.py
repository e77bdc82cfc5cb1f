"""Which scores say no more than that training worked: those by the judge, rule or reward model that made the signal."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.judging.models import Judge, VerdictSet
from app.judging.recipes import members_of
from app.report.arms import Material, lineage
from app.runs.models import Run
from app.training.health import ONLINE
from app.training.models import Snapshot
from app.training.pages import METHODS


def training_judges(session: Session, material: Material) -> list[Judge]:
    """The judges whose verdicts were trained on, and those who rewarded rollouts themselves."""
    keys = [snapshot.verdict_set_id for snapshot in training_snapshots(session, material)]
    those = select(VerdictSet.judge_id).where(col(VerdictSet.id).in_(keys))
    rewarding = [judge for judge, _ in rewarding_judges(material)]
    asked = select(Judge).where(sa.or_(col(Judge.id).in_(those), col(Judge.id).in_(rewarding)))
    return list(session.exec(asked.order_by(col(Judge.id))))


def training_runs(material: Material) -> list[Run]:
    """The trainings of the experiment, and those before it that it went on from or was rewarded by the model of."""
    own = [run for run in map(material.run_of, material.steps) if run is not None and run.kind in METHODS]
    keys = {key for run in own for key in lineage(material, run.id)}
    return [material.runs[key] for key in sorted(keys) if material.runs[key].kind in METHODS]


def rewarding_judges(material: Material) -> dict[tuple[int, int], list[str]]:
    """(judge, constitution) of every run whose rollouts a judge scored → the reasons given for one that failed."""
    found: dict[tuple[int, int], list[str]] = {}
    for run in training_runs(material):
        recipe = run.recipe
        if run.kind in ONLINE and recipe.get("judge") is not None and recipe.get("judge_weight", 1.0):
            reasons = found.setdefault((int(recipe["judge"]), int(recipe["constitution"])), [])
            reasons += [one for one in [recipe.get("waiver", "").strip()] if one and one not in reasons]
    return found


def rewarding_models(material: Material) -> dict[int, list[str]]:
    """The reward model of every run whose rollouts one scored → the reasons given for one that failed as a judge."""
    found: dict[int, list[str]] = {}
    for run in training_runs(material):
        recipe = run.recipe
        if run.kind in ONLINE and recipe.get("reward") is not None and recipe.get("reward_weight", 1.0):
            reasons = found.setdefault(int(recipe["reward"]), [])
            reasons += [one for one in [recipe.get("waiver", "").strip()] if one and one not in reasons]
    return found


def training_snapshots(session: Session, material: Material) -> list[Snapshot]:
    """The snapshots that were trained on."""
    keys = {
        key for run in training_runs(material) for noun, key in material.reads.get(run.id, []) if noun == "snapshot"
    }
    return list(session.exec(select(Snapshot).where(col(Snapshot.id).in_(keys)).order_by(col(Snapshot.id))))


def training_signals(session: Session, material: Material) -> dict[tuple[str, str], str]:
    """(benchmark, metric) → why its score is the training signal itself."""
    found: dict[tuple[str, str], str] = {}
    for judge in [one for whole in training_judges(session, material) for one in members_of(session, whole)]:
        if judge.kind == "rule":
            _add_rule(found, judge.settings, f"the judge “{judge.name}” rewards it")
        elif judge.kind == "imported":
            label = judge.settings.get("label")
            if label in {"safer", "better"}:
                for by in ("reward", "implicit"):
                    found["pku_saferlhf", f"{label}_{by}"] = f"“{judge.name}” labels were trained on"
        else:
            found["pku_saferlhf", "judged_safe"] = f"the judge “{judge.name}” made the labels or the reward"
    for run in training_runs(material):
        recipe = run.recipe
        by = recipe.get("reward_by", "mix" if run.kind == "ppo" else "rule")
        weight = recipe.get("rule_weight", 0.0 if run.kind == "ppo" else 1.0)
        if run.kind in ONLINE and (by == "rule" or (by == "mix" and weight)):
            weights = {"format_weight": 2.0, "answer_weight": 1.0}
            _add_rule(found, weights, f"the rule rewards it in {run.kind.upper()}")
    return found


def _add_rule(found: dict[tuple[str, str], str], settings: dict[str, Any], why: str) -> None:
    for name, metric in (("format_weight", "format"), ("answer_weight", "accuracy")):
        if settings.get(name, 0):
            for one in (metric, f"{metric}_greedy"):
                found.setdefault(("strict_format", one), why)
