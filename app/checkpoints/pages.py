"""What the pages of checkpoints show: tables, and a checkpoint's lineage up and down."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, SQLModel, col, select

from app.checkpoints.models import METHODS, Arm, Checkpoint, Endpoint
from app.db import get
from app.errors import NotFound
from app.projects.access import Member
from app.runs.models import Run, RunIo
from app.tables import Column, Filter, Table

MOST_RELATIVES = 200


def project_row(session: Session, member: Member, kind: Any, key: int) -> Any:
    """A checkpoint, endpoint or arm of this project; raises NotFound."""
    row = get(session, kind, key)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no {kind.__tablename__} {key}.")
    return row


def checkpoints_table(member: Member) -> Table:
    """The project's checkpoints."""
    root = f"/p/{member.project.slug}"
    parent: Any = aliased(Checkpoint)
    columns = [
        Column("id", Checkpoint.id, "No.", "number"),
        Column("name", Checkpoint.name, "Name", href=lambda row: f"{root}/checkpoints/{row['id']}", is_sortable=True),
        Column("method", Checkpoint.method, "Made by"),
        Column("role", Checkpoint.role, "Role"),
        Column("weights", Checkpoint.weights, "Weights"),
        Column("n_parameters", Checkpoint.n_parameters, "Parameters", "number", is_sortable=True),
        Column("parent", parent.name, "Started from",
               href=lambda row: f"{root}/checkpoints/{row['parent_id']}" if row["parent_id"] else ""),
        Column("parent_id", Checkpoint.parent_id, is_shown=False),
        Column("base_id", Checkpoint.base_id, is_shown=False),
        Column("seed", Checkpoint.seed, "Seed", "number"),
        Column("step", Checkpoint.step, "Step", "number", is_shown=False),
        Column("run_id", Checkpoint.run_id, "Run", "number",
               lambda row: f"{root}/runs/{row['run_id']}" if row["run_id"] else ""),
        Column("source", Checkpoint.source, is_shown=False),
        Column("manifest_sha256", Checkpoint.manifest_sha256, is_shown=False),
        Column("facts", Checkpoint.facts, is_shown=False),
        Column("created_at", Checkpoint.created_at, "Made", "when", is_sortable=True),
    ]  # fmt: skip
    filters = [
        Filter("method", Checkpoint.method, "Made by", METHODS),
        Filter("role", Checkpoint.role, "Role", ("policy", "reward")),
    ]
    source = sa.outerjoin(Checkpoint, parent, parent.id == col(Checkpoint.parent_id))
    where = [Checkpoint.project_id == member.project.id, col(Checkpoint.archived_at).is_(None)]
    return Table("checkpoints", columns, source, Checkpoint.id, where, filters)


def endpoints_table(member: Member) -> Table:
    """The project's endpoints, without their keys."""
    root = f"/p/{member.project.slug}/checkpoints/endpoints"
    has_key = sa.case((col(Endpoint.key_ciphertext).is_(None), ""), else_="…" + col(Endpoint.key_last4))
    columns = [
        Column("id", Endpoint.id, "No.", "number"),
        Column("name", Endpoint.name, "Name", href=lambda row: f"{root}/{row['id']}", is_sortable=True),
        Column("origin", Endpoint.origin, "Base URL"),
        Column("model", Endpoint.model, "Model"),
        Column("key", has_key, "Key"),
        Column("usd_per_million_in", Endpoint.usd_per_million_in, "$ per million in", "number"),
        Column("usd_per_million_out", Endpoint.usd_per_million_out, "$ per million out", "number"),
        Column("requests_per_minute", Endpoint.requests_per_minute, is_shown=False),
        Column("tokens_per_minute", Endpoint.tokens_per_minute, is_shown=False),
        Column("extra_body", Endpoint.extra_body, is_shown=False),
        Column("mode", Endpoint.mode, is_shown=False),
        Column("created_at", Endpoint.created_at, "Added", "when"),
    ]
    where = [Endpoint.project_id == member.project.id, col(Endpoint.archived_at).is_(None)]
    return Table("endpoints", columns, Endpoint, Endpoint.id, where)


