"""The recipe that probes a judge with pairs made of the project's own, and writes its Judge Card."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session

from app.db import get
from app.errors import Invalid
from app.judging.models import Judge, VerdictSet
from app.judging.recipes import THAT_JUDGE, JudgeRecipe
from app.pairs.models import PairSet
from app.review.models import Queue
from app.runs.recipe import Recipe, points_to


class CardRecipe(Recipe):
    """Probes a judge on your own pairs: order, length, twins, a constant answer, attacks, lists, its own writing.

    The protocol's fields are those of judging, so that what is probed is what makes the labels.
    """

    kind: ClassVar[str] = "card"
    aim: ClassVar[str] = "Make a Judge Card"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Probe"
    main: ClassVar[frozenset[str]] = frozenset(
        {"judge", "pair_set", "constitution", "audit", "n", "n_own", "budget_usd", "name", "seed"}
    )

    judge: int = points_to("judge", title="Judge", where={"kind": THAT_JUDGE})
    pair_set: int = points_to("pair_set", title="Pairs", description="The probes are made of these.")
    constitution: int | None = points_to("constitution", title="Constitution", default=None)
    audit: int | None = points_to(
        "queue", title="Audit", default=None, where={"kind": "audit"},
        description="People’s answers to compare with. Empty: every audit of these pairs.",
    )  # fmt: skip
    n_own: int = Field(
        200, ge=10, le=100_000, title="Own pairs",
        description="Judged as they are, in both orders; audited pairs first. Calls paid for before cost nothing.",
    )  # fmt: skip
    n: int = Field(
        60, ge=10, le=10_000, title="Pairs per probe", description="Below 40 even a perfect judge cannot pass."
    )  # fmt: skip
    is_both_orders: bool = Field(
        True, title="Both orders", description="As the labels are made; the flip line needs it."
    )
    flip_as: Literal["tie", "soft"] = Field("tie", title="A flip counts as")
    principle_calls: Literal["joint", "separate"] = Field("joint", title="Principles in")
    overall: Literal["holistic", "weighted"] = Field("holistic", title="Overall label")
    with_reason: bool = Field(True, title="Ask for a reason")
    temperature: float = Field(0.0, ge=0, le=2, title="Temperature")
    votes: int = Field(1, ge=1, le=25, title="Votes", description="Above 1 it needs a temperature above 0.")
    label: Literal["said", "log_probs"] = Field("said", title="Label from")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(120, gt=0, le=3600, title="Seconds a try may take")
    max_tokens: int = Field(700, ge=1, le=32768, title="Tokens an answer may have")
    budget_usd: float | None = Field(None, ge=0, title="Stop at this cost in US dollars")
    max_flip: float = Field(0.2, ge=0, le=1, title="Limit: position flips at most")
    max_longer: float = Field(
        0.1, ge=0, le=1, title="Limit: prefers the longer side at most this much more often than people"
    )
    min_twin_ties: float = Field(0.9, ge=0, le=1, title="Limit: identical sides tie at least")
    max_constant_wins: float = Field(0.1, ge=0, le=1, title="Limit: a constant answer wins at most")

    def pick_queue(self, session: Session) -> str:
        return JudgeRecipe(pair_set=self.pair_set, judge=self.judge).pick_queue(session)

    def check(self, session: Session, project_id: int) -> None:
        judge = get(session, Judge, self.judge)
        if judge.kind == "imported":
            raise Invalid(
                f"“{judge.name}” came with its labels: it cannot be asked anything.", {"judge": ["labels of a file"]}
            )
        if get(session, PairSet, self.pair_set).n == 0:
            raise Invalid("This pair set is empty.", {"pair_set": ["has no pairs"]})
        self.judging(self.pair_set).check(session, project_id)
        if self.audit is not None:
            queue = get(session, Queue, self.audit)
            of = get(session, VerdictSet, queue.verdict_set_id).pair_set_id if queue.verdict_set_id else None
            if queue.kind != "audit" or of != self.pair_set:
                raise Invalid("This is no audit of these pairs.", {"audit": ["not of the chosen pairs"]})

    def judging(self, pair_set: int) -> JudgeRecipe:
        """The judging of the probes: the same judge, constitution and protocol. Nothing unreadable stops it early, and
        identical sides are asked about like any others."""
        shared = self.model_dump(include=JudgeRecipe.model_fields.keys() - {"name", "pair_set"})
        return JudgeRecipe(**shared, pair_set=pair_set, max_null=1.0, max_truncated=1.0)

    @model_validator(mode="after")
    def _votes_differ(self) -> "CardRecipe":
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 every vote is the same: set a temperature above 0, or ask for 1 vote")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Line → its limit, as the card keeps them."""
        return {
            "flip": self.max_flip, "longer": self.max_longer, "twin": self.min_twin_ties,
            "constant": self.max_constant_wins, "injected": 0.0,
        }  # fmt: skip
