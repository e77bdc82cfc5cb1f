"""A browser signed in as somebody, which keeps what went wrong on the pages it visited."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request
from sqlmodel import select

from app.accounts.logins import COOKIE, make_login
from app.accounts.models import Account
from app.db import transaction

SIZES = {"desktop": (1440, 900), "tablet": (1024, 768), "phone": (390, 844)}
Scheme = Literal["light", "dark"]


@dataclass
class Visit:
    """A browser's context and its complaints: console errors, exceptions, requests that leave this machine."""

    context: BrowserContext
    url: str
    complaints: list[str] = field(default_factory=list)

    def new_page(self) -> Page:
        """A tab that is listened to."""
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: exception: {error}"))
        page.on("request", self._see)
        return page

    def take_complaints(self) -> list[str]:
        """What was complained of since the last time."""
        found, self.complaints = self.complaints, []
        return found

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.location.get('url')}: {message.type}: {message.text}")

    def _see(self, request: Request) -> None:
        if not request.url.startswith((self.url + "/", "data:", "blob:")):
            self.complaints.append(f"a request left this machine: {request.url}")


@contextmanager
def visit(
    browser: Browser, url: str, account: str | None = "owner", size: str = "desktop", scheme: Scheme = "light"
) -> Iterator[Visit]:
    """A context of its own, signed in as `account` (None: not signed in)."""
    width, height = SIZES[size]
    context = browser.new_context(
        base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-GB",
        timezone_id="Europe/Berlin", reduced_motion="reduce",
    )  # fmt: skip
    if account is not None:
        with transaction() as session:
            secret = make_login(session, session.exec(select(Account).where(Account.name == account)).one(), "session")
        host = urlsplit(url).hostname or ""
        context.add_cookies([{"name": COOKIE, "value": secret, "domain": host, "path": "/", "httpOnly": True}])
    yield Visit(context, url)
    context.close()


def settle(page: Page) -> None:
    """Waits until what the page asks for on loading has come: fragments, then curves drawn or said to be empty."""
    page.wait_for_load_state("load")
    page.wait_for_function("() => !document.querySelector('[hx-trigger=\"load\"], .htmx-request')")
    page.wait_for_function(
        """() => [...document.querySelectorAll("figure[data-curve]")]
          .every((one) => one.querySelector(".u-wrap") || one.querySelector("p")?.textContent)"""
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
