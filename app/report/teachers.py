"""Teacher or critic: each arm trained on a model's feedback beside SFT on that model's own completions (2402.12366)."""

from dataclasses import dataclass

from sqlmodel import Session, col, select

from app.benchmarks.scores import difference, read_items
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.judging.recipes import members_of
from app.report.arms import SHARED, Material, ReportArm, lineage
from app.report.results import MetricResults
from app.stats.comparisons import Difference
from app.stats.teacher_critic import SAID, Reading, read_gain
from app.training.models import Snapshot

BY_FEEDBACK = {"dpo", "simpo", "kto", "ppo", "grpo", "rloo"}
Model = tuple[str, ...]  # ("checkpoint", id) or ("endpoint", origin, model): who wrote or judged


@dataclass(frozen=True)
class TeacherLine:
    """One arm trained on one critic's feedback, on one metric."""

    metric: MetricResults
    arm: ReportArm
    critic: str
    start: ReportArm | None
    gain: Difference | None
    teacher: ReportArm | None  # SFT on completions of the critic's model, from the same base
    over_teacher: Difference | None
    reading: Reading

    @property
    def said(self) -> str:
        """The reading in words."""
        return SAID[self.reading]


def read_teacher_lines(
    session: Session, material: Material, arms: list[ReportArm], headline: list[MetricResults]
) -> list[TeacherLine]:
    """A line for each headline metric and arm with a critic that is a model; rules and people have no completions."""
    taught = {id(arm): _teacher_of(session, arm) for arm in arms}
    lines: list[TeacherLine] = []
    for metric in headline:
        for arm in arms:
            for critic, names in _critics_of(session, material, arm).items():
                same = [other for other in arms if other.seed in {arm.seed, SHARED} and other.root == arm.root]
                parent = arm.checkpoint.parent_id
                start = next((one for one in same if one.checkpoint.id == parent and not one.in_context), None)
                teacher = next((one for one in same if taught[id(one)] == critic), None)
                gain = _minus(session, metric, arm, start)
                over = _minus(session, metric, arm, teacher)
                reading = read_gain(gain, over, teacher is not None)
                lines.append(TeacherLine(metric, arm, names, start, gain, teacher, over, reading))
    return lines


def lacks_teacher(lines: list[TeacherLine]) -> list[str]:
    """Sentences on critics whose own completions nobody was trained on, for the report's limits."""
    missing: dict[str, list[str]] = {}
    for line in lines:
        if line.teacher is None:
            missing.setdefault(line.critic, []).append(line.arm.name)
    return [
        f"No arm was trained by SFT on completions of the critic “{critic}” from the same base: for "
        f"{', '.join(dict.fromkeys(names))} a stronger teacher may explain what looks like the feedback’s doing "
        "(arXiv 2402.12366)."
        for critic, names in missing.items()
    ]


def _critics_of(session: Session, material: Material, arm: ReportArm) -> dict[Model, str]:
    """The models whose feedback an arm of reinforcement or preferences was trained on, and the judges' names."""
    if arm.run is None or arm.run.kind not in BY_FEEDBACK:
        return {}
    before = lineage(material, arm.run.id)
    keys = {key for one in before for noun, key in material.reads.get(one, []) if noun == "snapshot"}
    sets = select(Snapshot.verdict_set_id).where(col(Snapshot.id).in_(keys))
    query = select(Judge).join(VerdictSet, col(VerdictSet.judge_id) == col(Judge.id))
    judges = list(session.exec(query.where(col(VerdictSet.id).in_(sets)).distinct().order_by(col(Judge.id))))
    if arm.run.recipe.get("judge") is not None:  # scores each rollout itself
        judges.append(get(session, Judge, int(arm.run.recipe["judge"])))
    found: dict[Model, str] = {}
    for judge in [one for whole in judges for one in members_of(session, whole)]:
        model = _model(session, judge.checkpoint_id if judge.kind == "checkpoint" else None, judge.endpoint_id)
        if model:
            found[model] = judge.name
    return found


def _teacher_of(session: Session, arm: ReportArm) -> Model:
    """The model whose completions an SFT arm copied; nothing for any other arm."""
    if arm.run is None or arm.run.kind != "sft" or arm.run.recipe.get("arm") is None:
        return ()
    writer = get(session, Arm, int(arm.run.recipe["arm"]))
    return _model(session, writer.checkpoint_id, writer.endpoint_id)


def _model(session: Session, checkpoint_id: int | None, endpoint_id: int | None) -> Model:
    if checkpoint_id is not None:
        row = get(session, Checkpoint, checkpoint_id)
        return ("checkpoint", row.manifest_sha256 or str(row.id))
    if endpoint_id is not None:
        server = get(session, Endpoint, endpoint_id)
        return ("endpoint", server.origin, server.model)
    return ()


def _minus(session: Session, metric: MetricResults, arm: ReportArm, other: ReportArm | None) -> Difference | None:
    """The arm minus another, on the items both have; None where one of them was not scored."""
    mine = metric.cells.get((arm.name, arm.seed))
    theirs = metric.cells.get((other.name, other.seed)) if other else None
    if mine is None or theirs is None:
        return None
    a, b = (read_items(session, cell.run_id, metric.metric) for cell in (mine, theirs))
    return difference(a, b)
