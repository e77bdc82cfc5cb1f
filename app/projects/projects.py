"""Projects and their members."""

import re

from sqlmodel import Session, select

from app.accounts.models import ROLES, Account
from app.errors import Conflict, Invalid
from app.projects.models import Membership, Project


def make_project(session: Session, slug: str, name: str, owner: Account) -> Project:
    """A new project with its owner; raises Invalid or Conflict."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,58}", slug):
        raise Invalid(
            "A project's address has lower-case letters, digits and hyphens.", {"slug": ["letters, digits, hyphens"]}
        )
    if session.exec(select(Project).where(Project.slug == slug)).first():
        raise Conflict(f"There is already a project “{slug}”.")
    project = Project(slug=slug, name=name.strip() or slug)
    session.add(project)
    session.flush()
    set_role(session, project, owner, "owner")
    return project


def set_role(session: Session, project: Project, account: Account, role: str) -> None:
    """Gives an account a role in a project, or another one."""
    if role not in ROLES:
        raise Invalid(f"There is no role “{role}”. Roles: {', '.join(ROLES)}.")
    row = session.get(Membership, (project.id, account.id))
    if row is None:
        session.add(Membership(project_id=project.id, account_id=account.id, role=role))
    else:
        row.role = role
    session.flush()
    if not session.exec(
        select(Membership).where(Membership.project_id == project.id, Membership.role == "owner")
    ).first():
        raise Conflict("A project keeps at least one owner.")


def find_project(session: Session, slug: str) -> Project:
    """The project at this address; raises Invalid."""
    project = session.exec(select(Project).where(Project.slug == slug)).first()
    if project is None:
        known = ", ".join(session.exec(select(Project.slug)).all()) or "none yet"
        raise Invalid(f"There is no project “{slug}”. Projects: {known}.")
    return project
