"""Pages and API of constitutions: list, one version, editing, and two versions side by side."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from app.constitutions.constitutions import (
    PrincipleText,
    add_version,
    diff_versions,
    ensure_shipped,
    has_text,
    newest_version,
    read_lines,
    read_principles,
    save_version,
    text_sha256,
    write_lines,
)
from app.constitutions.models import Constitution
from app.constitutions.shipped import SHIPPED
from app.db import Db, get
from app.errors import AppError, Conflict, Invalid, NotFound
from app.html import html
from app.projects.access import Member, Researcher, Viewer
from app.tables import FORMATS, Column, Filter, Format, Table, respond

router = APIRouter()


def constitutions_table(member: Member) -> Table:
    """Every version of every constitution of the project."""
    root = f"/p/{member.project.slug}/constitutions"
    columns = [
        Column("id", Constitution.id, "Id", "number", is_shown=False),
        Column("name", Constitution.name, "Constitution", href=lambda row: f"{root}/{row['id']}"),
        Column("version", Constitution.version, "Version", "number"),
        Column("preface", Constitution.preface, "Preface", "long"),
        Column("frozen_at", Constitution.frozen_at, "Frozen", "when"),
        Column("created_at", Constitution.created_at, "Made", "when", is_shown=False),
    ]
    filters = [Filter("name", Constitution.name, "Name")]
    where = [Constitution.project_id == member.project.id]
    return Table("constitutions", columns, Constitution, Constitution.id, where, filters)


@router.get("/p/{project}/constitutions")
def list_constitutions(request: Request, member: Viewer, session: Db) -> Response:
    """Every version."""
    known = set(session.exec(select(Constitution.name).where(Constitution.project_id == member.project.id)))
    n_missing = sum(one.name not in known for one in SHIPPED)
    return respond(request, session, constitutions_table(member), "html", "constitutions/list.html",
                   title="Constitutions", n_missing=n_missing)  # fmt: skip


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/constitutions.{fmt}", name=f"download_constitutions_{fmt}")
    def download_constitutions(request: Request, member: Viewer, session: Db) -> Response:
        """Every version of every constitution."""
        return respond(request, session, constitutions_table(member), fmt, "constitutions/list.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


def project_constitution(session: Session, member: Member, key: int) -> Constitution:
    """A version of this project; raises NotFound."""
    row = get(session, Constitution, key)
    if row.project_id != member.project.id:
        raise NotFound(f"There is no constitution {key}.")
    return row


@router.post("/p/{project}/constitutions/shipped")
def add_shipped(member: Researcher, session: Db) -> Response:
    """Adds the shipped constitutions that are missing."""
    ensure_shipped(session, member.project.id)
    return RedirectResponse(f"/p/{member.project.slug}/constitutions", status_code=303)


@router.get("/p/{project}/constitutions/new")
def new_constitution(request: Request, member: Researcher, session: Db) -> Response:
    """An empty form."""
    return _form(request, None)


def _form(
    request: Request, row: Constitution | None, name: str = "", preface: str = "", lines: str = "",
    error: AppError | None = None, seen: str = "",
) -> Response:  # fmt: skip
    title = f"Edit {row.name}" if row else "A new constitution"
    return html(request, "constitutions/edit.html", error.status_code if error else 200, title=title, constitution=row,
                name=name, preface=preface, lines=lines, error=error.message if error else "", seen=seen)  # fmt: skip


@router.post("/p/{project}/constitutions/new")
def create_constitution(
    request: Request, member: Researcher, session: Db, principles: Annotated[str, Form(max_length=200_000)],
    name: Annotated[str, Form(max_length=120)], preface: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:  # fmt: skip
    """Stores version 1 under a new name."""
    try:
        lines, row = read_lines(principles), newest_version(session, member.project.id, name.strip())
        if row is None or row.version > 1 or not has_text(session, row, preface, lines):  # else pressed twice
            row = create(session, member, name, preface, lines)
    except (Invalid, Conflict) as error:
        return _form(request, None, name, preface, principles, error)
    return RedirectResponse(f"/p/{member.project.slug}/constitutions/{row.id}", status_code=303)


def create(session: Session, member: Member, name: str, preface: str, principles: list[PrincipleText]) -> Constitution:
    """A new constitution; raises Conflict when the name is taken."""
    if newest_version(session, member.project.id, name.strip()) is not None:
        raise Conflict(f"There is already a constitution “{name.strip()}”: edit it, or choose another name.")
    return add_version(session, member.project.id, name, preface, principles)


@router.get("/p/{project}/constitutions/{key:int}")
def show_constitution(request: Request, member: Viewer, session: Db, key: int) -> Response:
    """One version, and its others."""
    row = project_constitution(session, member, key)
    versions = session.exec(
        select(Constitution).where(Constitution.project_id == row.project_id, Constitution.name == row.name)
        .order_by(col(Constitution.version).desc())
    ).all()  # fmt: skip
    return html(request, "constitutions/show.html", title=f"{row.name}, version {row.version}", constitution=row,
                principles=read_principles(session, row.id), versions=versions, newest=versions[0].version)  # fmt: skip


@router.get("/p/{project}/constitutions/{key:int}.json")
def show_constitution_json(member: Viewer, session: Db, key: int) -> dict[str, Any]:
    """One version with its principles."""
    return as_json(session, project_constitution(session, member, key))


def as_json(session: Session, row: Constitution) -> dict[str, Any]:
    """A version as the API shows it."""
    principles = [vars(one) for one in read_principles(session, row.id)]
    return {**row.model_dump(mode="json", exclude={"project_id"}), "principles": principles}


@router.get("/p/{project}/constitutions/{key:int}/edit")
def edit_constitution(request: Request, member: Researcher, session: Db, key: int) -> Response:
    """The form with this version's text."""
    row = project_constitution(session, member, key)
    lines = write_lines(read_principles(session, row.id))
    return _form(request, row, row.name, row.preface, lines, seen=text_sha256(session, row))


