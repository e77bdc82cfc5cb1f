"""The recipes that label a pair set with a judge, and that add a judge or a panel of judges."""

import re
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from sqlmodel import Session

from app.checkpoints.models import Endpoint
from app.constitutions.constitutions import read_principles
from app.db import get
from app.errors import Invalid
from app.judging.models import Judge
from app.judging.protocol import ASKED
from app.runs.recipe import Recipe, points_to

ON_PANELS = ["endpoint", "checkpoint", "reward", "rule"]
THAT_JUDGE = [*ON_PANELS, "panel"]  # labels that came with a file were given by nobody who could be asked again


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
    judge: int = points_to("judge", title="Judge", where={"kind": THAT_JUDGE})
    constitution: int | None = points_to("constitution", title="Constitution", default=None)
    is_both_orders: bool = Field(
        True, title="Both orders", description="Ask again with the sides swapped; a flip is a tie."
    )
    flip_as: Literal["tie", "soft"] = Field(
        "tie", title="A flip counts as",
        description="tie; or soft: the side that the mean of both orders points to, 0.5 where they cancel out. People "
        "are asked to look at it either way.",
    )  # fmt: skip
    principle_calls: Literal["joint", "separate"] = Field(
        "joint", title="Principles in",
        description="One joint question on all principles, or a separate question on each. A local checkpoint answers "
        "a joint question with one label for the whole, none by principle. The forecast says what each choice costs.",
    )  # fmt: skip
    overall: Literal["holistic", "weighted"] = Field(
        "holistic", title="Overall label",
        description="holistic: what the judge says of the whole; weighted: the sign of the principles’ weighted sum. "
        "Separate and holistic asks one question more, on the whole.",
    )  # fmt: skip
    with_reason: bool = Field(True, title="Ask for a reason")
    temperature: float = Field(0.0, ge=0, le=2, title="Temperature")
    votes: int = Field(
        1, ge=1, le=25, title="Votes",
        description="Ask an endpoint this often, at a temperature above 0; it stops as soon as the majority is fixed.",
    )  # fmt: skip
    label: Literal["said", "log_probs"] = Field(
        "said", title="Label from",
        description="said: the letter in the answer; log probs: a soft label from the letters’ log-probabilities, "
        "where the endpoint gives them. A local checkpoint always gives them.",
    )  # fmt: skip
    identical: Literal["judge", "tie"] = Field(
        "judge", title="Pairs of identical texts",
        description="judge: asked like any other, which shows whether the judge calls them ties; tie: a tie, unasked.",
    )  # fmt: skip
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(
        120, gt=0, le=3600, title="Seconds a try may take", description="A call with all its tries: three times that."
    )
    max_tokens: int = Field(700, ge=1, le=32768, title="Tokens an answer may have")
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    limit: int | None = Field(None, ge=1, title="At most this many pairs")
    draw: Literal["first", "random"] = Field(
        "first", title="Which of them", description="The first ones, or drawn at random by the seed."
    )
    compare_with: int | None = points_to(
        "verdict_set", title="Compare with", default=None,
        description="Verdicts on the same pairs whose page then shows how far these agree.",
    )  # fmt: skip
    max_null: float = Field(0.5, ge=0, le=1, title="Stop when more than this share is unreadable")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share is truncated")

    @field_validator("votes")
    @classmethod
    def _votes_differ(cls, votes: int, info: ValidationInfo) -> int:
        if votes > 1 and info.data.get("temperature") == 0:
            raise ValueError("at temperature 0 every vote is the same: set a temperature above 0, or ask for 1 vote")
        return votes

    def pick_queue(self, session: Session) -> str:
        judge = session.get(Judge, self.judge)
        kinds = {one.kind for one in members_of(session, judge)} if judge else {""}
        if kinds <= {"endpoint", "rule", "imported"}:
            return "io" if "endpoint" in kinds else "cpu"
        return "gpu"

    def check(self, session: Session, project_id: int) -> None:
        judge = get(session, Judge, self.judge)
        if judge.kind == "imported":
            raise Invalid(f"“{judge.name}” came with its labels: it judges nothing. Choose another judge.",
                          {"judge": ["came with its labels: it judges nothing"]})  # fmt: skip
        members = members_of(session, judge)
        for one in members:
            _check_not_put_away(session, one)
        if self.overall == "weighted":
            self._check_weighted(session, judge, members)
        if self.principle_calls == "separate" and self.constitution is None:
            raise Invalid("Separate questions need a constitution: its principles are what is asked.",
                          {"principle_calls": ["there is no constitution"]})  # fmt: skip
        if self.principle_calls == "separate" and not any(one.kind in ASKED for one in members):
            raise Invalid(f"“{judge.name}” is asked no questions: choose joint.",
                          {"principle_calls": ["this judge is asked no questions"]})  # fmt: skip
        if self.votes > 1 and not any(one.kind == "endpoint" for one in members):
            raise Invalid(f"“{judge.name}” says the same each time: only an endpoint can vote several times.",
                          {"votes": ["this judge has one vote"]})  # fmt: skip
        if self.label == "log_probs":
            for one in members:
                _check_log_probs(session, one)

    def _check_weighted(self, session: Session, judge: Judge, members: list[Judge]) -> None:
        if not any(one.kind in ASKED for one in members):
            raise Invalid(f"“{judge.name}” is not asked by principle: choose the holistic label.",
                          {"overall": ["this judge knows no principles"]})  # fmt: skip
        principles = read_principles(session, self.constitution) if self.constitution is not None else []
        if not any(one.weight for one in principles):
            raise Invalid("A weighted label needs a constitution with a weight above 0.",
                          {"overall": ["no principle has a weight"]})  # fmt: skip
        if self.principle_calls == "joint" and any(one.kind == "checkpoint" for one in members):
            raise Invalid("A local checkpoint answers one question at a time: choose separate questions.",
                          {"principle_calls": ["a local checkpoint needs separate questions here"]})  # fmt: skip


