"""The policies that need no project: anybody, and anybody signed in. projects.access adds the roles."""

from typing import Annotated, Any

from fastapi import Depends, Request

from app.accounts.logins import find_account
from app.accounts.models import Account
from app.db import Db
from app.errors import NotSignedIn


class Policy:
    """A route's dependency that says who may use it. Every route has one, or the app does not start."""

    name = "public"

    def __call__(self, request: Request, session: Db) -> Any:
        request.state.session = session


class SignedInPolicy(Policy):
    """Anybody with an account."""

    name = "signed in"

    def __call__(self, request: Request, session: Db) -> Account:
        request.state.session = session
        account = find_account(session, request)
        if account is None:
            raise NotSignedIn("Please sign in.")
        return account


Public = Annotated[None, Depends(Policy(), scope="function")]
SignedIn = Annotated[Account, Depends(SignedInPolicy(), scope="function")]