@router.post("/p/{project}/constitutions/{key:int}/edit")
def save_constitution(
    request: Request, member: Researcher, session: Db, key: int,
    principles: Annotated[str, Form(max_length=200_000)], preface: Annotated[str, Form(max_length=20_000)] = "",
    seen: Annotated[str, Form(max_length=64)] = "",
) -> Response:  # fmt: skip
    """Saves in place, or as the next version where labels rest on this one. `seen`: the text the form was opened with.

    Where somebody has saved another text meanwhile, it is not written over before this person has been told.
    """
    row = project_constitution(session, member, key)
    stands = text_sha256(session, row)
    try:
        lines = read_lines(principles)
        if row.frozen_at is None and seen not in {"", stands} and not has_text(session, row, preface, lines):
            raise Conflict(
                "Somebody has saved another text since you opened this form, which stands on the constitution’s page. "
                "What you typed is below: save again to put it in its place."
            )
        saved, _ = save_version(session, row, preface, lines)
    except (Invalid, Conflict) as error:
        return _form(request, row, row.name, preface, principles, error, seen=stands)
    return RedirectResponse(f"/p/{member.project.slug}/constitutions/{saved.id}", status_code=303)


@router.get("/p/{project}/constitutions/{key:int}/diff/{other:int}")
def diff_constitutions(request: Request, member: Viewer, session: Db, key: int, other: int) -> Response:
    """Two versions side by side, the older one left."""
    pair = [project_constitution(session, member, one) for one in (key, other)]
    left, right = sorted(pair, key=lambda one: one.id)
    sides = [(one.preface, read_principles(session, one.id)) for one in (left, right)]
    return html(request, "constitutions/diff.html", title=f"{left.name}: versions compared", left=left, right=right,
                rows=diff_versions(sides[0], sides[1]))  # fmt: skip


class PrincipleBody(BaseModel):
    """One principle, as the API takes it."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(..., max_length=60)
    body: str = Field(..., max_length=20_000)
    weight: float = 1.0


class ConstitutionBody(BaseModel):
    """A constitution, as the API takes it."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field("", max_length=120)
    preface: str = Field("", max_length=20_000)
    principles: list[PrincipleBody]

    def texts(self) -> list[PrincipleText]:
        """The principles as they are stored."""
        return [PrincipleText(one.key, one.body.strip(), one.weight) for one in self.principles]


@router.post("/api/v1/p/{project}/constitutions", status_code=201)
def create_constitution_api(member: Researcher, session: Db, body: ConstitutionBody) -> dict[str, Any]:
    """Stores version 1 under a new name."""
    return as_json(session, create(session, member, body.name, body.preface, body.texts()))


@router.post("/api/v1/p/{project}/constitutions/{key:int}")
def save_constitution_api(member: Researcher, session: Db, key: int, body: ConstitutionBody) -> dict[str, Any]:
    """Saves an edit: in place, or as the next version where labels rest on this one."""
    row = project_constitution(session, member, key)
    saved, is_new = save_version(session, row, body.preface, body.texts())
    return {**as_json(session, saved), "is_new_version": is_new}
