"""What the judging pages show: tables of verdict sets, judges and verdicts, one pair opened, a run's panel."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.db import get
from app.errors import NotFound
from app.judging.material import PairRow, read_guides, read_pairs
from app.judging.models import Call, CallText, Judge, Opinion, Verdict, VerdictSet
from app.judging.prompt import render_local_prompt
from app.judging.protocol import N_CUT, protocol_of
from app.judging.reweigh import root_of
from app.pairs.models import Completion, Pair, PairSet
from app.projects.access import Member
from app.prompts.models import Prompt
from app.runs.models import Run
from app.tables import Column, Filter, Table

OUTCOMES = ("a", "b", "tie", "unreadable")
REASONS_READ = 200
GIVEN = (("split", "split"), ("group", "grp"), ("category", "category"), ("reference", "reference"))


def verdict_sets_table(member: Member) -> Table:
    """The project's verdict sets."""
    root = f"/p/{member.project.slug}/judge"
    columns = [
        Column("id", VerdictSet.id, "Set", "number", is_shown=False),
        Column("name", VerdictSet.name, "Verdicts", href=lambda row: f"{root}/{row['id']}"),
        Column("judge", Judge.name, "Judge"),
        Column("pairs", PairSet.name, "Pairs"),
        Column("n_a", VerdictSet.n_a, "a", "number"),
        Column("n_b", VerdictSet.n_b, "b", "number"),
        Column("n_tie", VerdictSet.n_tie, "Tie", "number"),
        Column("n_null", VerdictSet.n_null, "Unreadable", "number"),
        Column("n_flip", VerdictSet.n_flip, "Flips", "number"),
        Column("created_at", VerdictSet.created_at, "Made", "when"),
        Column("run_id", VerdictSet.run_id, "Run", "number", is_shown=False),
    ]
    source = sa.join(VerdictSet, Judge, col(Judge.id) == col(VerdictSet.judge_id))
    source = source.join(PairSet, col(PairSet.id) == col(VerdictSet.pair_set_id))
    where = [VerdictSet.project_id == member.project.id, col(VerdictSet.archived_at).is_(None)]
    return Table("verdict sets", columns, source, VerdictSet.id, where)


def judges_table(member: Member) -> Table:
    """The project's judges."""
    root = f"/p/{member.project.slug}/judge/judges"
    columns = [
        Column("id", Judge.id, "Judge", "number", is_shown=False),
        Column("name", Judge.name, "Judge", href=lambda row: f"{root}/{row['id']}"),
        Column("kind", Judge.kind, "Kind"),
        Column("is_oracle", sa.case((col(Judge.is_oracle), "oracle"), else_=""), "Reads gold answers"),
        Column("created_at", Judge.created_at, "Made", "when"),
        Column("settings", Judge.settings, "Settings", is_shown=False),
    ]
    filters = [Filter("kind", Judge.kind, "Kind", ("endpoint", "checkpoint", "reward", "rule", "panel", "imported"))]
    return Table("judges", columns, Judge, Judge.id, [Judge.project_id == member.project.id], filters)


def _as_outcome(text: str) -> str | None:
    if text not in OUTCOMES:
        raise ValueError(text)
    return None if text == "unreadable" else text


