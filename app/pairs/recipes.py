"""The recipe that samples completions and pairs them."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlmodel import Session

from app.runs.recipe import Recipe, points_to

Split = Literal["train", "dev", "test", "ood"]


class Decoding(BaseModel):
    """How an arm's text is sampled. Temperature 0 is greedy."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(1.0, ge=0, le=5, title="Temperature")
    top_p: float = Field(1.0, gt=0, le=1, title="Top-p")
    max_new_tokens: int = Field(128, ge=1, le=32768, title="New tokens at most")


class GenerateRecipe(Recipe):
    """K completions per prompt from one arm (or two), and the pairs made of them.

    An arm is either named by `arm`, or made of a checkpoint or endpoint, a system message and the decoding.
    """

    kind: ClassVar[str] = "generate"
    aim: ClassVar[str] = "Generate completions and pairs"
    main: ClassVar[frozenset[str]] = frozenset(
        {
            "prompt_set",
            "splits",
            "checkpoint",
            "endpoint",
            "samples",
            "pairing",
            "pairs_per_prompt",
            "decoding",
            "name",
            "seed",
        }
    )
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Generate"

    prompt_set: int = points_to("prompt_set", title="Prompts")
    splits: list[Split] = Field(["train", "dev"], min_length=1, title="Splits")
    checkpoint: int | None = points_to("checkpoint", title="Checkpoint", default=None, where={"role": "policy"})
    endpoint: int | None = points_to("endpoint", title="Endpoint", default=None)
    other_checkpoint: int | None = points_to(
        "checkpoint",
        title="Other checkpoint",
        default=None,
        description="For pairs across two arms.",
        where={"role": "policy"},
    )
    system: str = Field("", title="System message", json_schema_extra={"rows": 3})
    few_shot: list[str] = Field(
        [],
        title="Examples before the prompt",
        description="What the user says and what the assistant answers, in turn.",
    )
    decoding: Decoding = Field(Decoding(), title="Decoding")
    samples: int = Field(2, ge=1, le=64, title="Completions per prompt")
    pairing: Literal["none", "random", "best_worst", "across"] = Field(
        "random",
        title="Pairs",
        description="best_worst needs a reward model or the format rule; across needs a second arm.",
    )
    pairs_per_prompt: int = Field(1, ge=1, le=64, title="Pairs per prompt")
    scorer: int | None = points_to(
        "checkpoint",
        title="Reward model",
        default=None,
        description="For best against worst.",
        where={"role": "reward"},
    )
    batch_size: int = Field(64, ge=1, le=4096, title="Prompts at once")
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", title="A checkpoint is sampled by", description="vllm must be installed beside the worker."
    )
    limit: int | None = Field(None, ge=1, title="At most this many prompts")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share of prompts is truncated")
    budget_usd: float | None = Field(
        None, ge=0, title="Stop at this cost in US dollars", description="Of an endpoint; a checkpoint costs none."
    )

    @model_validator(mode="after")
    def _arms_fit(self) -> "GenerateRecipe":
        if (self.checkpoint is None) == (self.endpoint is None):
            raise ValueError("choose a checkpoint or an endpoint, one of the two")
        if self.backend == "vllm" and self.endpoint is not None:
            raise ValueError("an endpoint samples by itself: vllm in process is for a checkpoint")
        if self.pairing == "across" and self.other_checkpoint is None:
            raise ValueError("pairs across two arms need the other checkpoint")
        if self.pairing in {"random", "best_worst"} and self.samples < 2:
            raise ValueError("pairs within one arm need at least two completions per prompt")
        if len(self.few_shot) % 2:
            raise ValueError("examples come in twos: what the user says, then what the assistant answers")
        return self

    def turns(self) -> list[dict[str, str]]:
        """The examples as messages."""
        return [
            {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(self.few_shot)
        ]

    def pick_queue(self, session: Session) -> str:
        return "io" if self.endpoint is not None and self.scorer is None else "gpu"
