"""What training recipes have in common: all of them, those on frozen preferences, those whose samples are recorded."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session, col, select

from app.config import settings
from app.db import db_now
from app.errors import Invalid
from app.judging.recipes import THAT_JUDGE
from app.runs.models import Worker
from app.runs.recipe import Recipe, points_to
from app.training.scorers import check_watcher
from app.training.stopping import patience_field

POLICY = {"role": "policy"}
NARROW = {"8-bit", "4-bit"}


class TrainingRecipe(Recipe):
    """What every training run has in common."""

    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Train"
    main: ClassVar[frozenset[str]] = frozenset(
        {"start", "snapshot", "arm", "reference", "reward", "prompt_set", "reward_by", "is_lora", "lr", "epochs",
         "beta", "gamma_margin", "is_soft", "loss", "iterations", "rollouts", "kl_coef", "steps", "prompts_per_step",
         "group_size", "judge", "constitution", "judge_weight", "budget_usd", "name", "seed"}
    )  # fmt: skip

    start: int = points_to("checkpoint", title="Start", description="Training begins from these weights.", where=POLICY)
    is_lora: bool = Field(
        False, title="LoRA", description="Train a small adapter on a frozen base instead of all weights."
    )
    lora_rank: int = Field(
        16, ge=1, le=1024, title="LoRA rank",
        description="Its scale alpha is twice the rank. A policy that starts from an adapter keeps that adapter’s.",
    )  # fmt: skip
    lr: float = Field(1e-5, gt=0, le=1, title="Learning rate")
    warmup_share: float = Field(0.05, ge=0, le=1, title="Share of steps that warm up")
    weight_decay: float = Field(0.0, ge=0, le=1, title="Weight decay")
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient norm is clipped at")
    dtype: Literal["float32", "bfloat16", "8-bit", "4-bit"] = Field(
        "float32", title="Number format",
        description="bfloat16 halves the memory and needs a GPU; without LoRA a small learning rate’s steps round away "
        "in it. 8-bit and 4-bit narrow LoRA’s frozen base further, by bitsandbytes on an NVIDIA GPU.",
    )  # fmt: skip
    save_every: int = Field(50, ge=1, title="Save a resume state every … steps")

    @model_validator(mode="after")
    def _narrow_weights_are_frozen(self) -> "TrainingRecipe":
        if self.dtype in NARROW and not self.is_lora:
            raise ValueError("8-bit and 4-bit weights cannot be trained themselves: choose LoRA, or another format")
        return self

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid where every worker that could take this has no GPU, and the number format needs one."""
        if self.dtype not in NARROW:
            return
        fresh = col(Worker.beat_at) > db_now(session) - settings().lease_s
        able = [row.device for row in session.exec(select(Worker).where(fresh)) if "gpu" in row.queues.split(",")]
        if able and all(device.startswith("CPU") for device in able):
            message = f"{self.dtype} weights need an NVIDIA GPU, and no running worker has one: choose another format."
            raise Invalid(message, {"dtype": [message]})


class OfflineRecipe(TrainingRecipe):
    """Training on a frozen snapshot of preferences."""

    snapshot: int = points_to("snapshot", title="Preferences", description="A frozen, hashed file.")
    epochs: float = Field(1.0, gt=0, le=1000, title="Epochs")
    max_steps: int | None = Field(None, ge=1, title="Stop after this many steps")
    batch_size: int = Field(16, ge=1, le=4096, title="Rows per step")
    accumulate: int = Field(1, ge=1, le=1024, title="Split a step into … parts", description="Saves memory.")
    max_length: int = Field(
        1024, ge=8, le=131_072, title="Longest text, in tokens",
        description="Prompt and completion. A row with a longer one, or longer than the start reads, is left out and "
        "counted; nothing is cut.",
    )  # fmt: skip
    eval_every: int = Field(20, ge=1, title="Measure on the dev split every … steps")
    patience: int = patience_field()
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field("linear", title="Learning rate's course")

    @model_validator(mode="after")
    def _parts_fit(self) -> "OfflineRecipe":
        if self.batch_size % self.accumulate:
            raise ValueError("the rows per step must divide into the parts")
        return self


def watcher() -> Any:
    """The field of a reward model that watches and never trains."""
    return points_to(
        "checkpoint", title="Held-out reward model", default=None, where={"role": "reward"},
        description="Reads the samples and trains nothing; best of another family, or on other labels.",
    )  # fmt: skip


def watching_judge() -> Any:
    """The field of a judge in the place of such a reward model."""
    return points_to(
        "judge", title="Held-out judge", default=None, where={"kind": THAT_JUDGE},
        description="Instead: scores the samples and trains nothing; an endpoint, a local checkpoint, a rule or a "
        "panel. Best of another family.",
    )  # fmt: skip


def watching_rubric() -> Any:
    """The field of what that judge scores by."""
    return points_to(
        "constitution", title="Held-out judge’s constitution", default=None,
        description="What an endpoint or a local checkpoint scores by, from 1 to 10, which becomes 0 to 1.",
    )  # fmt: skip


def pauser() -> Any:
    """The field that lets people look once what trains and what watches part."""
    return Field(
        False, title="Pause when the held-out score turns",
        description="Once: where it falls while what trains still rises, the run pauses, to be resumed, and up to ten "
        "pairs of samples of then and now wait in a review queue.",
    )  # fmt: skip


def check_held_out(recipe: Any) -> None:
    """Raises ValueError for two watchers, for a rubric without a judge, and where nothing could ever pause the run."""
    if recipe.held_out is not None and recipe.held_out_judge is not None:
        raise ValueError("choose a held-out reward model or a held-out judge, one of the two")
    if recipe.held_out_constitution is not None and recipe.held_out_judge is None:
        raise ValueError("the held-out judge’s constitution needs a held-out judge")
    is_watched = recipe.held_out is not None or recipe.held_out_judge is not None
    if getattr(recipe, "is_paused_at_turn", False) and not is_watched:
        raise ValueError("nothing watches: choose a held-out reward model or judge, or do not pause")


class SampledRecipe(OfflineRecipe):
    """Offline training of a policy, whose samples are recorded as it goes."""

    main: ClassVar[frozenset[str]] = TrainingRecipe.main - {"budget_usd"}  # few have a judge that watches

    sample_every: int = Field(20, ge=1, title="Sample dev prompts every … steps")
    sample_tokens: int = Field(64, ge=1, le=32768, title="New tokens at most in those samples")
    held_out: int | None = watcher()
    held_out_judge: int | None = watching_judge()
    held_out_constitution: int | None = watching_rubric()
    budget_usd: float | None = Field(
        None, ge=0, title="Stop at this cost in US dollars", description="Of the held-out judge’s calls."
    )

    @model_validator(mode="after")
    def _somebody_watches(self) -> "SampledRecipe":
        check_held_out(self)
        return self

    def check(self, session: Session, project_id: int) -> None:
        super().check(session, project_id)
        check_watcher(session, self.stored())
