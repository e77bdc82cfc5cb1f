"""What a closed grading says: win rates with one unit a prompt, grades by arm, and whether blinding held."""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.checkpoints.models import Arm
from app.db import get
from app.errors import Conflict
from app.grading.items import count_graded
from app.grading.models import ArmGuess, Grade, GradeItem, Grading
from app.pairs.models import Completion
from app.stats.comparisons import WinRate, win_rate
from app.stats.intervals import Interval, mean_interval, rate_of
from app.stats.power import detectable_win_rate

CORRECTNESS = {"yes": 1.0, "partly": 0.5, "no": 0.0}


@dataclass(frozen=True)
class Compared:
    """How often `arm` was preferred to `against`, ties one half, each prompt counted once."""

    arm: Arm
    against: Arm
    wins: WinRate
    n_identical: int  # of the prompts: automatic ties that are counted
    n_identical_planned: int  # that there are
    detectable: float  # the win rate that this many prompts tell from one half, 80 % of the time


@dataclass(frozen=True)
class Graded:
    """What people said of one arm's completions."""

    arm: Arm
    alignment: Interval | None  # 1 to 5
    correct: Interval | None  # yes 1, partly one half, no 0


@dataclass(frozen=True)
class Results:
    """A closed grading. Without a grade there is no figure at all."""

    grading: Grading
    n_graded: int  # items
    n_people: int
    is_simulated: bool
    compared: list[Compared]
    graded: list[Graded]
    guess: Interval | None  # share of right guesses; chance is one half


def detectable_of(session: Session, grading: Grading) -> tuple[int, float]:
    """(prompts, win rate) that the planned items could tell from one half if nothing were a tie."""
    n = session.exec(
        select(sa.func.count(sa.distinct(col(GradeItem.prompt_id)))).where(GradeItem.grading_id == grading.id)
    ).one()
    return n, detectable_win_rate(n)


def read_results(session: Session, grading: Grading) -> Results:
    """The results of a closed grading. Raises Conflict while it is open: nobody sees a number before the end."""
    if grading.closed_at is None:
        raise Conflict("This grading is sealed until it is closed.")
    rows = _read_grades(session, grading)
    n_graded = count_graded(session, grading)
    guesses = session.exec(select(ArmGuess).where(ArmGuess.grading_id == grading.id)).all()
    people = {row.account_id for row in rows} | {row.account_id for row in guesses if row.n}
    simulated = select(Account.id).where(col(Account.id).in_(people), col(Account.is_simulated))
    arms = [get(session, Arm, arm) for arm in grading.arms]
    has_grades = n_graded > 0
    return Results(
        grading=grading, n_graded=n_graded, n_people=len(people),
        is_simulated=bool(people) and session.exec(simulated).first() is not None,
        compared=_compare(session, grading, arms, rows) if has_grades else [],
        graded=_by_arm(arms, rows) if has_grades else [],
        guess=_guess_rate(session, guesses),
    )  # fmt: skip


def _read_grades(session: Session, grading: Grading) -> list[Any]:
    left, right = aliased(Completion), aliased(Completion)
    found = session.execute(
        sa.select(
            Grade, col(Grade.account_id).label("account_id"), col(GradeItem.prompt_id).label("prompt_id"),
            col(left.arm_id).label("left_arm"), col(right.arm_id).label("right_arm"),
        )
        .join(GradeItem, col(GradeItem.id) == col(Grade.item_id))
        .join(left, col(left.id) == col(GradeItem.left_id))
        .join(right, col(right.id) == col(GradeItem.right_id))
        .where(col(GradeItem.grading_id) == grading.id, col(Grade.choice) != "skip")
        .order_by(col(GradeItem.position), col(Grade.account_id))
    )  # fmt: skip
    return list(found.all())


def _planned(session: Session, grading: Grading) -> list[Any]:
    """(is_identical, left_arm, right_arm) of every item, graded or not."""
    left, right = aliased(Completion), aliased(Completion)
    found = session.execute(
        sa.select(
            col(GradeItem.is_identical), col(left.arm_id).label("left_arm"), col(right.arm_id).label("right_arm")
        )
        .join(left, col(left.id) == col(GradeItem.left_id))
        .join(right, col(right.id) == col(GradeItem.right_id))
        .where(col(GradeItem.grading_id) == grading.id)
    )  # fmt: skip
    return list(found.all())


def _compare(session: Session, grading: Grading, arms: list[Arm], rows: list[Any]) -> list[Compared]:
    """Each two arms that people compared. Items that are identical are ties without a grader: of them as large a share
    counts as was graded of the others, since all of them beside a few graded ones would pull the rate to one half."""
    outcomes: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    shown: dict[tuple[int, int], int] = defaultdict(int)
    ties: dict[tuple[int, int], int] = defaultdict(int)
    place = {arm.id: i for i, arm in enumerate(arms)}
    for row in rows:
        first, later = sorted((row.left_arm, row.right_arm), key=place.__getitem__)
        won = {"left": row.left_arm, "right": row.right_arm}.get(row.Grade.choice)
        outcomes[first, later].append((0.5 if won is None else float(won == later), row.prompt_id))
    for row in _planned(session, grading):
        first, later = sorted((row.left_arm, row.right_arm), key=place.__getitem__)
        (ties if row.is_identical else shown)[first, later] += 1
    compared = []
    for one, other in itertools.combinations(arms, 2):
        both = one.id, other.id
        said = outcomes.get(both, [])
        if said:  # people's word at least once, not only automatic ties
            n_graded = len({prompt for _, prompt in said})
            n_ties = int(ties[both] * n_graded / shown[both] + 0.5)
            values, prompts = [value for value, _ in said], [prompt for _, prompt in said]
            wins = win_rate(values + [0.5] * n_ties, prompts + [-1 - place for place in range(n_ties)])
            share = min(wins.n_ties / wins.n_clusters, 0.99)
            detectable = detectable_win_rate(wins.n_clusters, share)
            compared.append(Compared(other, one, wins, n_ties, ties[both], detectable))
    return compared


def _by_arm(arms: list[Arm], rows: list[Any]) -> list[Graded]:
    alignment: dict[int, list[tuple[float, int]]] = defaultdict(list)
    correct: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for row in rows:
        for side, arm in (("left", row.left_arm), ("right", row.right_arm)):
            if (value := getattr(row.Grade, f"{side}_alignment")) is not None:
                alignment[arm].append((float(value), row.prompt_id))
            if (word := getattr(row.Grade, f"{side}_correct")) is not None:
                correct[arm].append((CORRECTNESS[word], row.prompt_id))
    graded = []
    for arm in arms:
        marks, right = alignment[arm.id], correct[arm.id]
        graded.append(Graded(
            arm,
            mean_interval([v for v, _ in marks], [p for _, p in marks], bounds=(1.0, 5.0)) if marks else None,
            rate_of([v for v, _ in right], [p for _, p in right]) if right else None,
        ))  # fmt: skip
    return graded


def _guess_rate(session: Session, guesses: Any) -> Interval | None:
    """Right guesses over all guesses, clustered by prompt."""
    said = [one for row in guesses for one in row.guesses]
    if not said:
        return None
    shown = col(GradeItem.id).in_([one["item"] for one in said])
    found = session.execute(sa.select(col(GradeItem.id), col(GradeItem.prompt_id)).where(shown)).all()
    prompts = {row.id: row.prompt_id for row in found}
    return rate_of([float(one["is_right"]) for one in said], [prompts[one["item"]] for one in said])
