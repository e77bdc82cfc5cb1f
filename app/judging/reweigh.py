"""Other weights over the same opinions: what would change, keeping it as a verdict set, and judging some again.

Nothing is asked: the stored opinions are decided anew, by the very function that decided them first. Such a set is
re-aggregated, not re-judged: a judge that is shown other weights might say something else.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.checkpoints.naming import store_named
from app.constitutions.constitutions import PrincipleText, read_principles, save_version
from app.constitutions.models import Constitution
from app.db import get
from app.errors import Conflict, Invalid
from app.judging.deciding import decide
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.judging.protocol import RULE_KEYS, Protocol, protocol_of
from app.judging.verdicts import OpinionValue, VerdictValue
from app.pairs.models import Pair
from app.prompts.models import Prompt
from app.runs.models import Run
from app.stats.intervals import Interval, rate_of

AT_ONCE = 500
AT_MOST = 50_000  # verdicts decided anew within one request
N_SHOWN = 10
N_AGAIN = 50  # pairs offered to be judged again


@dataclass(frozen=True)
class Changed:
    """A pair whose label would be another one."""

    pair_id: int
    position: int
    prompt: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class WhatIf:
    """What other weights would do to a verdict set."""

    weights: dict[str, float]
    n: int
    n_changed: int
    n_to_other_side: int  # from a to b, or from b to a
    examples: list[Changed]

    @property
    def without(self) -> list[str]:
        """Principles that count for nothing."""
        return [key for key, weight in self.weights.items() if not weight]


def root_of(session: Session, verdict_set: VerdictSet) -> VerdictSet:
    """The judged set whose opinions a set rests on."""
    while verdict_set.parent_id is not None:
        verdict_set = get(session, VerdictSet, verdict_set.parent_id)
    return verdict_set


def weights_of(session: Session, verdict_set: VerdictSet) -> dict[str, float]:
    """The weight of each principle the opinions speak of; empty where they speak of none."""
    if verdict_set.weights:
        return dict(verdict_set.weights)
    judge = get(session, Judge, verdict_set.judge_id)
    if judge.kind == "rule":
        weights = {key: float(judge.settings.get(f"{key}_weight", 0)) for key in RULE_KEYS}
        return {key: weight for key, weight in weights.items() if weight}
    if verdict_set.constitution_id is None:
        return {}
    mine = Verdict.verdict_set_id == verdict_set.id, col(Verdict.outcome).is_not(None)
    some = session.exec(select(Verdict.by_principle).where(*mine).order_by(col(Verdict.id)).limit(20))
    said = any(some)  # the first may be pairs of identical texts, which nobody was asked about
    return {one.key: one.weight for one in read_principles(session, verdict_set.constitution_id)} if said else {}


def reweighed(protocol: Protocol, weights: Mapping[str, float]) -> Protocol:
    """The protocol with these weights, every judge that speaks of principles decided by them."""
    by_principle = {"endpoint"} if protocol.rule else {"endpoint", "rule"}  # on a panel a rule goes by its own
    seats = tuple(
        replace(one, is_weighted=one.kind in by_principle or one.principles != ("",)) for one in protocol.seats
    )
    return replace(protocol, seats=seats, weights=weights)


def too_many(verdict_set: VerdictSet) -> str:
    """Why a set is not decided anew, "" where it is: nobody waits for a page that long."""
    if verdict_set.n <= AT_MOST:
        return ""
    return (
        f"This set has {verdict_set.n:,} verdicts, and at most {AT_MOST:,} are decided anew at once. Judge fewer of "
        "the pairs, drawn at random (“At most this many pairs”): answers that are known cost nothing."
    )


def decide_anew(
    session: Session, verdict_set: VerdictSet, weights: Mapping[str, float]
) -> Iterator[tuple[sa.Row[Any], VerdictValue]]:
    """Every verdict of a set and what it would be, in the order of its pairs' verdicts. Raises Invalid."""
    if not any(weights.values()):
        raise Invalid("With every weight at 0 there is nothing to decide by: give one principle a weight.")
    if verdict_set.n > AT_MOST:
        raise Invalid(too_many(verdict_set))
    root = root_of(session, verdict_set)
    protocol = reweighed(protocol_of(session, root), weights)
    columns: list[Any] = [
        Verdict.id, Verdict.pair_id, Verdict.outcome, Verdict.reason, Verdict.p_a, Verdict.is_flip, Verdict.need,
        Verdict.by_principle, Verdict.votes,
    ]  # fmt: skip
    after = 0
    while True:
        query = sa.select(*columns).where(col(Verdict.verdict_set_id) == verdict_set.id, col(Verdict.id) > after)
        rows = session.execute(query.order_by(col(Verdict.id)).limit(AT_ONCE)).all()
        if not rows:
            return
        said = _opinions(session, root.id, [row.pair_id for row in rows])
        for row in rows:
            yield row, _decide(protocol, row, said.get(row.pair_id, []))
        after = rows[-1].id


