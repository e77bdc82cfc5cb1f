"""Signing in and out, one's own API tokens, and whether the app is well."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session, col, select

from app.accounts.access import Public, SignedIn
from app.accounts.logins import (
    COOKIE,
    SESSION_DAYS,
    check_pace,
    check_password,
    find_login,
    make_login,
    note_failure,
    revoke,
    use_link,
)
from app.accounts.models import Account, Login
from app.config import settings
from app.db import Db, now
from app.errors import NotFound, NotSignedIn, TooMany
from app.html import html

router = APIRouter()


@router.get("/health")
def health(nobody: Public, session: Db) -> dict[str, str]:
    """For load balancers and compose: the database answers."""
    session.exec(select(Account.id).limit(1)).first()
    return {"status": "ok"}


@router.get("/login")
def show_login(request: Request, nobody: Public, there: Annotated[str, Query(alias="next")] = "/") -> Response:
    """The sign-in page."""
    return html(request, "accounts/login.html", title="Sign in", next=there, error="", name="")


@router.post("/login")
def log_in(
    request: Request, nobody: Public, session: Db, name: Annotated[str, Form(max_length=80)],
    password: Annotated[str, Form(max_length=200)], there: Annotated[str, Form(alias="next", max_length=2000)] = "/",
) -> Response:  # fmt: skip
    """Signs in with a name and password."""
    address = request.client.host if request.client else ""
    try:
        check_pace(session, name, address)
        account = check_password(session, name, password)
    except (NotSignedIn, TooMany) as error:
        if isinstance(error, NotSignedIn):
            note_failure(session, name, address)
        return html(
            request,
            "accounts/login.html",
            error.status_code,
            title="Sign in",
            next=there,
            error=error.message,
            name=name,
        )
    return _signed_in(session, account, there)


@router.get("/login/{secret}")
def show_link(request: Request, nobody: Public, secret: str) -> Response:
    """A one-time link asks for one press, so that a link preview cannot use it up."""
    return html(request, "accounts/link.html", title="Sign in", secret=secret)


@router.post("/login/{secret}")
def log_in_by_link(nobody: Public, session: Db, secret: str) -> Response:
    """Uses a one-time link up."""
    return _signed_in(session, use_link(session, secret), "/")


def _signed_in(session: Session, account: Account, there: str) -> Response:
    is_local = there.startswith("/") and not there.startswith(("//", "/\\"))
    response = RedirectResponse(there if is_local else "/", status_code=303)
    response.set_cookie(
        COOKIE, make_login(session, account, "session"), max_age=SESSION_DAYS * 86400, httponly=True, samesite="lax",
        secure=settings().is_cookie_secure,
    )  # fmt: skip
    return response


@router.post("/logout")
def log_out(request: Request, nobody: Public, session: Db) -> Response:
    """Ends this session."""
    login = find_login(session, request.cookies.get(COOKIE, ""), "session")
    if login is not None:
        login.revoked_at = now()
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(COOKIE)
    return response


@router.get("/account")
def show_account(request: Request, account: SignedIn, session: Db) -> Response:
    """One's API tokens and sessions."""
    return _account_page(request, session, account)


def _account_page(request: Request, session: Session, account: Account, secret: str = "") -> Response:
    tokens = session.exec(
        select(Login)
        .where(Login.account_id == account.id, Login.kind == "token", col(Login.revoked_at).is_(None))
        .order_by(col(Login.id).desc())
    ).all()
    return html(request, "accounts/account.html", title="Account", account=account, tokens=tokens, secret=secret)


@router.post("/account/tokens")
def add_token(
    request: Request, account: SignedIn, session: Db, label: Annotated[str, Form(max_length=120)]
) -> Response:
    """Makes an API token and shows it once."""
    secret = make_login(session, account, "token", label)
    session.flush()
    return _account_page(request, session, account, secret)


@router.post("/account/tokens/{login}/revoke")
def revoke_token(account: SignedIn, session: Db, login: int) -> Response:
    """Ends one token."""
    row = session.get(Login, login)
    if row is None or row.account_id != account.id or row.kind != "token":
        raise NotFound("There is no such token.")
    row.revoked_at = now()
    return RedirectResponse("/account", status_code=303)


@router.post("/account/sessions/revoke")
def revoke_sessions(account: SignedIn, session: Db) -> Response:
    """Signs out everywhere."""
    revoke(session, account, "session", "link")
    return RedirectResponse("/login", status_code=303)
