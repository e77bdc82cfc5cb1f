"""The only module that opens outbound connections: origins checked, addresses pinned, no redirects."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from app.errors import Invalid

MAX_BYTES = 16 * 2**20  # of one answer
CONNECT_S = 15.0


class NoAnswer(Exception):
    """No usable HTTP answer came: timeout, reset, refused connection, or an answer too large."""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# IPv6 addresses that end in the IPv4 address a packet is carried to: compatible, SIIT's translated, and NAT64.
CARRYING = [ipaddress.IPv6Network(one) for one in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96")]
# Not global, though this Python calls them so.
LOCAL = [ipaddress.ip_network(one) for one in ("192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")]


def _target(address: str) -> Address:
    """The address, or the IPv4 address that an IPv6 one stands for."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if any(ip in network for network in CARRYING) and int(ip) > 1:  # :: and ::1 are themselves
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def is_private(address: str) -> bool:
    """Whether an address is on this machine or a private network."""
    ip = _target(address)
    return not ip.is_global or any(ip in network for network in LOCAL)


def is_never_allowed(address: str) -> bool:
    """Link-local (a cloud's metadata server), multicast and unspecified addresses are no endpoint anywhere."""
    ip = _target(address)
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified


def check_origin(url: str, *, are_private_allowed: bool) -> str:
    """A base URL in its one spelling, such as https://host/v1; raises Invalid, keyed by the field `origin`."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise _bad_origin(f"“{url[:80]}” is no address: {error}.") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise _bad_origin("The base URL begins with http:// or https:// and names a host.")
    host = parts.hostname
    if not host.isascii():  # the connection would read full-width digits as an address, and ask no resolver for it
        raise _bad_origin("Write the host in plain letters and digits (a name in another script begins with xn--).")
    if parts.username is not None or parts.password is not None:
        raise _bad_origin("Leave user name and password out of the base URL; a key has its own field.")
    if parts.query or parts.fragment:
        raise _bad_origin("The base URL has no “?” and no “#”.")
    with contextlib.suppress(ValueError):  # a name: its addresses are checked when they are resolved
        _check_address(host, are_private_allowed)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _check_address(address: str, are_private_allowed: bool) -> None:
    if is_never_allowed(address):
        raise _bad_origin(f"{address} is link-local, multicast or unspecified: no endpoint is there.")
    if is_private(address) and not are_private_allowed:
        raise _bad_origin(f"{address} is private, and PREFLAB_PRIVATE_ENDPOINTS is off on this server.")


def _bad_origin(message: str) -> Invalid:
    return Invalid(message, {"origin": [message]})


class _CheckedResolver(AbstractResolver):
    """Resolves names and hands on only addresses that may be connected to."""

    def __init__(self, are_private_allowed: bool) -> None:
        self._inner = ThreadedResolver()
        self._are_private_allowed = are_private_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a name; raises OSError when none may be used."""
        allowed, why = [], ""
        for found in await self._inner.resolve(host, port, family):
            try:
                _check_address(found["host"], self._are_private_allowed)
            except Invalid as refused:
                why = refused.message
            else:
                allowed.append(found)
        if not allowed:
            raise OSError(errno.EACCES, why or f"{host} has no address")
        return allowed

    async def close(self) -> None:
        """Nothing is held."""


class Transport:
    """JSON posts to one origin over kept connections, in one event loop. No redirects, no proxies, no cookies."""

    def __init__(
        self, origin: str, *, are_private_allowed: bool, headers: Mapping[str, str] | None = None, connections: int = 32
    ) -> None:
        self.origin = check_origin(origin, are_private_allowed=are_private_allowed)
        self._are_private_allowed = are_private_allowed
        self._headers = dict(headers or {})
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self._connections, resolver=_CheckedResolver(self._are_private_allowed), ttl_dns_cache=None
        )
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._session:
            await self._session.close()

    async def post(self, path: str, body: bytes, timeout_s: float) -> Reply:
        """Sends a JSON body to origin + path. A redirect is returned as it came. Raises NoAnswer."""
        assert self._session is not None, "use it within `async with`"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_S))
        try:
            async with self._session.post(
                self.origin + path, data=body, timeout=timeout, allow_redirects=False,
                headers={"Content-Type": "application/json"},
            ) as response:  # fmt: skip
                return Reply(response.status, response.headers, await _read(response))
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {timeout_s:.3g} s") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}"[:200]) from error

    async def stream(self, path: str, body: bytes, timeout_s: float) -> AsyncIterator[Reply]:
        """The same, the body in pieces as they arrive: replies whose bodies make up the whole. Raises NoAnswer."""
        assert self._session is not None, "use it within `async with`"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_S))
        size = 0
        try:
            async with self._session.post(
                self.origin + path, data=body, timeout=timeout, allow_redirects=False,
                headers={"Content-Type": "application/json"},
            ) as response:  # fmt: skip
                yield Reply(response.status, response.headers, b"")
                async for chunk in response.content.iter_any():
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise NoAnswer(f"the answer is larger than {MAX_BYTES // 2**20} MB")
                    yield Reply(response.status, response.headers, chunk)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {timeout_s:.3g} s") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}"[:200]) from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(2**16):
        size += len(chunk)
        if size > MAX_BYTES:
            raise NoAnswer(f"the answer is larger than {MAX_BYTES // 2**20} MB")
        chunks.append(chunk)
    return b"".join(chunks)