def _as_bool(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError(text)
    return text == "yes"


def verdicts_table(verdict_set: VerdictSet) -> Table:
    """One set's verdicts with their pairs."""
    a, b = aliased(Completion), aliased(Completion)
    outcome = sa.func.coalesce(sa.cast(Verdict.outcome, sa.String), "unreadable")
    columns = [
        Column("pair_id", Verdict.pair_id, "Pair", "number", is_shown=False),
        Column("position", Pair.position, "Pair", "number"),
        Column("messages", Prompt.messages, "Prompt", "long"),
        Column("outcome", outcome, "Verdict", "badge"),
        Column("p_a", Verdict.p_a, "p(a)", "number", is_sortable=True),
        Column("is_flip", sa.case((col(Verdict.is_flip), "yes"), else_="no"), "Flip"),
        Column("need", Verdict.need, "Need", "number", is_sortable=True),
        Column("reason", Verdict.reason, "Reason", "long"),
        Column("a", a.text, "a", is_shown=False, is_read=False),
        Column("b", b.text, "b", is_shown=False, is_read=False),
        # so that a download can be imported again as it is (app/pairs/fields.py)
        *(Column(name, getattr(Prompt, of), name.capitalize(), is_shown=False, is_read=False) for name, of in GIVEN),
    ]
    source = (
        sa.join(Verdict, Pair, col(Pair.id) == col(Verdict.pair_id))
        .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
    )
    filters = [  # on the columns themselves, which the indexes hold
        Filter("outcome", Verdict.outcome, "Verdict", OUTCOMES, cast=_as_outcome),
        Filter("flip", Verdict.is_flip, "Flip", ("yes", "no"), cast=_as_bool),
    ]
    where = [Verdict.verdict_set_id == verdict_set.id]
    return Table(f"verdicts-{verdict_set.id}", columns, source, Verdict.pair_id, where, filters, is_newest_first=False)


def unreadable_reasons(session: Session, verdict_set: VerdictSet) -> list[tuple[str, int]]:
    """Why verdicts are unreadable, the commonest first; of a large set, the first REASONS_READ of them."""
    if not verdict_set.n_null:
        return []
    n = sa.func.count()
    some = (
        sa.select(sa.func.substr(Verdict.reason, 1, 120).label("reason"))
        .where(col(Verdict.verdict_set_id) == verdict_set.id, col(Verdict.outcome).is_(None))
        .order_by(col(Verdict.pair_id))
        .limit(REASONS_READ)
        .subquery()
    )
    query = sa.select(some.c.reason, n).group_by(some.c.reason).order_by(n.desc()).limit(8)
    return [(str(text), int(count)) for text, count in session.execute(query)]


def said_of_cuts(session: Session, verdict_set: VerdictSet) -> str:
    """How many of a set's readings were cut, in words; "" where none was."""
    n_cut = int(verdict_set.protocol.get(N_CUT, 0))
    if not n_cut:
        return ""
    root = root_of(session, verdict_set)
    count = sa.select(sa.func.count()).where(col(Opinion.verdict_set_id) == root.id)
    n = int(session.execute(count).scalar_one())
    kinds = {seat.kind for seat in protocol_of(session, root).seats}
    local = "to fit the judge's context"
    remote = "off at the limit of tokens an answer may have"
    where = remote if kinds == {"endpoint"} else local if "endpoint" not in kinds else f"{local}, or {remote}"
    return f"{n_cut:,} of {n:,} readings ({n_cut / n:.0%}) were cut {where}." if n else ""


@dataclass(frozen=True)
class OpinionShown:
    """One opinion, with what was asked and answered where it was a call."""

    opinion: Opinion
    messages: list[dict[str, str]]
    raw: str
    call: Call | None
    judge: str = ""


@dataclass(frozen=True)
class PairShown:
    """One pair opened in place."""

    pair: PairRow
    verdict: Verdict
    opinions: list[OpinionShown]
    by_judge: list[tuple[str, dict[str, Any]]]  # of a panel: (name, what it said)

    @property
    def has_votes(self) -> bool:
        """Whether a judge was asked more than once in one order."""
        return any(one.opinion.sample for one in self.opinions)


def read_pair_shown(session: Session, verdict_set: VerdictSet, pair_id: int) -> PairShown:
    """A pair with its verdict, opinions and raw answers; raises NotFound."""
    verdict = session.exec(
        select(Verdict).where(Verdict.verdict_set_id == verdict_set.id, Verdict.pair_id == pair_id)
    ).first()
    if verdict is None:
        raise NotFound(f"Pair {pair_id} has no verdict in this set.")
    (pair,) = read_pairs(session, [pair_id])
    root = root_of(session, verdict_set)
    protocol = protocol_of(session, root)
    seats = {seat.judge_id: seat for seat in protocol.seats}
    rows = session.exec(
        select(Opinion, Call, CallText)
        .outerjoin(Call, col(Call.id) == col(Opinion.call_id))
        .outerjoin(CallText, col(CallText.call_id) == col(Opinion.call_id))
        .where(Opinion.verdict_set_id == root.id, Opinion.pair_id == pair_id)
        .order_by(col(Opinion.judge_id), col(Opinion.is_swapped), col(Opinion.sample), col(Opinion.id))
    ).all()
    shown = []
    for opinion, call, text in rows:
        seat = seats.get(opinion.judge_id)
        messages = text.request["body"]["messages"] if text else []
        if seat and seat.kind == "checkpoint":
            guide = read_guides(session, root.constitution_id, seat.principles)[opinion.principle]
            messages = render_local_prompt(guide, pair.text, opinion.is_swapped)
        name = seat.name if seat else ""
        shown.append(OpinionShown(opinion, messages, text.raw if text else "", call, name))
    names = {str(key): seat.name for key, seat in seats.items()}
    by_judge = [(names.get(key, f"judge {key}"), said) for key, said in verdict.votes.get("by_judge", {}).items()]
    return PairShown(pair, verdict, shown, by_judge)


def project_row(session: Session, member: Member, kind: Any, key: int) -> Any:
    """A row of this project; raises NotFound."""
    row = get(session, kind, key)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no {kind.__tablename__.replace('_', ' ')} {key}.")
    return row


def panel_of(session: Session, run: Run) -> VerdictSet | None:
    """The verdict set a run is making."""
    return session.exec(select(VerdictSet).where(VerdictSet.run_id == run.id)).first()


def verdict_sets_of(session: Session, judge: Judge, n: int = 20) -> list[VerdictSet]:
    """A judge's newest verdict sets."""
    query = select(VerdictSet).where(VerdictSet.judge_id == judge.id, col(VerdictSet.archived_at).is_(None))
    return list(session.exec(query.order_by(col(VerdictSet.id).desc()).limit(n)))
