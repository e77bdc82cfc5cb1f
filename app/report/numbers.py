"""Every number of a report as JSON."""

from dataclasses import asdict
from typing import Any

from app.experiments.frontier import frontier_as_json
from app.experiments.paths import paths_as_json
from app.report.arms import ReportArm
from app.report.people import AuditLine, GradingLine
from app.report.report import Report
from app.report.results import BenchmarkResults, MetricResults, as_number_row
from app.report.reward_models import PeopleLine, RewardLine
from app.report.teachers import TeacherLine
from app.training.rounds import round_as_json

NAMED = {"id", "name", "question", "sha256", "scale", "seeds", "status"}


def report_as_json(report: Report) -> dict[str, Any]:
    """Every number of the report."""
    experiment = report.experiment
    return {
        "experiment": {
            **experiment.model_dump(mode="json", include={"id", "name", "question", "sha256", "scale", "seeds"}),
            "status": report.state,
            "about": report.subject,
        },
        "methods": report.methods,
        "arms": [_arm_as_json(arm) for arm in report.arms],
        "budget": report.budget,
        "budgets": {
            "labels": report.budgets.label_note,
            "arms": [
                {
                    "arm": line.arm.name,
                    "seed": line.arm.seed,
                    "total": line.budget.total,
                    "own": dict(line.budget.own),
                    "shared": line.budget.shared,
                }
                for line in report.budgets.lines
            ],
            "shared_runs": [
                {"run": one.run.id, "kind": one.run.kind, "arms": one.arms} for one in report.budgets.shared
            ],
        },
        "versions": report.versions,
        "devices": report.devices,
        "results": [as_number_row(row) for row in report.rows],
        "benchmarks": [_benchmark_as_json(one) for one in report.results],
        "rounds": [
            {
                "arm": of.arm.name,
                "seed": of.arm.seed,
                "fresh": of.fresh,
                "rounds": [round_as_json(one) for one in of.rounds],
            }
            for of in report.rounds
        ],
        "teachers": [_teacher_as_json(line) for line in report.teachers],
        "frontiers": [frontier_as_json(one) for one in report.fronts.frontiers],
        "paths": [paths_as_json(one) for one in report.fronts.paths],
        "trials": report.fronts.sweep and report.fronts.sweep.sentences,
        "headline": [[one.benchmark.name, one.metric] for one in report.headline],
        "gradings": [_grading_as_json(line) for line in report.gradings],
        "audits": [_audit_as_json(line) for line in report.audits],
        "reward_models": [_reward_as_json(line) for line in report.reward_lines],
        "people_and_ai": [_people_as_json(line) for line in report.people_lines],
        "curves": [asdict(drawing) for drawing in report.drawings],
        "rewards": report.rewards and asdict(report.rewards),
        "examples": [
            {"prompt": one.prompt, "reference": one.reference, "said": {said.arm.name: said.text for said in one.said}}
            for one in report.examples
        ],
        "limits": report.limits,
    }


def _teacher_as_json(line: TeacherLine) -> dict[str, Any]:
    return {
        "benchmark": line.metric.benchmark.name, "metric": line.metric.metric, "arm": line.arm.name,
        "seed": line.arm.seed, "critic": line.critic, "start": line.start and line.start.name,
        "gain": line.gain and asdict(line.gain), "teacher": line.teacher and line.teacher.name,
        "over_teacher": line.over_teacher and asdict(line.over_teacher), "reading": line.reading,
    }  # fmt: skip


def _arm_as_json(arm: ReportArm) -> dict[str, Any]:
    return {
        "name": arm.name, "method": arm.method, "seed": arm.seed, "checkpoint": arm.checkpoint.id,
        "sha256": arm.checkpoint.manifest_sha256, "run": arm.run and arm.run.id, "recipe": arm.run and arm.run.recipe,
        "start": arm.start, "reference": arm.reference, "trained_on": arm.data, "own_cost": dict(arm.own_cost),
        "whole_cost": dict(arm.whole_cost),
    }  # fmt: skip


def _benchmark_as_json(one: BenchmarkResults) -> dict[str, Any]:
    return {
        "name": one.benchmark.name, "version": one.benchmark.version, "settings": one.benchmark.settings,
        "metrics": [
            {
                "metric": metric.metric, "chance": metric.chance, "training_signal": metric.signal,
                "scores": [
                    {
                        "arm": arm, "seed": seed, "run": cell.run_id, **cell.level.as_row(),
                        "difference": cell.difference and asdict(cell.difference),
                    }
                    for (arm, seed), cell in metric.cells.items()
                ],
                "over_seeds": _over_seeds(metric),
            }
            for metric in one.metrics
        ],
    }  # fmt: skip


def _over_seeds(metric: MetricResults) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(name for name, _ in metric.cells):
        spreads = {of: metric.spread(arm, of) for of in ("level", "difference")}
        found[arm] = {of: spread and asdict(spread) for of, spread in spreads.items()}
    return found


def _reward_as_json(line: RewardLine) -> dict[str, Any]:
    facts = line.checkpoint.facts
    return {
        "step": line.step, "seed": line.seed, "checkpoint": line.checkpoint.id,
        "architecture": facts.get("architecture"), "held_out": line.held_out, "scores": facts.get("scores"),
    }  # fmt: skip


def _people_as_json(line: PeopleLine) -> dict[str, Any]:
    return {
        "judge": line.judge.name, "seed": line.seed, "says": "probabilities" if line.is_probability else "labels",
        "n": line.n, "n_unreadable": line.n_unreadable, "is_simulated": line.is_simulated,
        **{name: (found := getattr(line.agreement, name)) and asdict(found) for name in ("pearson", "spearman")},
    }  # fmt: skip


def _grading_as_json(line: GradingLine) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": line.grading.name, "seed": line.seed, "is_sealed": line.is_open, "n_planned": line.grading.planned_n,
        "n_graded": line.n_graded,
    }  # fmt: skip
    if line.results:
        results = line.results
        found |= {
            "is_simulated": results.is_simulated,
            "compared": [
                {"arm": c.arm.name, "against": c.against.name, "n_identical": c.n_identical,
                 "n_identical_planned": c.n_identical_planned, **asdict(c.wins)}
                for c in results.compared
            ],
            "graded": [
                {"arm": g.arm.name, "alignment": g.alignment and asdict(g.alignment),
                 "correct": g.correct and asdict(g.correct)}
                for g in results.graded
            ],
            "guess": results.guess and asdict(results.guess),
        }  # fmt: skip
    return found


def _audit_as_json(line: AuditLine) -> dict[str, Any]:
    found = line.agreement
    return {
        "queue": found.queue.id,
        "judge": line.judge.name,
        "seed": line.seed,
        "n_pairs": found.n_pairs,
        "n_audited": found.n_audited,
        "is_simulated": found.is_simulated,
        "agreement": found.lines and asdict(found.lines),
        "kappa": found.kappa and asdict(found.kappa),
        "people_alpha": found.people_alpha and asdict(found.people_alpha),
    }
