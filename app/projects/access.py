"""Who may do what: every route declares a policy by the dependency it takes; an undeclared route stops start-up."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from fastapi.routing import iter_route_contexts
from sqlmodel import Session, col
from starlette.routing import Mount

from app.accounts.access import Policy, SignedInPolicy
from app.accounts.logins import IS_GIVEN_LOGIN, given_login
from app.accounts.models import Account, Login
from app.db import Db
from app.errors import Forbidden, NotFound, NotSignedIn
from app.projects.models import Membership, Project

# A grader sees only what they grade, so that no page tells them which model wrote what: hence no plain ladder of roles.
ALLOWED = {
    "viewer": {"viewer", "researcher", "owner"},
    "grader": {"grader", "researcher", "owner"},
    "researcher": {"researcher", "owner"},
    "owner": {"owner"},
}


@dataclass(frozen=True)
class Member:
    """Somebody signed in, in one project."""

    account: Account
    project: Project
    role: str

    def may(self, role: str) -> bool:
        """Whether this member's role allows what `role` allows."""
        return self.role in ALLOWED[role]


class RolePolicy(SignedInPolicy):
    """A role in the project that the URL names."""

    def __init__(self, role: str) -> None:
        self.role = self.name = role

    def __call__(self, request: Request, session: Db) -> Any:
        request.state.session = session
        member = find_member(session, request)
        if not member.may(self.role):
            raise Forbidden(f"Your role here is {member.role}; this needs {self.role}. Ask an owner of the project.")
        request.state.member = member
        return member


# who sent a request, and the project it names if they belong to it: one statement, built once
_SENDER = (
    sa.select(Account, Project, col(Membership.role))
    .join(Login, col(Login.account_id) == col(Account.id))
    .outerjoin(Project, col(Project.slug) == sa.bindparam("slug"))
    .outerjoin(
        Membership,
        sa.and_(col(Membership.project_id) == col(Project.id), col(Membership.account_id) == col(Account.id)),
    )
    .where(IS_GIVEN_LOGIN)
)


def find_member(session: Session, request: Request) -> Member:
    """The sender's membership of the project in the address.

    Raises NotSignedIn, and NotFound for projects that the sender does not belong to.
    """
    slug = request.path_params["project"]
    found = session.execute(_SENDER, {**given_login(request), "slug": slug}).first()
    if found is None:
        raise NotSignedIn("Please sign in.")
    if found.role is None:
        raise NotFound(f"There is no project “{slug[:60]}”.")
    return Member(found.Account, found.Project, found.role)


Viewer = Annotated[Member, Depends(RolePolicy("viewer"), scope="function")]
Grader = Annotated[Member, Depends(RolePolicy("grader"), scope="function")]
Researcher = Annotated[Member, Depends(RolePolicy("researcher"), scope="function")]
Owner = Annotated[Member, Depends(RolePolicy("owner"), scope="function")]


def policy_of(dependant: Any) -> Policy | None:
    """The policy among a route's dependencies."""
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Policy):
            return dependency.call
    return None


def declared_policies(app: FastAPI) -> Iterable[tuple[str, str, Policy | None]]:
    """(method, path, policy) of every route of the app."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount):
            continue  # static files
        dependant = getattr(route, "dependant", None)
        for method in sorted(route.methods or {"GET"}):
            yield method, route.path or "", policy_of(dependant) if dependant else None


def check_policies(app: FastAPI) -> None:
    """Raises RuntimeError if a route declares no policy."""
    bare = [f"{method} {path}" for method, path, policy in declared_policies(app) if policy is None]
    if bare:
        raise RuntimeError(f"These routes declare no policy: {', '.join(bare)}")
