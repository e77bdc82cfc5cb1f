"""What the pages of revisions show: tables, one revision with what was changed, the rate of acceptance."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.accounts.models import Account
from app.constitutions.models import Constitution
from app.db import get
from app.pairs.models import Completion, PairSet
from app.projects.access import Member
from app.prompts.models import SPLITS, Prompt, PromptSet
from app.revising.decisions import STATES, edit_of
from app.revising.models import Revision, RevisionSet
from app.stats.intervals import Interval, rate_interval
from app.tables import Column, Filter, Table

MOST_EQUAL = 200_000  # words of one text that equal one of the other: above this, comparing takes too long for a page
Link = tuple[int, int, Any]  # a pair of equal words, and the link before it


@dataclass(frozen=True)
class Shown:
    """One revision with everything its page shows. Parts are (changed?, text)."""

    revision: Revision
    messages: list[dict[str, str]]
    original: str
    revised: str | None
    original_parts: list[tuple[bool, str]]
    revised_parts: list[tuple[bool, str]]
    edited_by: str
    decided_by: str

    @property
    def critiques(self) -> list[dict[str, Any]]:
        """The reviser's steps, in order."""
        return [step for step in self.revision.steps if "edited_by" not in step]


def read_shown(session: Session, revision: Revision) -> Shown:
    """A revision's texts and steps. Nothing here names an arm."""
    original = get(session, Completion, revision.original_id).text
    revised = get(session, Completion, revision.revised_id).text if revision.revised_id else None
    edit = edit_of(revision)
    left, right = mark_changes(original, revised) if revised is not None else ([(False, original)], [])
    return Shown(
        revision=revision, messages=get(session, Prompt, revision.prompt_id).messages, original=original,
        revised=revised, original_parts=left, revised_parts=right, edited_by=edit["edited_by"] if edit else "",
        decided_by=get(session, Account, revision.account_id).name if revision.account_id else "",
    )  # fmt: skip


