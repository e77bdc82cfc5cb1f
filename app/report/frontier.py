"""The arms' quality against their KL, and from how many trials each was selected."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from app.experiments.frontier import Frontier, Point, draw_frontiers
from app.experiments.models import Experiment
from app.experiments.paths import Passing, Paths, find_passings, read_paths
from app.experiments.sweeps import Sweep, read_sweep
from app.report.arms import ReportArm
from app.runs.models import Run, RunIo
from app.training.measured import read_measured


@dataclass(frozen=True, eq=False)
class Fronts:
    """Frontiers of a report's arms; of a sweep, with its trials."""

    frontiers: list[Frontier]
    sweep: Sweep | None
    unmeasured: list[ReportArm]  # trained arms of which nothing was measured
    paths: list[Paths]  # along training
    passings: list[Passing]


def read_fronts(session: Session, experiment: Experiment, arms: Sequence[ReportArm]) -> Fronts:
    """The newest measurement of each arm's checkpoint, for each way of measuring."""
    by_checkpoint = {arm.checkpoint.id: arm for arm in arms if arm.in_context is None}
    reads = select(RunIo.run_id).where(
        RunIo.noun == "checkpoint", col(RunIo.ref_id).in_(by_checkpoint), ~col(RunIo.is_output)
    )
    runs = select(Run).where(col(Run.id).in_(reads), Run.kind == "measure", Run.status == "done").order_by(col(Run.id))
    newest: dict[object, Run] = {}
    for run in session.exec(runs):
        if run.recipe["checkpoint"] in by_checkpoint:
            key = {name: value for name, value in run.recipe.items() if name not in {"name", "seed"}}
            newest[str(sorted(key.items(), key=str))] = run
    found = read_measured(session, newest.values())
    sweep = read_sweep(session, experiment)
    chosen = {run for trial in sweep.trials if trial.is_selected for run in trial.runs} if sweep else set()
    points = []
    for one in found.values():
        arm = by_checkpoint[one.run.recipe["checkpoint"]]
        label = f"{arm.name}, seed {arm.seed}" if arm.seed and len(experiment.seeds) > 1 else arm.name
        is_selected = arm.run is not None and arm.run.id in chosen
        points.append(Point(label, arm.name.partition(": ")[0], arm.method, one, is_selected))
    known = {one.run.recipe["checkpoint"] for one in found.values()}
    trained = [arm for arm in by_checkpoint.values() if arm.checkpoint.parent_id is not None]
    frontiers = draw_frontiers(points)
    paths = read_paths(session, experiment, frontiers)
    unmeasured = [arm for arm in trained if arm.checkpoint.id not in known]
    return Fronts(frontiers, sweep, unmeasured, paths, find_passings(paths, frontiers))
