"""Freezing preferences: overrides over verdicts, as a hashed file of TRL's prompt/chosen/rejected rows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.db import get
from app.errors import Invalid
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Completion, Pair
from app.prompts.models import Prompt
from app.review.adjudication import unsettled_pairs
from app.review.models import Override
from app.runs.recipe import Recipe, points_to
from app.training.waivers import check_waiver, reason_field

TRAINED_ON = ("train", "dev")  # test and out-of-distribution prompts never reach a snapshot
UNSETTLED = "unsettled"  # a label that is none until somebody adjudicates
CHUNK = 2_000


class SnapshotRecipe(Recipe):
    """Freezes the preferences of a verdict set, overrides over verdicts, into a hashed file."""

    kind: ClassVar[str] = "snapshot"
    aim: ClassVar[str] = "Freeze preferences"
    verb: ClassVar[str] = "Freeze"

    verdict_set: int = points_to("verdict_set", title="Verdicts")
    waiver: str = reason_field("labels")

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid where the labels may not train: probes, and a failed judge's without a reason."""
        verdict_set = get(session, VerdictSet, self.verdict_set)
        if verdict_set.archived_at is not None:
            raise Invalid(f"“{verdict_set.name}” was put away: choose other verdicts.", {"verdict_set": ["archived"]})
        check_waiver(session, verdict_set.judge_id, verdict_set.constitution_id, self.waiver, "labels")


@dataclass(frozen=True)
class Preference:
    """One row of a snapshot: the pair, and which side is preferred."""

    pair_id: int
    split: str
    row: dict[str, Any]


def standing_overrides(session: Session, pair_set_id: int) -> dict[int, str]:
    """pair → what people say of it: their override where one stands, “unsettled” where they split evenly."""
    found = session.execute(
        sa.select(col(Override.pair_id), col(Override.choice))
        .join(Pair, col(Pair.id) == col(Override.pair_id))
        .where(col(Pair.pair_set_id) == pair_set_id, col(Override.withdrawn_at).is_(None))
        .order_by(col(Override.pair_id))
    ).all()
    split = dict.fromkeys(sorted(unsettled_pairs(session, pair_set_id)), UNSETTLED)
    return split | {row.pair_id: row.choice for row in found}


def read_preferences(
    session: Session, verdict_set: VerdictSet, overrides: dict[int, str], counts: Counter[str]
) -> Iterator[Preference]:
    """The preferences of a verdict set in the order of its pairs, streamed; what gives none is counted.

    `counts` afterwards holds: pairs, held_out (test and ood), train, dev, ties, both_bad, unreadable, unjudged,
    unsettled (people split evenly), overridden (labels that come from people), flips (preferences whose two orders
    disagreed) and cut (preferences whose chosen completion had come to its token limit, not to its end).
    """
    after = (-1, 0)
    while True:
        rows = session.execute(_chunk(verdict_set, after)).all()
        if not rows:
            return
        for row in rows:
            counts["pairs"] += 1
            choice = _label(row, overrides, counts)
            if choice is not None:
                counts[row.split] += 1
                counts["flips"] += bool(row.is_flip)
                counts["cut"] += (row.a_ended if choice == "a" else row.b_ended) == "length"
                yield Preference(row.id, row.split, _as_row(row, choice, row.id in overrides))
        after = (rows[-1].position, rows[-1].id)


def _chunk(verdict_set: VerdictSet, after: tuple[int, int]) -> Any:
    a, b = aliased(Completion), aliased(Completion)
    is_verdict = sa.and_(col(Verdict.pair_id) == col(Pair.id), col(Verdict.verdict_set_id) == verdict_set.id)
    beyond = sa.or_(col(Pair.position) > after[0], sa.and_(col(Pair.position) == after[0], col(Pair.id) > after[1]))
    return (
        sa.select(
            col(Pair.id), col(Pair.position), col(Prompt.messages), col(Prompt.reference), col(Prompt.split),
            col(Prompt.grp), col(a.text).label("a"), col(b.text).label("b"), col(Verdict.id).label("verdict"),
            col(a.stop_reason).label("a_ended"), col(b.stop_reason).label("b_ended"),
            col(Verdict.outcome), col(Verdict.is_flip), col(Verdict.p_a),
        )
        .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .outerjoin(Verdict, is_verdict)
        .where(col(Pair.pair_set_id) == verdict_set.pair_set_id, beyond)
        .order_by(col(Pair.position), col(Pair.id))
        .limit(CHUNK)
    )  # fmt: skip


def _label(row: Any, overrides: dict[int, str], counts: Counter[str]) -> str | None:
    """a or b, or None and why, in the counts."""
    if row.split not in TRAINED_ON:
        counts["held_out"] += 1
        return None
    override = overrides.get(row.id)
    if override == UNSETTLED:
        counts["unsettled"] += 1
        return None
    counts["overridden"] += override is not None
    label = override or row.outcome
    if label in {"a", "b"}:
        return str(label)
    if label is None:
        counts["unjudged" if row.verdict is None else "unreadable"] += 1
    else:
        counts["both_bad" if label == "both_bad" else "ties"] += 1
    return None


def _as_row(row: Any, choice: str, is_by_people: bool) -> dict[str, Any]:
    """The row; `p_chosen` is the judge's own probability of the label, where it gave one and no person has spoken."""
    sides = {"a": row.a, "b": row.b}
    rejected = sides["b" if choice == "a" else "a"]
    has_p = row.p_a is not None and not is_by_people
    soft = {"p_chosen": row.p_a if choice == "a" else 1 - row.p_a} if has_p else {}
    return soft | {
        "prompt": row.messages,
        "chosen": [{"role": "assistant", "content": sides[choice]}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "pair": row.id,
        "group": row.grp,
        "split": row.split,
        "reference": row.reference,
    }


def say_cut(n: int) -> str:
    """What chosen completions that did not come to their end teach."""
    return (
        f"{n:,} chosen completions were cut off at their token limit; a policy trained on them learns to end there. "
        "Generate with room for them to end."
    )
