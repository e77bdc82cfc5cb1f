"""Commands of an operator: accounts, projects, tokens, the database's schema."""

import argparse
import sys

from sqlmodel import Session, col, select

from app.accounts.logins import LINK_MINUTES, make_account, make_login
from app.accounts.models import Account, Login
from app.cli.output import say, show, show_one
from app.config import settings
from app.constitutions.constitutions import ensure_shipped
from app.db import check_schema, get, now, reading, transaction
from app.db import upgrade as upgrade_schema
from app.errors import Invalid
from app.projects.models import Membership, Project
from app.projects.projects import find_project, make_project, set_role


def find_named(session: Session, name: str) -> Account:
    """The account with this name; raises Invalid."""
    account = session.exec(select(Account).where(Account.name == name.strip())).first()
    if account is None:
        raise Invalid(f"There is no account “{name}”. Make one with: preflab user add {name}")
    return account


def choose_project(session: Session, slug: str) -> Project:
    """The project with this address, or the only one; raises Invalid."""
    check_schema()
    if slug:
        return find_project(session, slug)
    projects = session.exec(select(Project).limit(2)).all()
    if len(projects) == 1:
        return projects[0]
    if not projects:
        raise Invalid("There is no project yet. Make one with: preflab project add SLUG --owner NAME")
    raise Invalid("There are several projects: say which with --project SLUG (preflab project list).")


def login_url(session: Session, account: Account) -> str:
    """A fresh one-time link."""
    return f"{settings().url}/login/{make_login(session, account, 'link')}"


def make_first_project(session: Session, slug: str, name: str) -> tuple[Project, str]:
    """The project with this address and its owner `owner`, made if missing; and a fresh login link for that owner."""
    owner = session.exec(select(Account).where(Account.name == "owner")).first() or make_account(session, "owner")
    project = session.exec(select(Project).where(Project.slug == slug)).first()
    if project is None:
        project = make_project(session, slug, name, owner)
        ensure_shipped(session, project.id)
    else:
        set_role(session, project, owner, "owner")
    return project, login_url(session, owner)


def add_user(args: argparse.Namespace) -> None:
    check_schema()
    password = sys.stdin.readline().rstrip("\n") if args.password_stdin else None
    with transaction() as session:
        account = make_account(session, args.name, password)
        url = login_url(session, account)
    row = {"id": account.id, "name": account.name, "login_url": url}
    show_one(args, row, f"Account {account.name}. To sign in within {LINK_MINUTES} minutes, once: {url}")


def link_user(args: argparse.Namespace) -> None:
    check_schema()
    with transaction() as session:
        account = find_named(session, args.name)
        url = login_url(session, account)
    show_one(args, {"name": account.name, "login_url": url}, f"Within {LINK_MINUTES} minutes, once: {url}")


def list_users(args: argparse.Namespace) -> None:
    check_schema()
    with reading() as session:
        query = (
            select(Account, Project.slug, Membership.role)
            .join(Membership, col(Membership.account_id) == col(Account.id), isouter=True)
            .join(Project, col(Project.id) == col(Membership.project_id), isouter=True)
            .order_by(Account.name, Project.slug)
        )
        rows = [
            {
                "id": account.id,
                "name": account.name,
                "project": slug,
                "role": role,
                "is_simulated": account.is_simulated,
            }
            for account, slug, role in session.exec(query)
        ]
    show(args, rows, ["id", "name", "project", "role"], "There is no account yet: preflab user add NAME")


def set_user_role(args: argparse.Namespace) -> None:
    with transaction() as session:
        project = choose_project(session, args.project)
        set_role(session, project, find_named(session, args.name), args.role)
    say(f"{args.name} is {args.role} of {project.slug}.")


def add_project(args: argparse.Namespace) -> None:
    check_schema()
    with transaction() as session:
        project = make_project(session, args.slug, args.name, find_named(session, args.owner))
        ensure_shipped(session, project.id)
    url = f"{settings().url}/p/{project.slug}"
    show_one(args, {**project.model_dump(), "url": url}, f"Project {project.slug}: {url}")


def list_projects(args: argparse.Namespace) -> None:
    check_schema()
    with reading() as session:
        rows = [project.model_dump() for project in session.exec(select(Project).order_by(Project.slug))]
    show(args, rows, ["slug", "name", "created_at"], "There is no project yet: preflab project add SLUG --owner NAME")


def add_token(args: argparse.Namespace) -> None:
    check_schema()
    with transaction() as session:
        account = find_named(session, args.account)
        secret = make_login(session, account, "token", args.label)
    show_one(args, {"account": account.name, "label": args.label, "token": secret}, secret)


def list_tokens(args: argparse.Namespace) -> None:
    check_schema()
    with reading() as session:
        query = select(Login, Account.name).join(Account, col(Account.id) == col(Login.account_id))
        query = query.where(Login.kind == "token", col(Login.revoked_at).is_(None)).order_by(col(Login.id))
        if args.account:
            query = query.where(Login.account_id == find_named(session, args.account).id)
        rows = [
            {"id": login.id, "account": name, "label": login.label, "created_at": login.created_at,
             "expires_at": login.expires_at}
            for login, name in session.exec(query)
        ]  # fmt: skip
    columns = ["id", "account", "label", "created_at", "expires_at"]
    show(args, rows, columns, "There is no token: preflab token add ACCOUNT")


def revoke_token(args: argparse.Namespace) -> None:
    check_schema()
    with transaction() as session:
        login = get(session, Login, args.id)
        if login.kind != "token":
            raise Invalid(f"Login {args.id} is no token. preflab token list shows the tokens.")
        login.revoked_at = login.revoked_at or now()
    say(f"Token {args.id} has ended.")


def upgrade(args: argparse.Namespace) -> None:
    upgrade_schema()
    say(f"The schema of {settings().database.rpartition('@')[2]} is up to date.")
