"""Judge Cards: what people said of the probed pairs, the cards of a judge, and the gate before training."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.review.models import Answer, JudgeCard, Queue

SHORTEST_REASON = 10  # characters of a waiver


@dataclass(frozen=True)
class People:
    """What most people said of each audited pair, blind: a, b or tie; pairs with an even split are left out."""

    labels: dict[int, str]
    is_simulated: bool


def read_people(session: Session, pair_set_id: int, queue_id: int | None = None) -> People:
    """First answers from the audits of a pair set, or from one of them."""
    query = (
        sa.select(col(Answer.pair_id), col(Answer.account_id), col(Answer.first), col(Account.is_simulated))
        .join(Queue, col(Queue.id) == col(Answer.queue_id))
        .join(VerdictSet, col(VerdictSet.id) == col(Queue.verdict_set_id))
        .join(Account, col(Account.id) == col(Answer.account_id))
        .where(col(Queue.kind) == "audit", col(VerdictSet.pair_set_id) == pair_set_id)
        .where(col(Answer.first).is_not(None), col(Answer.first) != "skip")
        .order_by(col(Answer.id))
    )
    if queue_id is not None:
        query = query.where(col(Queue.id) == queue_id)
    said: dict[int, Counter[str]] = defaultdict(Counter)
    is_simulated = False
    heard: set[tuple[int, int]] = set()  # who meets a pair in two audits counts once, by what they said first
    for row in session.execute(query):
        if (row.pair_id, row.account_id) in heard:
            continue
        heard.add((row.pair_id, row.account_id))
        said[row.pair_id]["tie" if row.first == "both_bad" else row.first] += 1
        is_simulated = is_simulated or bool(row.is_simulated)
    labels = {}
    for pair_id, choices in said.items():
        ranked = choices.most_common(2)
        if len(ranked) == 1 or ranked[0][1] > ranked[1][1]:
            labels[pair_id] = ranked[0][0]
    return People(labels, is_simulated)


def state_of(card: JudgeCard) -> str:
    """passed, failed, undecided, or unfinished while its probes are still being judged."""
    if not card.lines:
        return "unfinished"
    return {True: "passed", False: "failed", None: "undecided"}[card.is_passed]


def cards_of(session: Session, judge_id: int, constitution_id: int | None) -> list[JudgeCard]:
    """Finished cards of a judge under a constitution, newest first.

    A reward model reads no constitution, so all the cards of judges that are this one reward model count.
    """
    judge = get(session, Judge, judge_id)
    query = select(JudgeCard).where(JudgeCard.n > 0, col(JudgeCard.archived_at).is_(None))
    if judge.kind == "reward":
        same_model = select(Judge.id).where(Judge.kind == "reward", Judge.checkpoint_id == judge.checkpoint_id)
        query = query.where(col(JudgeCard.judge_id).in_(same_model))
    else:
        same = col(JudgeCard.constitution_id)
        query = query.where(JudgeCard.judge_id == judge_id)
        query = query.where(same.is_(None) if constitution_id is None else same == constitution_id)
    return list(session.exec(query.order_by(col(JudgeCard.id).desc())))


def judge_of_reward_model(session: Session, checkpoint_id: int) -> Judge | None:
    """The first judge that is this reward model; None where it never judged, and so has no card."""
    same = select(Judge).where(Judge.kind == "reward", Judge.checkpoint_id == checkpoint_id)
    return session.exec(same.order_by(col(Judge.id)).limit(1)).first()


def deciding_card(session: Session, judge_id: int, constitution_id: int | None) -> JudgeCard | None:
    """The newest card that passed or failed; else the newest undecided one; None without any.

    An undecided card says too little to undo what an earlier one found.
    """
    cards = cards_of(session, judge_id, constitution_id)
    return next((card for card in cards if card.is_passed is not None), cards[0] if cards else None)


def failed_card(session: Session, judge_id: int, constitution_id: int | None) -> JudgeCard | None:
    """The card that keeps what a judge says from training without a reason, if it failed one."""
    card = deciding_card(session, judge_id, constitution_id)
    return card if card is not None and card.is_passed is False else None


def said_of_line(line: dict[str, Any]) -> str:
    """A gated line in words: “Position flips: 0.34 [0.27, 0.42], n = 200, limit at most 0.2”."""
    if line["value"] is None:
        return f"{line['name'].lower()}: none of its probes could be read"
    bounds = f" [{line['low']:.2f}, {line['high']:.2f}]" if line["low"] is not None else ""
    limit = f"{'at least' if line['is_at_least'] else 'at most'} {line['limit']:g}"
    return f"{line['name'].lower()} {line['value']:.2f}{bounds}, n = {line['n']}, limit {limit}"


def lines_that(card: JudgeCard, state: str) -> list[str]:
    """A card's gated lines in a state, in words."""
    return [said_of_line(line) for line in card.lines if line["is_gated"] and line["state"] == state]
