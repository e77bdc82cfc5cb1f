"""The recipe that scores single completions from 1 to 10 by each principle of a constitution."""

from typing import ClassVar

from pydantic import Field, model_validator
from sqlmodel import Session

from app.constitutions.constitutions import read_principles
from app.db import get
from app.errors import Invalid
from app.judging.models import Judge
from app.pairs.recipes import Split
from app.runs.recipe import Recipe, points_to


class RateRecipe(Recipe):
    """Every completion, of a pair set or of an arm, gets a score by each principle and one overall."""

    kind: ClassVar[str] = "rate"
    aim: ClassVar[str] = "Score completions"
    main: ClassVar[frozenset[str]] = frozenset(
        {"pair_set", "prompt_set", "arm", "judge", "constitution", "budget_usd", "limit", "name", "seed"}
    )
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Score"

    pair_set: int | None = points_to(
        "pair_set", title="Pairs", default=None, description="Both sides are scored, each completion once."
    )
    prompt_set: int | None = points_to(
        "prompt_set", title="Prompts", default=None, description="Instead of pairs: what the arm wrote for these."
    )
    arm: int | None = points_to("arm", title="Arm", default=None)
    splits: list[Split] = Field([], title="Splits", description="None chosen means all of them.")
    judge: int = points_to("judge", title="Judge", where={"kind": ["endpoint", "checkpoint"]},
                           description="An endpoint or a local checkpoint.")  # fmt: skip
    constitution: int = points_to("constitution", title="Constitution", description="Its principles are the rubric.")
    with_reason: bool = Field(True, title="Ask for a reason")
    temperature: float = Field(0.0, ge=0, le=2, title="Temperature")
    max_tokens: int = Field(700, ge=1, le=32768, title="Tokens an answer may have")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(
        120, gt=0, le=3600, title="Seconds a try may take", description="A call with all its tries: three times that."
    )
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    limit: int | None = Field(None, ge=1, title="At most this many completions", description="The first ones.")
    max_null: float = Field(0.5, ge=0, le=1, title="Stop when more than this share has no overall score")

    @model_validator(mode="after")
    def _has_one_source(self) -> "RateRecipe":
        if self.pair_set is not None:
            if self.prompt_set is not None or self.arm is not None:
                raise ValueError("choose pairs, or prompts with an arm: not both")
        elif self.prompt_set is None or self.arm is None:
            raise ValueError("choose pairs, or prompts with the arm that wrote for them")
        return self

    def pick_queue(self, session: Session) -> str:
        judge = session.get(Judge, self.judge)
        return "io" if judge is not None and judge.kind == "endpoint" else "gpu"

    def check(self, session: Session, project_id: int) -> None:
        check_rater(session, self.judge, self.constitution)


def check_rater(session: Session, judge_id: int, constitution_id: int) -> None:
    """Raises Invalid where this judge cannot score by this constitution."""
    judge = get(session, Judge, judge_id)
    if judge.kind not in {"endpoint", "checkpoint"}:
        raise Invalid(
            f"“{judge.name}” is a judge of the kind {judge.kind}, which gives no scores by principle: choose an "
            "endpoint or a local checkpoint.", {"judge": ["gives no scores by principle"]},
        )  # fmt: skip
    if not any(one.weight for one in read_principles(session, constitution_id)):
        raise Invalid("An overall score needs a constitution with a weight above 0.",
                      {"constitution": ["no principle has a weight"]})  # fmt: skip
