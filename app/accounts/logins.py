"""Passwords, sessions, one-time links and API tokens. Only hashes of secrets are stored."""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from fastapi import Request
from pwdlib import PasswordHash
from sqlmodel import Session, col, select

from app.accounts.models import Account, Login, LoginFailure
from app.db import get, now
from app.errors import Conflict, Invalid, NotSignedIn, TooMany

COOKIE = "preflab_session"
SESSION_DAYS = 30
LINK_MINUTES = 60
TOKEN_DAYS = 365
MIN_PASSWORD = 10
FAILURE_MINUTES = 5  # wrong passwords count for so long
MOST_FAILURES = 10  # for one name
MOST_FROM_ADDRESS = 50  # a whole laboratory may share one

hasher = PasswordHash.recommended()


def hash_secret(secret: str) -> str:
    """What is stored of a session's, link's or token's secret (they are random, so a plain hash will do)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_account(session: Session, name: str, password: str | None = None, *, is_simulated: bool = False) -> Account:
    """A new account; raises Invalid or Conflict."""
    name = name.strip()
    if not name or len(name) > 80:
        raise Invalid("A name has 1 to 80 characters.", {"name": ["1 to 80 characters"]})
    if password is not None and len(password) < MIN_PASSWORD:
        raise Invalid(f"A password has at least {MIN_PASSWORD} characters.", {"password": ["too short"]})
    if session.exec(select(Account).where(Account.name == name)).first():
        raise Conflict(f"There is already an account “{name}”.")
    account = Account(name=name, password_hash=hasher.hash(password) if password else None, is_simulated=is_simulated)
    session.add(account)
    session.flush()
    return account


def make_login(session: Session, account: Account, kind: str, label: str = "") -> str:
    """Stores a login and returns its secret, which is shown once."""
    life = {"session": timedelta(days=SESSION_DAYS), "link": timedelta(minutes=LINK_MINUTES)}
    secret = ("pl_" if kind == "token" else "") + secrets.token_urlsafe(32)
    expires_at = now() + life.get(kind, timedelta(days=TOKEN_DAYS))
    login = Login(
        account_id=account.id, kind=kind, token_sha256=hash_secret(secret), label=label, expires_at=expires_at
    )
    session.add(login)
    return secret


def find_login(session: Session, secret: str, *kinds: str) -> Login | None:
    """The standing login with this secret."""
    login = session.exec(select(Login).where(Login.token_sha256 == hash_secret(secret))).first()
    return login if login and _stands(login, *kinds) else None


def _stands(login: Login, *kinds: str) -> bool:
    return login.kind in kinds and not login.revoked_at and login.expires_at >= now()


# The standing login of a request, with what `given_login` says of it; statements that begin here are built once, since
# every request asks one and building it would take longer than running it.
IS_GIVEN_LOGIN = sa.and_(
    col(Login.token_sha256) == sa.bindparam("secret"), col(Login.kind) == sa.bindparam("login_kind"),
    col(Login.revoked_at).is_(None), col(Login.expires_at) >= sa.bindparam("moment"),
)  # fmt: skip
_SENDER = select(Account).join(Login, col(Login.account_id) == col(Account.id)).where(IS_GIVEN_LOGIN)


def given_login(request: Request) -> dict[str, Any]:
    """What a request names as its login: a bearer token, else the session cookie."""
    bearer = request.headers.get("authorization", "")
    is_token = bearer.lower().startswith("bearer ")
    secret, kind = (bearer[7:].strip(), "token") if is_token else (request.cookies.get(COOKIE, ""), "session")
    return {"secret": hash_secret(secret), "login_kind": kind, "moment": now()}


def find_account(session: Session, request: Request) -> Account | None:
    """Who sent a request."""
    return session.execute(_SENDER, given_login(request)).scalar()


def check_password(session: Session, name: str, password: str) -> Account:
    """The account with this name and password; raises NotSignedIn, saying nothing about which was wrong."""
    account = session.exec(select(Account).where(Account.name == name.strip())).first()
    known = account.password_hash if account and account.password_hash else _NOBODY
    is_right = hasher.verify(password, known)
    if account is None or not account.password_hash or not is_right:
        raise NotSignedIn("This name and password do not go together.")
    return account


def _failure_keys(name: str, address: str) -> dict[str, int]:
    """What failures are counted by, and how many are allowed: the name that is tried, and the address it comes from."""
    return {hash_secret(f"name {name.strip()}"): MOST_FAILURES, hash_secret(f"address {address}"): MOST_FROM_ADDRESS}


def check_pace(session: Session, name: str, address: str) -> None:
    """Raises TooMany after too many wrong passwords, before another one is looked at: right ones wait, too.

    Every web process counts the same rows. Those being checked at this moment are not counted yet.
    """
    since = now() - timedelta(minutes=FAILURE_MINUTES)
    for key, most in _failure_keys(name, address).items():
        failed = sa.select(sa.func.count()).where(
            col(LoginFailure.key_sha256) == key, col(LoginFailure.at) > since
        )  # fmt: skip
        if session.execute(failed).scalar_one() >= most:
            raise TooMany(
                f"Too many wrong passwords for this name or from this address: wait {FAILURE_MINUTES} minutes, or sign "
                "in by a one-time link, which whoever runs PrefLab prints (preflab user link NAME)."
            )


def note_failure(session: Session, name: str, address: str) -> None:
    """Counts a wrong password; failures that no longer count are forgotten."""
    session.execute(sa.delete(LoginFailure).where(col(LoginFailure.at) <= now() - timedelta(minutes=FAILURE_MINUTES)))
    session.add_all(LoginFailure(key_sha256=key) for key in _failure_keys(name, address))


def use_link(session: Session, secret: str) -> Account:
    """The account of a one-time link, which is used up by this; raises NotSignedIn."""
    given = {"secret": hash_secret(secret), "login_kind": "link", "moment": now()}
    # the database decides between two who open it at one moment
    used = sa.update(Login).where(IS_GIVEN_LOGIN).values(revoked_at=given["moment"]).returning(col(Login.account_id))
    account_id = session.execute(used, given).scalar()
    if account_id is None:
        raise NotSignedIn("This link was used already or has run out. Print a new one: preflab user link NAME.")
    return get(session, Account, account_id)


def revoke(session: Session, account: Account, *kinds: str) -> int:
    """Ends the account's logins of these kinds; returns how many."""
    standing = session.exec(
        select(Login).where(Login.account_id == account.id, col(Login.kind).in_(kinds), col(Login.revoked_at).is_(None))
    ).all()
    for login in standing:
        login.revoked_at = now()
    return len(standing)


_NOBODY = hasher.hash(secrets.token_urlsafe(16))  # verified against when there is no such account: same time either way
