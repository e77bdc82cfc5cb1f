"""The recipe that labels a pair set with a judge."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session

from app.judging.models import Judge
from app.runs.recipe import Recipe, points_to


class JudgeRecipe(Recipe):
    """Every pair gets opinions from the judge, and from them a verdict.

    The queue depends on the judge's kind: only local models need the GPU's.
    """

    kind: ClassVar[str] = "judge"
    aim: ClassVar[str] = "Judge pairs"
    main: ClassVar[frozenset[str]] = frozenset(
        {"pair_set", "judge", "constitution", "is_both_orders", "budget_usd", "limit", "name", "seed"}
    )
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Judge"

    pair_set: int = points_to("pair_set", title="Pairs")
    judge: int = points_to("judge", title="Judge")
    constitution: int | None = points_to("constitution", title="Constitution", default=None)
    is_both_orders: bool = Field(
        True, title="Both orders", description="Ask again with the sides swapped; a flip is a tie."
    )
    with_reason: bool = Field(True, title="Ask for a reason")
    temperature: float = Field(0.0, ge=0, le=2, title="Temperature")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(
        120, gt=0, le=3600, title="Seconds a try may take", description="A call with all its tries: three times that."
    )
    max_tokens: int = Field(700, ge=1, le=32768, title="Tokens an answer may have")
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    limit: int | None = Field(None, ge=1, title="At most this many pairs")
    max_null: float = Field(0.5, ge=0, le=1, title="Stop when more than this share is unreadable")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share is truncated")

    def pick_queue(self, session: Session) -> str:
        judge = session.get(Judge, self.judge)
        return {"endpoint": "io", "rule": "cpu", "imported": "cpu"}.get(judge.kind if judge else "", "gpu")


JudgeKind = Literal["endpoint", "checkpoint", "reward", "rule"]


class NewJudgeRecipe(Recipe):
    """A judge: an endpoint, a local checkpoint, a reward model, or a rule."""

    kind: ClassVar[str] = "new_judge"
    aim: ClassVar[str] = "Add a judge"
    verb: ClassVar[str] = "Add"

    judge_kind: JudgeKind = Field(..., title="Kind")
    endpoint: int | None = points_to("endpoint", title="Endpoint", default=None)
    checkpoint: int | None = points_to("checkpoint", title="Checkpoint", default=None)
    format_weight: float = Field(2.0, ge=0, le=100, title="Weight of the format", description="Rule judge only.")
    answer_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        title="Weight of the exact answer",
        description="Rule judge only. Above 0 it reads gold answers: an oracle.",
    )
    flip_rate: float = Field(
        0.0, ge=0, lt=0.5, title="Share of labels flipped", description="Rule judge only: errors on purpose."
    )

    @model_validator(mode="after")
    def _has_its_source(self) -> "NewJudgeRecipe":
        if self.judge_kind == "endpoint" and self.endpoint is None:
            raise ValueError("this kind of judge needs an endpoint")
        if self.judge_kind in {"checkpoint", "reward"} and self.checkpoint is None:
            raise ValueError("this kind of judge needs a checkpoint")
        return self
