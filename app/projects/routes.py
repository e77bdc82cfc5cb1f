"""The list of projects, and a project's settings: members and roles."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session, select

from app.accounts.access import SignedIn
from app.accounts.models import ROLES, Account
from app.db import Db
from app.errors import AppError, NotFound
from app.html import html
from app.projects.access import Member, Owner, Viewer
from app.projects.models import Membership, Project
from app.projects.projects import make_project, set_role

router = APIRouter()


@router.get("/")
def list_projects(request: Request, account: SignedIn, session: Db, all: bool = False) -> Response:  # noqa: A002
    """The account's projects; with only one, straight there unless `all` is asked for. A grader begins at Grade."""
    rows = _projects_of(session, account)
    if len(rows) == 1 and not all:
        project, role = rows[0]
        return RedirectResponse(f"/p/{project.slug}{'/grade' if role == 'grader' else ''}", status_code=303)
    return html(request, "projects/list.html", title="Projects", rows=rows, account=account, error="", typed={})


def _projects_of(session: Session, account: Account) -> Sequence[tuple[Project, str]]:
    return session.exec(
        select(Project, Membership.role)
        .join(Membership, Membership.project_id == Project.id)  # type: ignore[arg-type]
        .where(Membership.account_id == account.id)
        .order_by(Project.name)
    ).all()


@router.post("/projects")
def add_project(
    request: Request,
    account: SignedIn,
    session: Db,
    slug: Annotated[str, Form(max_length=60)],
    name: Annotated[str, Form(max_length=120)] = "",
) -> Response:
    """Makes a project and goes there; what cannot be made comes back as it was typed."""
    try:
        with session.begin_nested():
            project = make_project(session, slug.strip().lower(), name, account)
    except AppError as error:
        rows, typed = _projects_of(session, account), {"slug": slug, "name": name}
        return html(
            request, "projects/list.html", error.status_code, title="Projects", rows=rows, account=account,
            error=error.message, typed=typed,
        )  # fmt: skip
    return RedirectResponse(f"/p/{project.slug}", status_code=303)


@router.get("/p/{project}/settings")
def show_settings(request: Request, member: Viewer, session: Db) -> Response:
    """Members and roles."""
    return _settings_page(request, member, session)


def _settings_page(
    request: Request, member: Member, session: Session, refused: AppError | None = None, **typed: str
) -> Response:
    members = session.exec(
        select(Account, Membership.role)
        .join(Membership, Membership.account_id == Account.id)  # type: ignore[arg-type]
        .where(Membership.project_id == member.project.id)
        .order_by(Account.name)
    ).all()
    return html(
        request, "projects/settings.html", refused.status_code if refused else 200, title="Settings", members=members,
        roles=ROLES, error=refused.message if refused else "", typed=typed,
    )  # fmt: skip


@router.post("/p/{project}/settings/members")
def change_member(
    request: Request, member: Owner, session: Db,
    name: Annotated[str, Form(max_length=80)], role: Annotated[str, Form(max_length=20)],
) -> Response:  # fmt: skip
    """Gives somebody a role; what cannot be given comes back as it was typed."""
    account = session.exec(select(Account).where(Account.name == name.strip())).first()
    try:
        if account is None:
            raise NotFound(f"There is no account “{name}”. An operator makes one with: preflab user add NAME")
        with session.begin_nested():
            set_role(session, member.project, account, role)
    except AppError as error:
        return _settings_page(request, member, session, error, name=name, role=role)
    return RedirectResponse(f"/p/{member.project.slug}/settings", status_code=303)
