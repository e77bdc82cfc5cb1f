"""Endpoints: making one, and its key, which is stored encrypted and bound to the origin it is for."""

import base64
import contextlib
import hashlib
import os
from itertools import count
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlmodel import Session, select

from app.checkpoints.chat import Target
from app.checkpoints.models import Endpoint
from app.config import settings
from app.errors import AppError, Invalid
from app.net import check_origin

KEY_FILE = "secret.key"


def secret_key() -> bytes:
    """32 bytes that encrypt stored keys: from PREFLAB_SECRET_KEY, else from a file made on first use."""
    if settings().secret_key:
        return hashlib.sha256(settings().secret_key.encode()).digest()
    path = settings().folder() / KEY_FILE
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_bytes(os.urandom(32))
        with contextlib.suppress(FileExistsError):  # two processes at once: both use the file of the first
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes()


def encrypt_key(key: str, origin: str) -> str:
    """The key as it is stored; it decrypts for this origin only."""
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(secret_key()).encrypt(nonce, key.encode(), origin.encode())).decode()


def read_key(endpoint: Endpoint) -> str | None:
    """The endpoint's key in clear, or None when it has none."""
    if not endpoint.key_ciphertext:
        return None
    data = base64.b64decode(endpoint.key_ciphertext)
    try:
        return AESGCM(secret_key()).decrypt(data[:12], data[12:], endpoint.origin.encode()).decode()
    except InvalidTag as error:
        raise AppError(
            f"The key of endpoint “{endpoint.name}” cannot be decrypted: PREFLAB_SECRET_KEY or the data folder's "
            f"{KEY_FILE} is not the one it was stored with. Enter the key again."
        ) from error


def make_endpoint(
    session: Session, project_id: int, *, origin: str, model: str, name: str = "", key: str = "",
    usd_per_million_in: float = 0, usd_per_million_out: float = 0, requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None, extra_body: dict[str, Any] | None = None,
) -> Endpoint:  # fmt: skip
    """A new endpoint; raises Invalid. Nothing is sent to it yet."""
    origin = check_origin(origin, are_private_allowed=settings().private_endpoints)
    name = free_name(session, project_id, name, origin, model)
    row = Endpoint(
        project_id=project_id, name=name, origin=origin, model=model.strip(),
        key_ciphertext=encrypt_key(key, origin) if key else None, key_last4=last4(key),
        usd_per_million_in=usd_per_million_in, usd_per_million_out=usd_per_million_out,
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, extra_body=extra_body or {},
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def free_name(session: Session, project_id: int, name: str, origin: str, model: str, own_id: int = 0) -> str:
    """The name asked for; raises Invalid when another endpoint has it. Without one: model and host, and a number."""
    taken = set(session.exec(select(Endpoint.name).where(Endpoint.project_id == project_id, Endpoint.id != own_id)))
    asked = name.strip()[:120]
    if asked in taken:
        message = f"There is already an endpoint “{asked}”: choose another name."
        raise Invalid(message, {"name": [message]})
    made = f"{model} at {origin.partition('://')[2].partition('/')[0]}"[:110]
    numbered = (made if n == 1 else f"{made} ({n})" for n in count(1))
    return asked or next(one for one in numbered if one not in taken)


def last4(key: str) -> str:
    """What is shown of a key: of a short one nothing."""
    return key[-4:] if len(key) >= 12 else ""


def change_endpoint(
    session: Session, endpoint: Endpoint, *, origin: str, model: str, name: str, key: str, usd_per_million_in: float,
    usd_per_million_out: float, requests_per_minute: int | None = None, tokens_per_minute: int | None = None,
    extra_body: dict[str, Any] | None = None, is_key_dropped: bool = False,
) -> None:  # fmt: skip
    """Changes an endpoint; raises Invalid. A key belongs to one origin: it goes when the origin changes.

    Calls that were paid for keep what they cost: new prices are those of calls to come.
    """
    origin = check_origin(origin, are_private_allowed=settings().private_endpoints)
    is_moved = origin != endpoint.origin
    endpoint.name = free_name(session, endpoint.project_id, name, origin, model, endpoint.id)
    if is_moved or model.strip() != endpoint.model or (extra_body or {}) != endpoint.extra_body:
        endpoint.mode = {}  # what was found out holds for what was asked
    endpoint.origin, endpoint.model = origin, model.strip()
    endpoint.usd_per_million_in, endpoint.usd_per_million_out = usd_per_million_in, usd_per_million_out
    endpoint.requests_per_minute, endpoint.tokens_per_minute = requests_per_minute, tokens_per_minute
    endpoint.extra_body = extra_body or {}
    if key:
        endpoint.key_ciphertext, endpoint.key_last4 = encrypt_key(key, origin), last4(key)
    elif is_moved or is_key_dropped:
        endpoint.key_ciphertext, endpoint.key_last4 = None, ""
    session.add(endpoint)
    session.flush()


def target_of(endpoint: Endpoint) -> Target:
    """What the client needs to call this endpoint, its key in clear."""
    return Target(
        endpoint.origin, endpoint.model, read_key(endpoint), endpoint.mode or {}, endpoint.usd_per_million_in,
        endpoint.usd_per_million_out, settings().private_endpoints, endpoint.requests_per_minute,
        endpoint.tokens_per_minute, endpoint.extra_body or {},
    )  # fmt: skip
