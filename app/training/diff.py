"""Two snapshots of the same pairs side by side: which labels differ, and who or what changed them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.db import get
from app.errors import Invalid
from app.judging.models import Judge, Verdict, VerdictSet
from app.pairs.models import Completion, Pair
from app.prompts.models import Prompt
from app.review.models import Override
from app.training.models import Snapshot
from app.training.snapshots import TRAINED_ON

PAGE = 50
DECIDED = ("a", "b")
NO_VERDICT = "not judged"


@dataclass(frozen=True)
class Changed:
    """One pair whose label is another: a, b, tie, both_bad, unreadable, not judged, or unsettled."""

    pair_id: int
    before: str
    after: str

    @property
    def change(self) -> str:
        """added or removed preference, flipped, or another reason for having none."""
        is_before, is_after = self.before in DECIDED, self.after in DECIDED
        if is_before and is_after:
            return "flipped"
        return "removed" if is_before else ("added" if is_after else "other")


@dataclass(frozen=True)
class Diff:
    """Every changed pair in the order of their ids, and how many of each kind."""

    changed: list[Changed]
    counts: dict[str, int]  # added, removed, flipped, other, and tie_decided: a tie became a or b, or the reverse


def diff_snapshots(session: Session, old: Snapshot, new: Snapshot) -> Diff:
    """The train and dev pairs whose labels differ. Raises Invalid for snapshots of other pairs, or not yet written.

    Labels are what each snapshot froze: its verdicts, and over them what stood of people's at that moment.
    """
    if old.pair_set_id != new.pair_set_id:
        raise Invalid("These snapshots hold other pairs: only two of the same pair set can be compared.")
    if "writing" in {old.state, new.state}:
        raise Invalid("One of these snapshots is still being written: compare them when its run has ended.")
    then, now = _overrides(old), _overrides(new)
    touched = [pair for pair in then.keys() | now.keys() if then.get(pair) != now.get(pair)]
    found: dict[int, Changed] = {}
    for pair_id, before, after in _outcomes(session, old, new, touched):
        one = Changed(pair_id, then.get(pair_id, before), now.get(pair_id, after))
        if one.before != one.after:
            found[pair_id] = one
    changed = [found[key] for key in sorted(found)]
    counts = Counter(one.change for one in changed)
    counts["tie_decided"] = sum(
        (one.before in DECIDED and one.after == "tie") or (one.before == "tie" and one.after in DECIDED)
        for one in changed
    )
    return Diff(changed, dict(counts))


def _overrides(snapshot: Snapshot) -> dict[int, str]:
    return {int(pair): choice for pair, choice in snapshot.counts.get("overrides", {}).items()}


def _outcomes(session: Session, old: Snapshot, new: Snapshot, touched: Sequence[int]) -> list[tuple[int, str, str]]:
    """(pair, old verdict, new verdict) of the pairs that may differ: those people touched, and other verdicts."""
    first, second = aliased(Verdict), aliased(Verdict)
    said = [
        sa.func.coalesce(
            sa.cast(one.outcome, sa.String), sa.case((col(one.id).is_(None), NO_VERDICT), else_="unreadable")
        )
        for one in (first, second)
    ]
    query = (
        sa.select(col(Pair.id), *said)
        .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
        .outerjoin(first, sa.and_(col(first.pair_id) == col(Pair.id), col(first.verdict_set_id) == old.verdict_set_id))
        .outerjoin(
            second, sa.and_(col(second.pair_id) == col(Pair.id), col(second.verdict_set_id) == new.verdict_set_id)
        )
        .where(col(Pair.pair_set_id) == new.pair_set_id, col(Prompt.split).in_(TRAINED_ON))
    )
    rows: list[Any] = []
    if old.verdict_set_id != new.verdict_set_id:
        rows += session.execute(query.where(said[0] != said[1])).all()
    for start in range(0, len(touched), 500):
        rows += session.execute(query.where(col(Pair.id).in_(touched[start : start + 500]))).all()
    return [(row[0], str(row[1]), str(row[2])) for row in rows]


def read_details(session: Session, old: Snapshot, new: Snapshot, some: Sequence[Changed]) -> list[dict[str, Any]]:
    """The changed pairs with their texts, and who or what changed each label."""
    ids = [one.pair_id for one in some]
    a, b = aliased(Completion), aliased(Completion)
    columns: list[Any] = [Pair.id, Pair.position, Prompt.messages, Prompt.split, a.text, b.text]
    texts = {
        row[0]: row
        for row in session.execute(
            sa.select(*columns)
            .select_from(Pair)
            .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
            .join(a, col(a.id) == col(Pair.a_id))
            .join(b, col(b.id) == col(Pair.b_id))
            .where(col(Pair.id).in_(ids))
        )
    }
    history = _history(session, ids)
    judges = ""
    if old.verdict_set_id != new.verdict_set_id:
        judges = " → ".join(_named(session, one) for one in (old, new))
    return [
        {
            "pair": one.pair_id, "position": texts[one.pair_id][1], "split": texts[one.pair_id][3],
            "change": one.change, "before": one.before, "after": one.after,
            "prompt": texts[one.pair_id][2][-1]["content"], "a": texts[one.pair_id][4], "b": texts[one.pair_id][5],
            "by": history.get(one.pair_id, []), "verdicts": judges,
        }
        for one in some
    ]  # fmt: skip


def _named(session: Session, snapshot: Snapshot) -> str:
    row = get(session, VerdictSet, snapshot.verdict_set_id)
    return f"{get(session, Judge, row.judge_id).name}: “{row.name}”"


def _history(session: Session, ids: Sequence[int]) -> dict[int, list[str]]:
    """pair → its overrides in words, oldest first: who, what, why, when, and who took it back."""
    maker, taker = aliased(Account), aliased(Account)
    found: dict[int, list[str]] = {}
    rows = session.execute(
        sa.select(Override, col(maker.name), col(taker.name))
        .join(maker, col(maker.id) == col(Override.account_id))
        .outerjoin(taker, col(taker.id) == col(Override.withdrawn_by_id))
        .where(col(Override.pair_id).in_(ids))
        .order_by(col(Override.made_at), col(Override.id))
    )
    for override, who, taken_by in rows:
        words = f"{who}: {override.choice.replace('_', ' ')}, {override.made_at:%Y-%m-%d %H:%M} UTC"
        if override.why:
            words += f", “{override.why}”"
        if override.withdrawn_at is not None:
            by = f"by {taken_by}" if taken_by else "as the answers changed"
            words += f"; withdrawn {by}, {override.withdrawn_at:%Y-%m-%d %H:%M} UTC"
        found.setdefault(override.pair_id, []).append(words)
    return found


def comparable(session: Session, snapshot: Snapshot, n: int = 50) -> list[Snapshot]:
    """Other written snapshots of the same pairs, newest first."""
    query = select(Snapshot).where(
        Snapshot.pair_set_id == snapshot.pair_set_id, Snapshot.id != snapshot.id, Snapshot.state == "ready"
    )
    return list(session.exec(query.order_by(col(Snapshot.id).desc()).limit(n)))
