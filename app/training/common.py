"""What training recipes have in common: all of them, those on frozen preferences, those whose samples are recorded."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from app.runs.recipe import Recipe, points_to

POLICY = {"role": "policy"}


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
    lora_rank: int = Field(16, ge=1, le=1024, title="LoRA rank", description="Its scale alpha is twice the rank.")
    lr: float = Field(1e-5, gt=0, le=1, title="Learning rate")
    warmup_share: float = Field(0.05, ge=0, le=1, title="Share of steps that warm up")
    weight_decay: float = Field(0.0, ge=0, le=1, title="Weight decay")
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient norm is clipped at")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", title="Number format", description="bfloat16 halves the memory and needs a GPU."
    )
    save_every: int = Field(50, ge=1, title="Save a resume state every … steps")


class OfflineRecipe(TrainingRecipe):
    """Training on a frozen snapshot of preferences."""

    snapshot: int = points_to("snapshot", title="Preferences", description="A frozen, hashed file.")
    epochs: float = Field(1.0, gt=0, le=1000, title="Epochs")
    max_steps: int | None = Field(None, ge=1, title="Stop after this many steps")
    batch_size: int = Field(16, ge=1, le=4096, title="Rows per step")
    accumulate: int = Field(1, ge=1, le=1024, title="Split a step into … parts", description="Saves memory.")
    max_length: int = Field(1024, ge=8, le=131_072, title="Longest text, in tokens")
    eval_every: int = Field(20, ge=1, title="Measure on the dev split every … steps")
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


def pauser() -> Any:
    """The field that lets people look once what trains and what watches part."""
    return Field(
        False, title="Pause when the held-out reward model turns",
        description="Once: where it falls while what trains still rises, the run ends with a state to resume from, and "
        "ten samples of then and now wait in a review queue.",
    )  # fmt: skip


def check_pauser(is_paused_at_turn: bool, held_out: int | None) -> None:
    """Raises ValueError where nothing could ever pause the run."""
    if is_paused_at_turn and held_out is None:
        raise ValueError("nothing watches: choose a held-out reward model, or do not pause")


class SampledRecipe(OfflineRecipe):
    """Offline training of a policy, whose samples are recorded as it goes."""

    sample_every: int = Field(20, ge=1, title="Sample dev prompts every … steps")
    sample_tokens: int = Field(64, ge=1, le=32768, title="New tokens at most in those samples")
    held_out: int | None = watcher()
