"""The list of projects, and a project's settings: members and roles."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import select

from app.accounts.access import SignedIn
from app.accounts.models import ROLES, Account
from app.db import Db
from app.errors import NotFound
from app.html import html
from app.projects.access import Owner, Viewer
from app.projects.models import Membership, Project
from app.projects.projects import make_project, set_role

router = APIRouter()


@router.get("/")
def list_projects(request: Request, account: SignedIn, session: Db, all: bool = False) -> Response:  # noqa: A002
    """The account's projects; with only one, straight there unless `all` is asked for. A grader begins at Grade."""
    rows = session.exec(
        select(Project, Membership.role)
        .join(Membership, Membership.project_id == Project.id)  # type: ignore[arg-type]
        .where(Membership.account_id == account.id)
        .order_by(Project.name)
    ).all()
    if len(rows) == 1 and not all:
        project, role = rows[0]
        return RedirectResponse(f"/p/{project.slug}{'/grade' if role == 'grader' else ''}", status_code=303)
    return html(request, "projects/list.html", title="Projects", rows=rows, account=account)


@router.post("/projects")
def add_project(
    account: SignedIn,
    session: Db,
    slug: Annotated[str, Form(max_length=60)],
    name: Annotated[str, Form(max_length=120)] = "",
) -> Response:
    """Makes a project and goes there."""
    project = make_project(session, slug.strip().lower(), name, account)
    return RedirectResponse(f"/p/{project.slug}", status_code=303)


@router.get("/p/{project}/settings")
def show_settings(request: Request, member: Viewer, session: Db) -> Response:
    """Members and roles."""
    members = session.exec(
        select(Account, Membership.role)
        .join(Membership, Membership.account_id == Account.id)  # type: ignore[arg-type]
        .where(Membership.project_id == member.project.id)
        .order_by(Account.name)
    ).all()
    return html(request, "projects/settings.html", title="Settings", members=members, roles=ROLES)


@router.post("/p/{project}/settings/members")
def change_member(
    member: Owner, session: Db, name: Annotated[str, Form(max_length=80)], role: Annotated[str, Form(max_length=20)]
) -> Response:
    """Gives somebody a role."""
    account = session.exec(select(Account).where(Account.name == name.strip())).first()
    if account is None:
        raise NotFound(f"There is no account “{name}”. An operator makes one with: preflab user add NAME")
    set_role(session, member.project, account, role)
    return RedirectResponse(f"/p/{member.project.slug}/settings", status_code=303)
