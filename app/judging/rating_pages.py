"""What the pages of scores show: tables, means by principle and arm, distributions, reasons for none."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.checkpoints.models import Arm
from app.constitutions.models import Principle
from app.judging.models import Judge, Rating, RatingSet
from app.judging.ratings import HIGHEST, LOWEST, OVERALL, SCALE
from app.pairs.models import Completion
from app.projects.access import Member
from app.prompts.models import Prompt
from app.runs.models import RunIo
from app.stats.intervals import Interval, mean_interval
from app.tables import Column, Filter, Table

SHOWN_AS = "(overall)"  # no principle's key can hold brackets
MOST_READ = 200_000  # scores a page adds up
MOST_REASONS = 20


def rating_sets_table(member: Member) -> Table:
    """The project's rating sets."""
    root = f"/p/{member.project.slug}/judge/ratings"
    columns = [
        Column("id", RatingSet.id, "Set", "number", is_shown=False),
        Column("name", RatingSet.name, "Scores", href=lambda row: f"{root}/{row['id']}"),
        Column("judge", Judge.name, "Judge"),
        Column("n", RatingSet.n, "Completions", "number"),
        Column("n_null", RatingSet.n_null, "Unreadable", "number"),
        Column("created_at", RatingSet.created_at, "Made", "when"),
        Column("run_id", RatingSet.run_id, "Run", "number", is_shown=False),
    ]
    source = sa.join(RatingSet, Judge, col(Judge.id) == col(RatingSet.judge_id))
    where = [RatingSet.project_id == member.project.id, col(RatingSet.archived_at).is_(None)]
    return Table("scores", columns, source, RatingSet.id, where)


def ratings_table(session: Session, made: RatingSet) -> Table:
    """One set's scores, a row for each completion and principle."""
    key: Any = sa.case((col(Rating.principle) == OVERALL, SHOWN_AS), else_=col(Rating.principle))
    columns = [
        Column("completion_id", Rating.completion_id, "No.", "number"),
        Column("prompt", Prompt.messages, "Prompt", is_shown=False),
        Column("arm", Arm.name, "Arm"),
        Column("completion", Completion.text, "Completion", "long"),
        Column("principle", key, "Principle"),
        Column("score", Rating.value, "Score", "number", is_sortable=True),
        Column("reason", Rating.reason, "Reason", "long"),
        Column("split", Prompt.split, "Split", is_shown=False),
        Column("call_id", Rating.call_id, "Call", "number", is_shown=False),
    ]
    source = sa.join(Rating, Completion, col(Completion.id) == col(Rating.completion_id))
    source = source.join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
    source = source.join(Arm, col(Arm.id) == col(Completion.arm_id))
    filters = [
        Filter("principle", key, "Principle", (SHOWN_AS, *_keys_of(session, made))),
        Filter("arm", Arm.name, "Arm", tuple(_arms_of(session, made).values())),
    ]
    return Table("scores", columns, source, Rating.id, [Rating.rating_set_id == made.id], filters, False)


def _keys_of(session: Session, made: RatingSet) -> list[str]:
    query = select(Principle.key).where(Principle.constitution_id == made.constitution_id)
    return list(session.exec(query.order_by(col(Principle.position))))


def _arms_of(session: Session, made: RatingSet) -> dict[int, str]:
    query = sa.select(col(Arm.id), col(Arm.name)).join(Completion, col(Completion.arm_id) == col(Arm.id))
    query = query.join(Rating, col(Rating.completion_id) == col(Completion.id))
    query = query.where(col(Rating.rating_set_id) == made.id, col(Rating.principle) == OVERALL)
    rows = session.execute(query.distinct().order_by(col(Arm.id))).all()
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True)
class Mean:
    """An arm's mean by one principle as a chart draws it: over what could be read, its interval over prompts."""

    label: str
    url: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str = "other"


@dataclass(frozen=True)
class Bin:
    """Scores from `low` up to `high`."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class OfPrinciple:
    """All scores by one principle ("(overall)" for the sum)."""

    key: str
    means: list[Mean]
    bins: list[Bin]
    n_null: int


@dataclass(frozen=True)
class Summary:
    """A rating set in numbers, over its first `n_read` scores."""

    principles: list[OfPrinciple]
    reasons: list[tuple[str, int]]
    n_read: int
    is_cut: bool


def summarise(session: Session, made: RatingSet, root: str) -> Summary:
    """Means by principle and arm, distributions by principle, and why scores could not be read."""
    query = sa.select(
        col(Rating.principle), col(Rating.value), col(Completion.arm_id), col(Completion.prompt_id),
        sa.case((col(Rating.value).is_(None), col(Rating.reason)), else_="").label("reason"),
    ).join(Completion, col(Completion.id) == col(Rating.completion_id))  # fmt: skip
    query = query.where(col(Rating.rating_set_id) == made.id).order_by(col(Rating.id)).limit(MOST_READ)
    values: dict[str, dict[int, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    nulls, reasons, n = Counter[str](), Counter[str](), 0
    for key, value, arm, prompt, reason in session.execute(query):
        n += 1
        if value is not None:
            values[key][arm].append((value, prompt))
        else:
            nulls[key] += 1
            if key != OVERALL:  # the overall score only repeats its principles' reasons
                reasons[reason] += 1
    arms = _arms_of(session, made)
    principles = [
        OfPrinciple(
            key or SHOWN_AS, [_mean(name, f"{root}/checkpoints/arms/{arm}", values[key][arm]) for arm, name in
                              arms.items()],
            _bins([value for one in values[key].values() for value, _ in one]), nulls[key],
        )
        for key in (OVERALL, *_keys_of(session, made))
    ] if n else []  # fmt: skip
    return Summary(principles, reasons.most_common(MOST_REASONS), n, n == MOST_READ)


def _mean(name: str, url: str, said: list[tuple[float, int]]) -> Mean:
    if not said:
        return Mean(name, url, None, None, None, 0)
    values, prompts = [value for value, _ in said], [prompt for _, prompt in said]
    found: Interval = mean_interval(values, prompts, bounds=(LOWEST, HIGHEST))
    return Mean(name, url, found.value, found.low, found.high, found.n)


def _bins(values: list[float]) -> list[Bin]:
    """A bin about each number of the scale; a value half-way between two counts for the upper."""
    counts = Counter(min(int(value + 0.5), HIGHEST) for value in values)
    return [Bin(number - 0.5, number + 0.5, counts[number]) for number in SCALE] if values else []


def queues_of(session: Session, made: RatingSet) -> list[int]:
    """Queues in which people score the same completions: each shows how far they agree with the judge."""
    read, drawn = aliased(RunIo), aliased(RunIo)
    query = sa.select(col(drawn.ref_id)).join(read, col(read.run_id) == col(drawn.run_id))
    query = query.where(
        col(read.noun) == "rating_set", col(read.ref_id) == made.id, col(read.is_output).is_(False),
        col(drawn.noun) == "queue", col(drawn.is_output).is_(True),
    )  # fmt: skip
    return list(session.execute(query.order_by(col(drawn.ref_id))).scalars())