def _opinions(session: Session, set_id: int, pair_ids: Sequence[int]) -> dict[int, list[OpinionValue]]:
    columns: list[Any] = [
        Opinion.pair_id, Opinion.is_swapped, Opinion.choice, Opinion.p_a, Opinion.by_principle, Opinion.reason,
        Opinion.sample, Opinion.principle, Opinion.judge_id,
    ]  # fmt: skip
    query = sa.select(*columns).where(col(Opinion.verdict_set_id) == set_id, col(Opinion.pair_id).in_(list(pair_ids)))
    found: dict[int, list[OpinionValue]] = {}
    for row in session.execute(query.order_by(col(Opinion.id))):
        found.setdefault(row[0], []).append(OpinionValue(*row[1:]))
    return found


def _decide(protocol: Protocol, row: sa.Row[Any], opinions: Sequence[OpinionValue]) -> VerdictValue:
    if not opinions:  # the sides are the same text, and nobody was asked
        return VerdictValue(row.outcome, row.reason, row.p_a, row.is_flip, row.need, row.by_principle, row.votes)
    return decide(protocol, opinions)


def what_if(session: Session, verdict_set: VerdictSet, weights: Mapping[str, float]) -> WhatIf:
    """How many labels other weights would change, and some of them."""
    changed: list[tuple[int, str | None, str | None]] = []
    n = 0
    for row, value in decide_anew(session, verdict_set, weights):
        n += 1
        if row.outcome != value.outcome:
            changed.append((row.pair_id, row.outcome, value.outcome))
    changed.sort(key=lambda one: {one[1], one[2]} != {"a", "b"})  # stable: those that change sides first
    columns: list[Any] = [Pair.id, Pair.position, Prompt.messages]
    shown = {
        row[0]: row for row in session.execute(
            sa.select(*columns).join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
            .where(col(Pair.id).in_([one[0] for one in changed[:N_SHOWN]]))
        )
    }  # fmt: skip
    examples = [
        Changed(pair, shown[pair][1], shown[pair][2][-1]["content"], before, after)
        for pair, before, after in changed[:N_SHOWN]
    ]
    n_sides = sum({before, after} == {"a", "b"} for _, before, after in changed)
    return WhatIf(dict(weights), n, len(changed), n_sides, examples)


def keep_weights(session: Session, verdict_set: VerdictSet, weights: Mapping[str, float]) -> VerdictSet:
    """A verdict set from the same opinions with other weights: re-aggregated, not re-judged. No call is made.

    The same weights twice are one set, so that a double click makes no second one.
    """
    session.exec(select(VerdictSet.id).where(VerdictSet.id == verdict_set.id).with_for_update()).one()
    judging = session.get(Run, root_of(session, verdict_set).run_id or 0)
    if judging is not None and judging.is_live:
        raise Conflict(
            f"“{verdict_set.name}” is still being judged (run {judging.id}): keep weights once it has ended."
        )
    kept = select(VerdictSet).where(VerdictSet.parent_id == verdict_set.id, col(VerdictSet.archived_at).is_(None))
    for known in session.exec(kept):
        if known.weights == dict(weights) and known.n == verdict_set.n:
            return known
    told = ", ".join(f"{key} {weight:g}" for key, weight in weights.items())
    row = VerdictSet(
        project_id=verdict_set.project_id, pair_set_id=verdict_set.pair_set_id, judge_id=verdict_set.judge_id, name="",
        constitution_id=verdict_set.constitution_id, parent_id=verdict_set.id, weights=dict(weights),
        protocol=root_of(session, verdict_set).protocol | {"overall": "weighted"},
    )  # fmt: skip
    store_named(session, row, f"{verdict_set.name[:60]}: {told}")
    session.flush()
    counts: Counter[str] = Counter()
    batch: list[dict[str, Any]] = []
    for old, value in decide_anew(session, verdict_set, weights):
        counts[f"n_{value.outcome or 'null'}"] += 1
        counts["n_flip"] += value.is_flip
        batch.append({"verdict_set_id": row.id, "pair_id": old.pair_id, **vars(value)})
        if len(batch) >= AT_ONCE:
            session.execute(sa.insert(Verdict), batch)
            batch = []
    if batch:
        session.execute(sa.insert(Verdict), batch)
    for name, n in counts.items():
        setattr(row, name, n)
    session.add(row)
    session.flush()
    return row


