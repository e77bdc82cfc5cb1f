"""What the pages of pairs show: tables, one pair with its texts, and what the arms of a run have written."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.checkpoints.models import Arm
from app.db import get
from app.errors import NotFound
from app.pairs.models import Completion, Pair, PairSet
from app.projects.access import Member
from app.prompts.models import SPLITS, Prompt, PromptSet
from app.runs.models import Run
from app.tables import Column, Filter, Table

STOP_REASONS = ("stop", "length", "imported", "refused")


def project_pair_set(session: Session, member: Member, set_id: int) -> PairSet:
    """A pair set of this project; raises NotFound."""
    row = get(session, PairSet, set_id)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no pair set {set_id}.")
    return row


def pair_sets_table(member: Member) -> Table:
    """The project's pair sets; one that is still being imported is not yet there."""
    root = f"/p/{member.project.slug}"
    columns = [
        Column("id", PairSet.id, "Set", "number", is_shown=False),
        Column("name", PairSet.name, "Name", href=lambda row: f"{root}/pairs/{row['id']}", is_sortable=True),
        Column("n", PairSet.n, "Pairs", "number", is_sortable=True),
        Column("prompts", PromptSet.name, "Prompts", href=lambda row: f"{root}/prompts/{row['prompt_set_id']}"),
        Column("prompt_set_id", PairSet.prompt_set_id, is_shown=False),
        Column("labels_version", PairSet.labels_version, "Label changes", "number"),
        Column("run_id", PairSet.run_id, "Run", "number", lambda row: f"{root}/runs/{row['run_id']}"),
        Column("created_at", PairSet.created_at, "Made", "when", is_sortable=True),
    ]
    source = sa.join(PairSet, PromptSet, col(PromptSet.id) == col(PairSet.prompt_set_id))
    where = [PairSet.project_id == member.project.id, col(PairSet.archived_at).is_(None), PromptSet.state == "ready"]
    return Table("pair sets", columns, source, PairSet.id, where)


def pairs_table(row: PairSet) -> Table:
    """One set's pairs with their texts."""
    a, b, arm_a, arm_b = aliased(Completion), aliased(Completion), aliased(Arm), aliased(Arm)
    columns = [
        Column("id", Pair.id, "Pair", "number"),
        Column("position", Pair.position, "No.", "number"),
        Column("prompt_id", Pair.prompt_id, is_shown=False),
        Column("prompt", Prompt.messages, "Prompt"),
        Column("split", Prompt.split, "Split"),
        Column("category", Prompt.category, "Category"),
        Column("a", a.text, "a"),
        Column("b", b.text, "b"),
        Column("arm_a", arm_a.name, "Arm of a"),
        Column("arm_b", arm_b.name, "Arm of b"),
    ]
    source = sa.join(Pair, Prompt, col(Prompt.id) == col(Pair.prompt_id))
    source = source.join(a, col(a.id) == col(Pair.a_id)).join(b, col(b.id) == col(Pair.b_id))
    source = source.join(arm_a, col(arm_a.id) == col(a.arm_id)).join(arm_b, col(arm_b.id) == col(b.arm_id))
    # found from their prompts: said as a range, SQLite does not begin with all the pairs of the set
    of_set = (Prompt.set_id == row.prompt_set_id, col(Pair.pair_set_id).between(row.id, row.id))
    by_prompt: dict[str, Any] = {"order": Prompt.position, "where": of_set}
    filters = [
        Filter("split", Prompt.split, "Split", SPLITS, **by_prompt),
        Filter("category", Prompt.category, "Category", **by_prompt),
    ]
    return Table("pairs", columns, source, Pair.position, [Pair.pair_set_id == row.id], filters, is_newest_first=False)


def completions_table(member: Member) -> Table:
    """What the project's arms have written."""
    root = f"/p/{member.project.slug}"
    columns = [
        Column("id", Completion.id, "Completion", "number"),
        Column("arm", Arm.name, "Arm", href=lambda row: f"{root}/checkpoints/arms/{row['arm_id']}"),
        Column("arm_id", Completion.arm_id, is_shown=False),
        Column("prompt_id", Completion.prompt_id, "Prompt", "number",
               lambda row: f"{root}/checkpoints/compare?prompt={row['prompt_id']}"),
        Column("sample", Completion.sample, "Sample", "number"),
        Column("text", Completion.text, "Text", "long"),
        Column("n_tokens", Completion.n_tokens, "Tokens", "number"),
        Column("stop_reason", Completion.stop_reason, "Ended by"),
        Column("is_prompt_truncated", sa.case((col(Completion.is_prompt_truncated), "truncated"), else_=""), "Cut"),
        Column("run_id", Completion.run_id, "Run", "number", lambda row: f"{root}/runs/{row['run_id']}"),
    ]  # fmt: skip
    filters = [
        Filter("arm", Completion.arm_id, "Arm's number", cast=int, order=Completion.prompt_id),
        Filter("run", Completion.run_id, "Run", cast=int),
        Filter("ended", Completion.stop_reason, "Ended by", STOP_REASONS, order=Completion.id),
    ]  # fmt: skip
    source = sa.join(Completion, Arm, col(Arm.id) == col(Completion.arm_id))
    where = [col(Completion.run_id).in_(_writing_runs(member))]
    return Table("completions", columns, source, Completion.id, where, filters, order=Completion.run_id)


def _writing_runs(member: Member) -> Any:
    """The project's runs that write completions to be looked at."""
    return sa.select(col(Run.id)).where(col(Run.project_id) == member.project.id, col(Run.kind) != "card")


def probing_runs(member: Member) -> Any:
    """The runs whose completions are probes of a Judge Card rather than anybody's writing."""
    return sa.select(col(Run.id)).where(col(Run.project_id) == member.project.id, col(Run.kind) == "card")


@dataclass(frozen=True)
class PairShown:
    """A pair with everything its page shows."""

    prompt: Prompt
    a: Completion
    b: Completion
    arm_a: Arm
    arm_b: Arm


def read_pair_shown(session: Session, pair: Pair) -> PairShown:
    """A pair's texts and the arms that wrote them."""
    a, b = get(session, Completion, pair.a_id), get(session, Completion, pair.b_id)
    return PairShown(
        get(session, Prompt, pair.prompt_id), a, b, get(session, Arm, a.arm_id), get(session, Arm, b.arm_id)
    )


def summarise_completions(session: Session, run_id: int) -> list[dict[str, Any]]:
    """For each arm of a run: completions, mean tokens, and the shares that ran out of tokens or lost their prompt."""
    text = col(Completion.text)
    query = (
        sa.select(
            col(Arm.id), col(Arm.name), col(Arm.method), sa.func.count().label("n"),
            sa.func.avg(col(Completion.n_tokens)).label("tokens"),
            sa.func.sum(sa.case((col(Completion.stop_reason) == "length", 1), else_=0)).label("n_cut"),
            sa.func.sum(sa.case((col(Completion.is_prompt_truncated), 1), else_=0)).label("n_truncated"),
            sa.func.sum(sa.case((text == "", 1), else_=0)).label("n_empty"),
        )
        .join(Completion, col(Completion.arm_id) == col(Arm.id))
        .where(col(Completion.run_id) == run_id)
        .group_by(col(Arm.id), col(Arm.name), col(Arm.method)).order_by(col(Arm.id))
    )  # fmt: skip
    return [dict(row._mapping) for row in session.execute(query)]
