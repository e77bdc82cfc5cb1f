"""Recipes: prompts that attack, critique and revision, handing revisions over, and the best of several completions."""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator
from sqlmodel import Session

from app.pairs.recipes import Decoding, Split
from app.runs.recipe import Recipe, points_to

POLICY = {"role": "policy"}


class InContextFields(BaseModel):
    """Who follows a constitution in context, and which accepted revisions it is shown."""

    checkpoint: int | None = points_to("checkpoint", title="Checkpoint", default=None, where=POLICY)
    endpoint: int | None = points_to("endpoint", title="Endpoint", default=None)
    revision_set: int | None = points_to(
        "revision_set", title="Demonstrations from", default=None,
        description="Accepted revisions of train prompts, in the set’s order, stand before each prompt.",
    )  # fmt: skip
    n_shown: int = Field(3, ge=0, le=50, title="Demonstrations")
    decoding: Decoding = Field(Decoding(), title="Decoding")

    @model_validator(mode="after")
    def _has_a_writer(self) -> Self:
        if (self.checkpoint is None) == (self.endpoint is None):
            raise ValueError("choose a checkpoint or an endpoint, one of the two")
        return self


Attack = Literal[
    "role_play", "fiction", "hypothetical", "prefix_injection", "refusal_suppression", "style_injection", "authority",
    "ignore_rules", "low_stakes", "other_side",
]  # fmt: skip