def version_with(session: Session, verdict_set: VerdictSet) -> Constitution:
    """The constitution with a kept set's weights, principles of weight 0 left out: its next version, or the one there.

    Raises Invalid where the set rests on no constitution.
    """
    if verdict_set.constitution_id is None:
        raise Invalid("These weights are a rule's: there is no constitution to judge by again.")
    old = get(session, Constitution, verdict_set.constitution_id)
    principles = [
        PrincipleText(one.key, one.body, verdict_set.weights[one.key])
        for one in read_principles(session, old.id) if verdict_set.weights.get(one.key)
    ]  # fmt: skip
    same = select(Constitution).where(Constitution.project_id == old.project_id, Constitution.name == old.name)
    for row in session.exec(same.order_by(col(Constitution.version).desc())):
        if row.preface == old.preface and read_principles(session, row.id) == principles:
            return row
    return save_version(session, old, old.preface, principles)[0]


def judge_again_url(session: Session, verdict_set: VerdictSet, root: str) -> str:
    """The form that judges some of these pairs again, by a constitution that says these weights."""
    protocol = verdict_set.protocol
    same = {name: protocol[name] for name in sorted(JUDGED_BY) if name in protocol}
    values = same | {
        "pair_set": verdict_set.pair_set_id, "judge": verdict_set.judge_id, "overall": "weighted",
        "constitution": version_with(session, verdict_set).id, "limit": N_AGAIN, "draw": "random", "seed": 1,
        "compare_with": verdict_set.id,
    }  # fmt: skip
    told = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return f"{root}/new/judge?{urlencode(told)}"


JUDGED_BY = {
    "with_reason", "temperature", "max_tokens", "is_both_orders", "flip_as", "votes", "label", "principle_calls",
    "identical",
}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """A set judged again, and how far it agrees with this one."""

    verdict_set: VerdictSet
    n: int
    interval: Interval | None


def agreements_of(session: Session, verdict_set: VerdictSet) -> list[Agreement]:
    """How far the sets that were judged to be compared with this one agree with it, over prompts.

    Labels a, b and tie; an unreadable one agrees with nothing. Interval: app.stats.intervals.rate_interval.
    """
    query = select(VerdictSet).where(
        VerdictSet.pair_set_id == verdict_set.pair_set_id, VerdictSet.id > verdict_set.id,
        col(VerdictSet.run_id).is_not(None), col(VerdictSet.archived_at).is_(None),
    )  # fmt: skip
    others = session.exec(query.order_by(col(VerdictSet.id).desc()).limit(200)).all()
    mine = [other for other in others if other.protocol.get("compare_with") == verdict_set.id]
    return [_agreement(session, verdict_set, other) for other in mine]


def _agreement(session: Session, one: VerdictSet, other: VerdictSet) -> Agreement:
    mine, theirs = aliased(Verdict), aliased(Verdict)
    rows = session.execute(
        sa.select(col(mine.outcome), col(theirs.outcome), col(Pair.prompt_id))
        .join(theirs, col(theirs.pair_id) == col(mine.pair_id))
        .join(Pair, col(Pair.id) == col(mine.pair_id))
        .where(col(mine.verdict_set_id) == one.id, col(theirs.verdict_set_id) == other.id)
    ).all()
    if not rows:
        return Agreement(other, 0, None)
    agrees = [float(a is not None and a == b) for a, b, _ in rows]
    return Agreement(other, len(rows), rate_of(agrees, [prompt for *_, prompt in rows]))