def arms_table(member: Member) -> Table:
    """The project's arms."""
    root = f"/p/{member.project.slug}/checkpoints"
    columns = [
        Column("id", Arm.id, "No.", "number"),
        Column("name", Arm.name, "Arm", href=lambda row: f"{root}/arms/{row['id']}", is_sortable=True),
        Column("method", Arm.method, "Method"),
        Column("kind", Arm.kind, "Kind"),
        Column("checkpoint_id", Arm.checkpoint_id, "Checkpoint", "number",
               lambda row: f"{root}/{row['checkpoint_id']}" if row["checkpoint_id"] else ""),
        Column("endpoint_id", Arm.endpoint_id, "Endpoint", "number",
               lambda row: f"{root}/endpoints/{row['endpoint_id']}" if row["endpoint_id"] else ""),
        Column("seed", Arm.seed, "Seed", "number"),
        Column("preamble", Arm.preamble, is_shown=False),
        Column("decoding", Arm.decoding, is_shown=False),
        Column("sha256", Arm.sha256, is_shown=False),
        Column("created_at", Arm.created_at, "Made", "when"),
    ]  # fmt: skip
    filters = [
        Filter("kind", Arm.kind, "Kind", ("checkpoint", "endpoint", "imported")),
        Filter("method", Arm.method, "Method"),
    ]
    return Table("arms", columns, Arm, Arm.id, [Arm.project_id == member.project.id], filters)


@dataclass(frozen=True)
class Relative:
    """A checkpoint above or below another one, and how many trainings lie between."""

    row: Checkpoint
    distance: int


def ancestors(session: Session, checkpoint: Checkpoint) -> list[Relative]:
    """What this one was trained from, the farthest first."""
    return list(reversed(_relatives(session, checkpoint.id, is_up=True)))


def descendants(session: Session, checkpoint: Checkpoint) -> list[Relative]:
    """What was trained from this one, the nearest first."""
    return _relatives(session, checkpoint.id, is_up=False)


def _relatives(session: Session, checkpoint_id: int, *, is_up: bool) -> list[Relative]:
    first: Any = sa.select(col(Checkpoint.id).label("id"), sa.literal(0).label("distance"))
    first = first.where(col(Checkpoint.id) == checkpoint_id)
    tree = first.cte("tree", recursive=True)
    here: Any = aliased(Checkpoint)
    if is_up:
        step = (
            sa.select(here.parent_id, tree.c.distance + 1)
            .join(tree, here.id == tree.c.id)
            .where(here.parent_id.is_not(None))
        )
    else:
        step = sa.select(here.id, tree.c.distance + 1).join(tree, here.parent_id == tree.c.id)
    tree = tree.union(step.where(tree.c.distance < 50))
    query = (
        sa.select(Checkpoint, tree.c.distance).join(tree, tree.c.id == col(Checkpoint.id))
        .where(tree.c.distance > 0).order_by(tree.c.distance, col(Checkpoint.id)).limit(MOST_RELATIVES)
    )  # fmt: skip
    return [Relative(row, distance) for row, distance in session.execute(query)]


def uses_of(session: Session, noun: str, key: int) -> list[Run]:
    """Runs that read this row, the newest first."""
    read = select(RunIo.run_id).where(RunIo.noun == noun, RunIo.ref_id == key, col(RunIo.is_output).is_(False))
    return list(session.exec(select(Run).where(col(Run.id).in_(read)).order_by(col(Run.id).desc()).limit(50)))


def read_by(session: Session, run_id: int | None) -> list[tuple[str, int, str]]:
    """(noun, id, name) of what the run that made a checkpoint read, other than checkpoints."""
    found = []
    for one in session.exec(select(RunIo).where(RunIo.run_id == (run_id or 0), col(RunIo.is_output).is_(False))):
        table = SQLModel.metadata.tables[one.noun]
        name = session.execute(sa.select(table.c.name).where(table.c.id == one.ref_id)).scalar()
        if one.noun != "checkpoint":
            found.append((one.noun, one.ref_id, str(name or "untitled")))
    return found


def count_rows(session: Session, table: str, **where: int) -> int:
    """Rows of a later slice's table that point here."""
    found = SQLModel.metadata.tables[table]
    query = sa.select(sa.func.count()).select_from(found)
    for name, value in where.items():
        query = query.where(found.c[name] == value)
    return int(session.execute(query).scalar_one())
