"""Reward models in the report: what was measured of each; and how labels and scores go with people's answers."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.accounts.models import Account
from app.checkpoints.models import Checkpoint
from app.db import get
from app.judging.models import Judge, Verdict, VerdictSet
from app.pairs.models import Pair
from app.report.arms import Material
from app.review.models import Answer, Queue
from app.stats.scores import ScoreAgreement, score_agreement

SIDES = {"a": 1.0, "b": -1.0}  # anything else a person says, a tie or both bad, lies between


@dataclass(frozen=True)
class RewardLine:
    """One reward model of one seed."""

    checkpoint: Checkpoint
    step: str
    seed: int

    @property
    def held_out(self) -> dict[str, Any] | None:
        """What its training measured on dev rows; None for one of an older version, or without dev rows."""
        return self.checkpoint.facts.get("held_out")


@dataclass(frozen=True)
class PeopleLine:
    """One judge's labels or probabilities beside people's answers on the same pairs."""

    judge: Judge
    seed: int
    is_probability: bool
    n: int  # pairs
    n_unreadable: int
    is_simulated: bool  # whether any of the people was
    agreement: ScoreAgreement


def read_reward_lines(session: Session, material: Material) -> list[RewardLine]:
    """Every reward model that the experiment trained, in the file's order."""
    made = [(step, material.made(step, "checkpoint")) for step in material.of_kind("reward")]
    return [RewardLine(get(session, Checkpoint, key), step.name, step.seed) for step, key in made if key is not None]


def read_people_lines(session: Session, material: Material) -> list[PeopleLine]:
    """For each audit that people answered: every verdict set of the experiment on the same pairs."""
    found = []
    sets = [get(session, VerdictSet, key) for step in material.of_kind("judge")
            if (key := material.made(step, "verdict_set")) is not None]  # fmt: skip
    for step in material.of_kind("audit"):
        key = material.made(step, "queue")
        queue = get(session, Queue, key) if key is not None else None
        if queue is None or queue.kind != "audit" or queue.verdict_set_id is None:
            continue
        people, is_simulated = _read_people(session, queue)
        pair_set = get(session, VerdictSet, queue.verdict_set_id).pair_set_id
        same = [one for one in sets if one.pair_set_id == pair_set] if people else []
        found += [_line(session, one, people, step.seed, is_simulated) for one in same]
    return found


def _read_people(session: Session, queue: Queue) -> tuple[dict[int, float], bool]:
    """pair → people's first answers, a as 1 and b as −1, on average, skips left out; and whether one was simulated."""
    said: dict[int, list[float]] = defaultdict(list)
    query = (
        sa.select(col(Answer.pair_id), col(Answer.first), col(Account.is_simulated))
        .join(Account, col(Account.id) == col(Answer.account_id))
        .where(col(Answer.queue_id) == queue.id, col(Answer.first).is_not(None), col(Answer.first) != "skip")
    )
    is_simulated = False
    for pair, first, is_one in session.execute(query):
        said[pair].append(SIDES.get(first, 0.0))
        is_simulated = is_simulated or is_one
    return {pair: fmean(values) for pair, values in said.items()}, is_simulated


def _line(
    session: Session, verdict_set: VerdictSet, people: dict[int, float], seed: int, is_simulated: bool
) -> PeopleLine:
    rows = session.execute(
        sa.select(col(Verdict.pair_id), col(Verdict.outcome), col(Verdict.p_a), col(Pair.prompt_id))
        .join(Pair, col(Pair.id) == col(Verdict.pair_id))
        .where(col(Verdict.verdict_set_id) == verdict_set.id, col(Verdict.pair_id).in_(list(people)))
        .order_by(col(Verdict.pair_id))
    ).all()
    readable = [row for row in rows if row.outcome is not None]
    is_probability = bool(readable) and all(row.p_a is not None for row in readable)
    said = [2 * row.p_a - 1 if is_probability else SIDES.get(row.outcome, 0.0) for row in readable]
    answers = [people[row.pair_id] for row in readable]
    # Which side is called a is chance, so each pair counts in both orders.
    both = [*said, *(-one for one in said)], [*answers, *(-one for one in answers)]
    agreement = score_agreement(*both, [row.prompt_id for row in readable] * 2)
    judge = get(session, Judge, verdict_set.judge_id)
    n = len(readable)
    return PeopleLine(judge, seed, is_probability, n, len(rows) - n, is_simulated, agreement)
