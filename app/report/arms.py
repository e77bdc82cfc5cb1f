"""The arms of an experiment: which checkpoint each step made, from what, and what it and all it needed has cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.models import Arm, Checkpoint
from app.db import get
from app.experiments.models import Experiment, Step
from app.runs.models import Run, RunIo
from app.training.budgets import Budget, is_only_read, read_budgets
from app.training.scorers import LONGEST_LINE

SHARED = 0  # the seed of steps that all seeds share


@dataclass(frozen=True)
class Material:
    """An experiment's steps with their runs, and what each run read and made; all queries of a report's frame."""

    experiment: Experiment
    steps: list[Step]
    runs: dict[int, Run]
    reads: dict[int, list[tuple[str, int]]]  # run → (noun, id)
    makes: dict[int, list[tuple[str, int]]]
    maker: dict[tuple[str, int], int]  # (noun, id) → the run that made it

    def made(self, step: Step, noun: str) -> int | None:
        """The id of the row that a finished step made."""
        return next((key for name, key in reversed(self.makes.get(step.run_id or 0, [])) if name == noun), None)

    def of_kind(self, kind: str) -> list[Step]:
        """Finished steps of a kind."""
        return [step for step in self.steps if step.recipe.get("kind") == kind and step.status == "done"]

    def run_of(self, step: Step) -> Run | None:
        """The step's run."""
        return self.runs.get(step.run_id or 0)


@dataclass(frozen=True, eq=False)  # each is itself: its rows have no hash
class ReportArm:
    """One arm of one seed. Its checkpoint is what was scored."""

    name: str
    method: str
    seed: int  # 0: shared by all seeds
    checkpoint: Checkpoint
    step: Step
    run: Run | None
    start: str
    reference: str
    own_cost: Mapping[str, float]
    budget: Budget | None  # with everything it was made from; None where no run made it
    data: str  # what it was trained on, in numbers
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_context: Arm | None = None  # nothing was trained: the checkpoint with what this arm puts before each prompt
    root: int = 0  # the checkpoint that its line began with

    @property
    def whole_cost(self) -> Mapping[str, float]:
        """What it and everything it was made from has cost."""
        return self.budget.total if self.budget else {}

    @property
    def scored(self) -> tuple[str, int]:
        """What a benchmark's recipe names: an arm in context, or a checkpoint."""
        return ("arm", self.in_context.id) if self.in_context else ("checkpoint", self.checkpoint.id)

    @property
    def is_base(self) -> bool:
        """Whether others are compared with it."""
        return self.name.casefold() == "base"


def read_material(session: Session, experiment: Experiment) -> Material:
    """Everything below the experiment; its steps' runs, and further runs they grew from, are read as far as needed."""
    found = select(Step).where(Step.experiment_id == experiment.id).order_by(col(Step.position), col(Step.seed))
    steps = list(session.exec(found))
    runs: dict[int, Run] = {}
    reads: dict[int, list[tuple[str, int]]] = {}
    makes: dict[int, list[tuple[str, int]]] = {}
    wanted = {step.run_id for step in steps if step.run_id is not None}
    while wanted:
        runs |= {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(wanted)))}
        io = session.exec(select(RunIo).where(col(RunIo.run_id).in_(wanted)).order_by(col(RunIo.id))).all()
        for row in io:
            (makes if row.is_output else reads).setdefault(row.run_id, []).append((row.noun, row.ref_id))
        wanted = _makers(session, {(row.noun, row.ref_id) for row in io if not row.is_output}) - runs.keys()
    maker = {what: run_id for run_id in sorted(makes) for what in makes[run_id] if what[0] not in {"arm", "benchmark"}}
    return Material(experiment, steps, runs, reads, makes, maker)


def _makers(session: Session, rows: set[tuple[str, int]]) -> set[int]:
    found: set[int] = set()
    for noun in {name for name, _ in rows}:
        keys = [key for name, key in rows if name == noun]
        made = (col(RunIo.is_output), col(RunIo.noun) == noun, col(RunIo.ref_id).in_(keys))
        query = sa.select(col(RunIo.run_id)).where(*made)
        found |= set(session.execute(query).scalars())
    return found


def lineage(material: Material, run_id: int) -> set[int]:
    """The run and every run it grew from."""
    seen: set[int] = set()
    waiting = [run_id]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        recipe = material.runs[one].recipe
        waiting += [
            material.maker[what] for what in material.reads.get(one, [])
            if what in material.maker and not is_only_read(recipe, *what)
        ]  # fmt: skip
    return seen


