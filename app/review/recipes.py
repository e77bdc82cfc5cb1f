"""The recipe that draws pairs, or single completions, for people."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session

from app.errors import Invalid
from app.judging.models import RatingSet, VerdictSet
from app.runs.recipe import Recipe, points_to


class AuditRecipe(Recipe):
    """An audit or scoring feeds every estimate; a repair queue or an adjudication feeds labels only."""

    kind: ClassVar[str] = "audit"
    aim: ClassVar[str] = "Draw a queue for people"
    verb: ClassVar[str] = "Draw"

    verdict_set: int | None = points_to(
        "verdict_set", title="Verdicts", default=None, description="Whose pairs are drawn. Needed but for scoring."
    )
    purpose: Literal["audit", "repair", "adjudication", "scoring"] = Field(
        "audit", title="Purpose",
        description="audit: a random sample of pairs, answered blind. repair: the pairs that most need a person. "
        "adjudication: the pairs on which people split evenly. scoring: a random sample of single completions.",
    )  # fmt: skip
    n: int = Field(20, ge=1, le=100_000, title="Pairs or completions")
    overlap: int = Field(
        1, ge=1, le=20, title="People per pair or completion",
        description="1: no two people get the same one. 2 or more shows how far people agree among themselves.",
    )  # fmt: skip
    rating_set: int | None = points_to(
        "rating_set", title="Scores", default=None, description="Whose completions people score. For scoring only."
    )

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid where what is to be drawn from was put away."""
        for name, kind in (("verdict_set", VerdictSet), ("rating_set", RatingSet)):
            key = getattr(self, name)
            source: Any = session.get(kind, key) if key is not None else None
            if source is not None and source.archived_at is not None:
                raise Invalid(f"“{source.name}” was put away: choose another.", {name: ["archived"]})

    @model_validator(mode="after")
    def _has_its_source(self) -> "AuditRecipe":
        if self.purpose == "scoring":
            if self.rating_set is None or self.verdict_set is not None:
                raise ValueError("scoring draws completions: name a judge’s scores (rating_set) and no verdicts")
        elif self.verdict_set is None or self.rating_set is not None:
            raise ValueError(f"purpose {self.purpose} draws pairs: name verdicts (verdict_set) and no scores")
        if self.purpose == "adjudication" and self.overlap != 1:
            raise ValueError("one adjudicator settles a pair: leave people per pair at 1")
        return self
