"""What is known of a training run before it starts, from a form that may be half filled in: memory, and time.

Memory is arithmetic (app/training/forecast.py). Time is calibrated by the project's own finished runs of the method:
the seconds they took for a text and a parameter, and the seconds until they began. Without one, nothing is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import MAX_ID, db_now
from app.judging.models import Judge
from app.projects.access import Member
from app.runs.models import Run, Worker
from app.training.forecast import BYTES, NARROW_BYTES, Forecast, Reward, count_parameters, forecast_memory
from app.training.models import Snapshot
from app.training.pages import METHODS, read_config

OFFLINE = {"sft", "reward", "dpo", "simpo", "kto"}
MOST_RUNS = 5  # finished ones, the newest, that a forecast of time rests on


@dataclass(frozen=True)
class Duration:
    """Seconds that a run is likely to take, and the finished runs this rests on."""

    seconds: float
    low: float
    high: float
    runs: tuple[int, ...]


class Form:
    """A form's values by their recipe's types and defaults; what is no number counts as not given."""

    def __init__(self, session: Session, member: Member, kind: str, values: Mapping[str, Any]) -> None:
        self.session, self.project_id, self.kind, self.values = session, member.project.id, kind, values

    def number(self, name: str) -> float:
        field = METHODS[self.kind].model_fields.get(name)
        default = field.default if field is not None and isinstance(field.default, int | float) else 0
        try:
            return max(0.0, float(self.values.get(name) or default))
        except (TypeError, ValueError):
            return float(default)

    def is_on(self, name: str) -> bool:
        return str(self.values.get(name, "false")).lower() == "true"

    def row(self, model: Any, name: str) -> Any:
        """The row of this project that a field points to, or None."""
        asked = str(self.values.get(name) or "")
        key = int(asked) if asked.isdecimal() and len(asked) < 20 else 0
        found = self.session.get(model, key) if 0 < key <= MAX_ID else None
        return found if found is not None and found.project_id == self.project_id else None


def read_forecast(session: Session, member: Member, kind: str, values: Mapping[str, Any]) -> Forecast | None:
    """The memory a run would need; None while the start is not known, or its files are not on this machine."""
    form = Form(session, member, kind, values)
    start = form.row(Checkpoint, "start")
    config = read_config(session, start) if start is not None else None
    if config is None:
        return None
    parts = max(1.0, form.number("accumulate"))
    new: float | None = None
    rollouts: float | None = None
    if kind in OFFLINE:
        batch, length = form.number("batch_size") // parts, form.number("max_length")
        length = min(length, float(config.get("max_position_embeddings") or length))
    else:
        new = form.number("max_new_tokens")
        length = form.number("max_prompt_tokens") + new
        if kind == "ppo":
            rollouts = form.number("rollouts")
            batch = rollouts // max(1, form.number("minibatches"))
        else:
            batch = form.number("prompts_per_step") * form.number("group_size")
    dtype = str(values.get("dtype", "float32"))
    method = "bi_encoder" if kind == "reward" and values.get("architecture") == "bi_encoder" else kind
    return forecast_memory(
        config, method, is_lora=form.is_on("is_lora"), rank=max(1, int(form.number("lora_rank"))),  # type: ignore[arg-type]
        dtype=dtype if dtype in {*BYTES, *NARROW_BYTES} else "float32", batch=max(1, int(batch)), length=int(length),
        new=None if new is None else int(new), rollouts=None if rollouts is None else int(rollouts),
        is_accumulated=kind in OFFLINE and parts > 1, reward=_reward_of(form, start), on_cpu=_is_on_cpu(session),
        has_reference=kind not in {"grpo", "rloo"} or form.number("beta") > 0,
    )  # fmt: skip


def _reward_of(form: Form, start: Checkpoint) -> Reward:
    """Whether a reward model is there, and whether PPO with LoRA can keep it as an adapter on the start's base."""
    reward = form.row(Checkpoint, "reward")
    if reward is None:  # PPO's is yet to be chosen, unless something else rewards
        is_rewarded = form.number("rule_weight") > 0 or form.row(Judge, "judge") is not None
        return "none" if form.kind != "ppo" or is_rewarded else "adapter"
    root = start.base_id if start.weights == "adapter" else start.id
    return "adapter" if form.kind == "ppo" and reward.weights == "adapter" and reward.base_id == root else "copy"


def _is_on_cpu(session: Session) -> bool:
    """Whether every worker that could train beats on a machine without a GPU."""
    fresh = col(Worker.beat_at) > db_now(session) - settings().lease_s
    able = [row.device for row in session.exec(select(Worker).where(fresh)) if "gpu" in row.queues.split(",")]
    return bool(able) and all(device.startswith("CPU") for device in able)


def read_duration(session: Session, member: Member, kind: str, values: Mapping[str, Any]) -> Duration | None:
    """The time a run would take; None while it cannot be known, or where no run of the method has finished."""
    form = Form(session, member, kind, values)
    start = form.row(Checkpoint, "start")
    work = _work(session, kind, form, start)
    if work is None:
        return None
    past = select(Run).where(
        Run.project_id == form.project_id, Run.kind == kind, Run.status == "done", Run.attempt == 1
    )  # fmt: skip
    same: list[tuple[int, float]] = []
    other: list[tuple[int, float]] = []
    for run in session.exec(past.order_by(col(Run.id).desc()).limit(10 * MOST_RUNS)):
        earlier = Form(session, member, kind, run.recipe)
        done = _work(session, kind, earlier, earlier.row(Checkpoint, "start"))
        wall = float(run.cost.get("wall_seconds", 0))
        if done is None or not done or not wall:
            continue
        busy = (run.ended_at - run.counted_at).total_seconds() if run.ended_at and run.counted_at else wall
        busy = min(max(busy, 0.0), wall)
        is_alike = earlier.is_on("is_lora") == form.is_on("is_lora")
        (same if is_alike else other).append((run.id, wall - busy + busy / done * work))
    found = (same or other)[:MOST_RUNS]
    if not found:
        return None
    seconds = [one for _, one in found]
    return Duration(median(seconds), min(seconds), max(seconds), tuple(key for key, _ in found))


def _work(session: Session, kind: str, form: Form, start: Checkpoint | None) -> float | None:
    """Texts that are read or sampled, times the parameters that read them; None where the form does not say."""
    config = read_config(session, start) if start is not None else None
    if config is None:
        return None
    if kind in OFFLINE:
        snapshot = form.row(Snapshot, "snapshot")
        steps = form.number("max_steps")
        if snapshot is None and not steps:
            return None
        texts = form.number("epochs") * snapshot.n_train if snapshot is not None else steps * form.number("batch_size")
        texts = min(texts, steps * form.number("batch_size")) if steps else texts
        return texts * count_parameters(config)
    if kind == "ppo":
        texts = form.number("iterations") * form.number("rollouts") * (1 + form.number("ppo_epochs"))
    else:
        texts = form.number("steps") * form.number("prompts_per_step") * form.number("group_size")
    return texts * form.number("max_new_tokens") * count_parameters(config)