def mark_changes(old: str, new: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Both texts in parts, word by word: (is it only in this text?, the part). Too much to compare: nothing marked."""
    left, right = re.findall(r"\S+\s*|\s+", old), re.findall(r"\S+\s*|\s+", new)
    kept = common_words([one.strip() for one in left], [one.strip() for one in right])
    if kept is None:
        return [(False, old)], [(False, new)]
    return _in_parts(left, {i for i, _ in kept}), _in_parts(right, {j for _, j in kept})


def _in_parts(words: Sequence[str], kept: set[int]) -> list[tuple[bool, str]]:
    """Runs of words that are new or kept; the white space after a new one is not marked."""
    parts, between = [], ""
    for is_new, run in groupby(enumerate(words), lambda one: one[0] not in kept):
        text = "".join(word for _, word in run)
        end = len(text.rstrip()) if is_new else len(text)
        parts.append((is_new, between + text[:end]))  # runs take turns: what is between goes to a kept one
        between = text[end:]
    return [part for part in [*parts, (False, between)] if part[1]]


def common_words(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]] | None:
    """The places (in left, in right) of a longest common subsequence; None where too many words equal each other.

    Hunt & Szymanski 1977 (doi 10.1145/359581.359603): each two equal words cost one search, however the texts differ.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for j in range(len(right) - 1, -1, -1):
        places[right[j]].append(j)
    if sum(len(places.get(word, ())) for word in left) > MOST_EQUAL:
        return None
    ends: list[int] = []  # where in right the shortest subsequence of each length ends
    links: list[Link] = []
    for i, word in enumerate(left):
        for j in places.get(word, ()):
            n = bisect_left(ends, j)
            link = (i, j, links[n - 1] if n else None)
            if n == len(ends):
                ends.append(j)
                links.append(link)
            else:
                ends[n], links[n] = j, link
    found: list[tuple[int, int]] = []
    last: Link | None = links[-1] if links else None
    while last is not None:
        found.append(last[:2])
        last = last[2]
    return found


def name_for(member: Member, made: RevisionSet) -> str:
    """What this member may read as the name: a researcher's words could tell a grader whose completions these are."""
    return made.name if member.may("viewer") else f"Revisions {made.id}"


def sets_table(member: Member) -> Table:
    """The project's revision sets. A grader is not told whose texts they are."""
    root = f"/p/{member.project.slug}"
    number = sa.cast(col(RevisionSet.id), sa.String)
    name: Any = RevisionSet.name if member.may("viewer") else sa.literal("Revisions ") + number
    columns = [
        Column("id", RevisionSet.id, "Set", "number", is_shown=False),
        Column("name", name, "Revisions", href=lambda row: f"{root}/revisions/{row['id']}"),
        Column("n", RevisionSet.n, "Completions", "number"),
        Column("n_accepted", RevisionSet.n_accepted, "Accepted", "number"),
        Column("n_rejected", RevisionSet.n_rejected, "Rejected", "number"),
        Column("created_at", RevisionSet.created_at, "Made", "when"),
    ]
    source: Any = RevisionSet
    if member.may("viewer"):
        source = sa.join(RevisionSet, PromptSet, col(PromptSet.id) == col(RevisionSet.prompt_set_id))
        source = source.join(Constitution, col(Constitution.id) == col(RevisionSet.constitution_id))
        columns[2:2] = [
            Column("prompts", PromptSet.name, "Prompts", href=lambda row: f"{root}/prompts/{row['prompt_set_id']}"),
            Column("prompt_set_id", RevisionSet.prompt_set_id, is_shown=False),
            Column("constitution", Constitution.name, "Constitution",
                   href=lambda row: f"{root}/constitutions/{row['constitution_id']}"),
            Column("constitution_id", RevisionSet.constitution_id, is_shown=False),
        ]  # fmt: skip
    where = [RevisionSet.project_id == member.project.id, col(RevisionSet.archived_at).is_(None)]
    return Table("revision sets", columns, source, RevisionSet.id, where)


def revisions_table(made: RevisionSet) -> Table:
    """One set's revisions with their texts and steps."""
    original, revised = aliased(Completion), aliased(Completion)
    state: Any = sa.case((col(Revision.revised_id).is_(None), "none"), else_=sa.cast(col(Revision.state), sa.String))
    columns = [
        Column("id", Revision.id, "Revision", "number", is_shown=False),
        Column("position", Revision.position, "No.", "number"),
        Column("prompt", Prompt.messages, "Prompt"),
        Column("split", Prompt.split, "Split"),
        Column("category", Prompt.category, "Category"),
        Column("original", original.text, "Original"),
        Column("revised", revised.text, "Revision"),
        Column("state", state, "State"),
        Column("reason", Revision.reason, "Why there is none"),
        Column("steps", Revision.steps, "Steps", is_shown=False),
        Column("decided_by", Account.name, "By"),
        Column("decided_at", Revision.decided_at, "At", "when"),
        Column("note", Revision.note, "Comment"),
    ]
    source = sa.join(Revision, Prompt, col(Prompt.id) == col(Revision.prompt_id))
    source = source.join(original, col(original.id) == col(Revision.original_id))
    source = source.outerjoin(revised, col(revised.id) == col(Revision.revised_id))
    source = source.outerjoin(Account, col(Account.id) == col(Revision.account_id))
    filters = [
        Filter("state", state, "State", (*STATES, "none")), Filter("split", Prompt.split, "Split", SPLITS),
        Filter("category", Prompt.category, "Category"),
    ]  # fmt: skip
    where = [Revision.set_id == made.id]
    return Table("revisions", columns, source, Revision.position, where, filters, is_newest_first=False)


@dataclass(frozen=True)
class Summary:
    """A set in numbers. `accepted` is the share of what was decided, its interval clustered by prompt."""

    n: int
    n_none: int
    n_open: int
    accepted: Interval | None
    reasons: list[tuple[str, int]]
    principles: list[tuple[str, int, int, int]]  # key of the last step, decided, accepted, revisions with it
    n_changed_since: int  # decisions newer than the last hand-over


def summarise(session: Session, made: RevisionSet) -> Summary:
    """Counts, the rate of acceptance overall and by the principle of the last step, and why some have no revision."""
    rows = session.execute(
        sa.select(
            col(Revision.prompt_id), col(Revision.state), col(Revision.reason), col(Revision.steps),
            col(Revision.revised_id), col(Revision.decided_at),
        ).where(col(Revision.set_id) == made.id)
    ).all()  # fmt: skip
    by_prompt: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    by_principle: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    reasons: dict[str, int] = defaultdict(int)
    handed = get(session, PairSet, made.pair_set_id).created_at if made.pair_set_id else None
    n_changed = n_none = 0
    for row in rows:
        if row.revised_id is None:
            n_none += 1
            reasons[row.reason] += 1
            continue
        said = [step["principle"] for step in row.steps if "principle" in step]
        if said:
            by_principle[said[-1]][2] += 1
        if row.state != "proposed":
            for counted in (by_prompt[row.prompt_id], by_principle[said[-1]] if said else [0, 0, 0]):
                counted[0] += 1
                counted[1] += row.state == "accepted"
            n_changed += handed is not None and row.decided_at is not None and row.decided_at > handed
    n_decided = sum(n for n, _ in by_prompt.values())
    rate = rate_interval([k for _, k in by_prompt.values()], [n for n, _ in by_prompt.values()]) if n_decided else None
    return Summary(
        n=len(rows), n_none=n_none, n_open=len(rows) - n_none - n_decided, accepted=rate,
        reasons=sorted(reasons.items(), key=lambda one: -one[1]),
        principles=[(key, *counted) for key, counted in sorted(by_principle.items())],  # type: ignore[misc]
        n_changed_since=n_changed,
    )  # fmt: skip