def _check_not_put_away(session: Session, judge: Judge) -> None:
    endpoint = session.get(Endpoint, judge.endpoint_id) if judge.endpoint_id is not None else None
    if endpoint is not None and endpoint.archived_at is not None:
        raise Invalid(
            f"The endpoint “{endpoint.name}”, which “{judge.name}” asks, was put away and its key forgotten: add it "
            "again, and a judge with it.", {"judge": ["its endpoint is archived"]},
        )  # fmt: skip


def _check_log_probs(session: Session, judge: Judge) -> None:
    """Raises Invalid where a judge gives no probability of its label."""
    if judge.kind in {"checkpoint", "reward"}:
        return
    why = f"“{judge.name}” gives no probabilities"
    if judge.kind == "endpoint":
        mode = get(session, Endpoint, judge.endpoint_id or 0).mode
        if mode.get("logprobs"):
            return
        why = (
            f"the endpoint of “{judge.name}” gives no log-probabilities" if mode
            else f"the connection of “{judge.name}” was never tested for log-probabilities: test it on the judge's page"
        )  # fmt: skip
    raise Invalid(f"A label from log-probabilities: {why}.", {"label": [why]})


def members_of(session: Session, judge: Judge) -> list[Judge]:
    """A panel's members; any other judge is its own only one."""
    if judge.kind != "panel":
        return [judge]
    return [get(session, Judge, int(one["judge"])) for one in judge.settings["members"]]


JudgeKind = Literal["endpoint", "checkpoint", "reward", "rule", "panel"]


class NewJudgeRecipe(Recipe):
    """A judge: an endpoint, a local checkpoint, a reward model, a rule, or a panel of those."""

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

    members: list[int] = points_to(
        "judge",
        title="Members",
        default=[],
        where={"kind": ON_PANELS},
        description="Panel only: two or more judges of any kind but panels and labels of a file.",
    )
    weights: list[str] = Field(
        [], max_length=50, title="Members’ weights",
        description="Panel only: “7: 2” gives judge #7 a weight of 2; who is not named has 1.",
    )  # fmt: skip
    rule: Literal["majority", "mean", "weighted"] = Field(
        "majority", title="The panel decides by",
        description="majority: a vote each; weighted: votes count by weight; mean: the weighted mean of p(a).",
    )  # fmt: skip

    @field_validator("weights")
    @classmethod
    def _are_weights(cls, lines: list[str]) -> list[str]:
        for line in lines:
            read_weight(line)
        return lines

    @model_validator(mode="after")
    def _has_its_source(self) -> "NewJudgeRecipe":
        if self.judge_kind == "endpoint" and self.endpoint is None:
            raise ValueError("this kind of judge needs an endpoint")
        if self.judge_kind in {"checkpoint", "reward"} and self.checkpoint is None:
            raise ValueError("this kind of judge needs a checkpoint")
        if self.judge_kind == "panel" and len(set(self.members)) < 2:
            raise ValueError("a panel needs two members or more")
        return self


def read_weight(line: str) -> tuple[int, float]:
    """(judge, weight) of a line like “7: 2”; raises ValueError."""
    found = re.fullmatch(r"\s*#?(\d+)\s*[:=]\s*([0-9]*\.?[0-9]+)\s*", line)
    if found is None or not 0 < float(found[2]) <= 1000:
        raise ValueError(f"“{line[:40]}”: write the judge's number and a weight above 0, like “7: 2”")
    return int(found[1]), float(found[2])