def read_arms(session: Session, material: Material) -> list[ReportArm]:
    """Every arm that has its checkpoint, in the file's order."""
    names = _names(material)
    budgets = read_budgets(session, {run.id for step in material.steps if step.arm and (run := material.run_of(step))})
    arms = []
    for step in material.steps:
        in_context = _in_context(session, material, step) if step.arm else None
        key = in_context.checkpoint_id if in_context else material.made(step, "checkpoint")
        checkpoint = session.get(Checkpoint, key) if step.arm and key is not None else None
        if checkpoint is None:
            continue
        run = material.run_of(step)
        recipe = run.recipe if run else {}
        arms.append(
            ReportArm(
                name=step.arm, method=_method(step, checkpoint, in_context), seed=step.seed,
                checkpoint=checkpoint, step=step, run=run,
                start=names.get(recipe.get("start") or recipe.get("checkpoint"), ""),
                reference=names.get(recipe.get("reference"), ""), own_cost=run.cost if run else {},
                budget=budgets[run.id] if run else None, data=_data(session, material, step),
                settings=_settings(recipe), in_context=in_context, root=_root(session, checkpoint),
            )
        )  # fmt: skip
    return arms


def _in_context(session: Session, material: Material, step: Step) -> Arm | None:
    """The arm that a step made which trains nothing; of a checkpoint, since others are scored by nothing here."""
    key = material.made(step, "arm") if step.recipe.get("kind") == "in_context" else None
    arm = session.get(Arm, key) if key is not None else None
    return arm if arm is not None and arm.checkpoint_id is not None else None


def _method(step: Step, checkpoint: Checkpoint, in_context: Arm | None) -> str:
    if in_context is not None:
        return in_context.method
    return "base" if step.arm.casefold() == "base" else checkpoint.method


def _root(session: Session, checkpoint: Checkpoint) -> int:
    """The checkpoint that a line of trainings began with."""
    row = checkpoint
    for _ in range(LONGEST_LINE):
        if row.parent_id is None:
            break
        row = get(session, Checkpoint, row.parent_id)
    return row.id


def _names(material: Material) -> dict[Any, str]:
    """checkpoint id → what the report calls it."""
    found = {}
    for step in material.steps:
        key = material.made(step, "checkpoint")
        if key is not None:
            found[key] = step.arm or step.name
    return found


def _data(session: Session, material: Material, step: Step) -> str:
    """What a training step learned from, in numbers."""
    run = material.run_of(step)
    if run is None:
        return ""
    recipe, cost = run.recipe, run.cost
    kind = recipe.get("kind")
    if kind == "in_context":
        return "nothing: told in context"
    if kind == "ppo":
        return f"{recipe['iterations'] * recipe['rollouts']:,} fresh rollouts"
    if kind in {"grpo", "rloo"}:
        return f"{recipe['steps'] * recipe['prompts_per_step'] * recipe['group_size']:,} fresh rollouts"
    if kind in {"sft", "dpo", "simpo", "kto", "reward"}:
        passes = (
            f" × {recipe['epochs']:g} epoch{'' if recipe['epochs'] == 1 else 's'}"
            if not recipe.get("max_steps")
            else f", {recipe['max_steps']} steps"
        )
        if recipe.get("arm") is not None:
            n = int(cost.get("demonstrations", 0))
            written = f"{n:,} completion{'' if n == 1 else 's'} by {get(session, Arm, recipe['arm']).name}"
            return written + passes
        n = int(cost.get("labels", 0))
        return f"{n:,} {'pair' if n == 1 else 'pairs'}{passes}"
    if kind == "demo_base":
        return f"{recipe['steps'] * recipe['batch_size']:,} documents"
    return "imported" if kind == "import_checkpoint" else ""


LEFT_OUT = {
    *("kind", "name", "seed", "start", "reference", "snapshot", "prompt_set", "reward", "arm", "judge", "waiver"),
    *("checkpoint", "endpoint", "constitution", "revision_set"),
    *("save_every", "sample_every", "eval_every", "dtype", "role"),
}


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters a reader wants to see; the whole recipe is in the run."""
    left_out = LEFT_OUT if recipe.get("is_lora") else LEFT_OUT | {"lora_rank"}
    return {
        name: value for name, value in recipe.items() if name not in left_out and value not in (None, "", [], False)
    }


def pick_base(arms: list[ReportArm], one: ReportArm) -> ReportArm | None:
    """The arm that this one is compared with, of its seed: where arms grew from several, the one it grew from; else the
    one called base, else what nothing was trained for. Of several that others grew from, each stands for itself."""
    same = [arm for arm in arms if arm.seed in {one.seed, SHARED}]
    roots = {arm.root for arm in same if arm.checkpoint.id != arm.root}
    begun = [arm for arm in same if arm.checkpoint.id in roots and arm.in_context is None]
    if len(begun) > 1:
        return next((arm for arm in begun if arm.checkpoint.id == one.root), None)
    return next((arm for arm in same if arm.is_base), next((arm for arm in same if arm.method == "imported"), None))