class RedTeamRecipe(Recipe):
    """New adversarial prompts made from seed prompts: written by a model from examples, or by attack templates."""

    kind: ClassVar[str] = "red_team"
    aim: ClassVar[str] = "Make adversarial prompts"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Make"
    main: ClassVar[frozenset[str]] = frozenset(
        {"prompt_set", "way", "checkpoint", "endpoint", "constitution", "categories", "n", "budget_usd", "name", "seed"}
    )

    prompt_set: int = points_to("prompt_set", title="Seed prompts")
    splits: list[Split] = Field(["train", "dev"], min_length=1, title="Splits of the seeds")
    way: Literal["model", "templates"] = Field(
        "templates", title="Way", description="templates wrap the seeds and need no model; a model writes new ones."
    )
    checkpoint: int | None = points_to("checkpoint", title="Checkpoint that writes", default=None, where=POLICY)
    endpoint: int | None = points_to("endpoint", title="Endpoint that writes", default=None)
    constitution: int | None = points_to(
        "constitution", title="Constitution", default=None, description="Its principles become the categories."
    )
    categories: list[str] = Field(
        [],
        title="Categories",
        description="“name” or “name: what it is about”. Without these and a constitution: those of the seeds.",
    )
    n: int = Field(50, ge=1, le=20_000, title="Prompts to make for each category", description="Before any is dropped.")
    attacks: list[Attack] = Field(
        [], title="Attack templates", description="With templates; none chosen means all of them."
    )
    examples: int = Field(4, ge=1, le=20, title="Seeds shown to the model")
    decoding: Decoding = Field(Decoding(), title="Decoding")
    batch_size: int = Field(64, ge=1, le=4096, title="Prompts at once")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(120, gt=0, le=3600, title="Seconds a try may take")
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    max_chars: int = Field(2000, ge=1, le=100_000, title="Longest prompt, in characters")
    near: float = Field(
        0.8, gt=0, le=1, title="Nearly equal from",
        description="Jaccard similarity of the texts’ runs of three words, from which one of two is dropped.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _has_a_writer(self) -> "RedTeamRecipe":
        n_writers = (self.checkpoint is not None) + (self.endpoint is not None)
        if self.way == "model" and n_writers != 1:
            raise ValueError("a model writes: choose a checkpoint or an endpoint, one of the two")
        if self.way == "templates" and n_writers:
            raise ValueError("templates need no model: leave checkpoint and endpoint empty, or choose the way “model”")
        return self

    def pick_queue(self, session: Session) -> str:
        return "cpu" if self.way == "templates" else ("io" if self.endpoint is not None else "gpu")


class ReviseRecipe(Recipe):
    """Completions of an arm, criticised by a constitution and rewritten (Constitutional AI, arXiv 2212.08073)."""

    kind: ClassVar[str] = "revise"
    aim: ClassVar[str] = "Critique and revise"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Revise"
    main: ClassVar[frozenset[str]] = frozenset(
        {"prompt_set", "arm", "constitution", "checkpoint", "endpoint", "rounds", "principles", "limit", "decoding",
         "name", "seed"}
    )  # fmt: skip

    prompt_set: int = points_to("prompt_set", title="Prompts")
    splits: list[Split] = Field(["train", "dev"], min_length=1, title="Splits")
    arm: int = points_to("arm", title="Arm", description="Whose completions of these prompts are revised.")
    samples: int = Field(1, ge=1, le=64, title="Completions per prompt at most", description="The first ones written.")
    constitution: int = points_to("constitution", title="Constitution")
    checkpoint: int | None = points_to("checkpoint", title="Checkpoint that revises", default=None, where=POLICY)
    endpoint: int | None = points_to("endpoint", title="Endpoint that revises", default=None)
    rounds: int = Field(1, ge=1, le=16, title="Rounds", description="Of critique and revision, one after another.")
    principles: Literal["drawn", "in_turn"] = Field(
        "drawn",
        title="Principles",
        description="drawn: one a round, by weight, none twice before all were; in turn: every one in each round.",
    )
    few_shot: list[str] = Field(
        [], title="Examples", description="Prompt, completion, principle, critique and revision, in turn."
    )
    decoding: Decoding = Field(Decoding(max_new_tokens=512), title="Decoding")
    batch_size: int = Field(16, ge=1, le=4096, title="Completions at once")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(120, gt=0, le=3600, title="Seconds a try may take")
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    limit: int | None = Field(None, ge=1, title="At most this many prompts")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share of requests is truncated")

    @model_validator(mode="after")
    def _has_a_reviser(self) -> "ReviseRecipe":
        if (self.checkpoint is None) == (self.endpoint is None):
            raise ValueError("choose a checkpoint or an endpoint that revises, one of the two")
        if len(self.few_shot) % 5:
            raise ValueError("examples come in fives: prompt, completion, principle, critique, revision")
        return self

    def pick_queue(self, session: Session) -> str:
        return "io" if self.endpoint is not None else "gpu"


class HandOverRecipe(Recipe):
    """Revisions as preferences: each original beside its revision, the revision preferred."""

    kind: ClassVar[str] = "hand_over"
    aim: ClassVar[str] = "Hand revisions over"
    verb: ClassVar[str] = "Hand over"

    revision_set: int = points_to("revision_set", title="Revisions")
    which: Literal["accepted", "not_rejected"] = Field(
        "accepted", title="Which", description="not rejected: also those that nobody has looked at."
    )


class BestOfRecipe(Recipe):
    """The best of an arm's completions of each prompt by a reward model, beside the worst: rejection sampling."""

    kind: ClassVar[str] = "best_of"
    aim: ClassVar[str] = "Keep the best of several completions"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Keep the best"

    prompt_set: int = points_to("prompt_set", title="Prompts")
    splits: list[Split] = Field(["train", "dev"], min_length=1, title="Splits")
    arm: int = points_to("arm", title="Arm", description="Whose completions are ranked: several per prompt.")
    reward: int = points_to("checkpoint", title="Reward model", where={"role": "reward"})
    at_most: int | None = Field(None, ge=2, le=1024, title="Completions per prompt at most", description="The n of n.")


class InContextRecipe(InContextFields, Recipe):
    """An arm that trains nothing: a constitution as its system message, examples before each prompt (2312.01552)."""

    kind: ClassVar[str] = "in_context"
    aim: ClassVar[str] = "Make an arm in context"
    verb: ClassVar[str] = "Make"

    constitution: int = points_to("constitution", title="Constitution")
    few_shot: list[str] = Field(
        [],
        title="Examples before the prompt",
        description="What the user says and what the assistant answers, in turn; they come before revisions.",
    )

    @model_validator(mode="after")
    def _examples_are_whole(self) -> "InContextRecipe":
        if len(self.few_shot) % 2:
            raise ValueError("examples come in twos: what the user says, then what the assistant answers")
        return self
