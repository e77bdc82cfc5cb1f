"""Every page, light and dark: accessible, quiet in the console, small, no wider than a phone, all from here."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Browser, Page

from app import db
from app.launcher import Services
from app.main import create_app
from tests.browser.pages import PROJECT, list_pages
from tests.browser.pages import Page as Address
from tests.browser.seed import EMPTY, seed
from tests.browser.visit import SIZES, Visit, settle, visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]
MOST_BYTES = 300_000
AXE = Axe()
# What a page took over the wire, whether or not the browser had it already.
WEIGHT = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .reduce((sum, one) => sum + one.encodedBodySize, 0)"""
# What a template prints of a value by mistake, or of an enumeration as it is stored.
RAW = re.compile(r"\{'|\b(?:True|False|undefined|NaN|both_bad)\b")
SHOWN = "() => document.querySelector('main').innerText"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def seeded(demo_services: Services) -> Services:
    """The demo's data, with people's part filled in by a script."""
    with db.transaction() as session:
        seed(session)
    return demo_services


@pytest.fixture
def owner(seeded: Services, browser: Browser) -> Iterator[Visit]:
    with visit(browser, seeded.url) as visitor:
        yield visitor


def is_whole_page(visitor: Visit, url: str) -> bool:
    """Whether an address answers a page; a part of one has no doctype. An error is no answer."""
    answer = visitor.context.request.get(url)
    assert answer.ok, f"{url} answers {answer.status}: {answer.text()[:500]}"
    kind, is_file = answer.headers.get("content-type", ""), "content-disposition" in answer.headers
    return kind.startswith("text/html") and not is_file and "<!doctype html>" in answer.text()[:200]


def all_pages(visitor: Visit) -> list[Address]:
    """Every page of the seeded project, and each that needs no row in a project without any."""
    app: FastAPI = create_app()
    with db.reading() as session:
        pages = list(list_pages(app, session, lambda url: is_whole_page(visitor, url)))
    lists = [page for page in pages if "{project}" in page.route and "{" not in page.route.replace("{project}", "")]
    return pages + [Address(page.route, page.url.replace(f"/p/{PROJECT}", f"/p/{EMPTY}", 1)) for page in lists]


def serious(page: Page, **options: Any) -> list[str]:
    """What axe-core finds serious or critical."""
    found = AXE.run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"axe {one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]


def look_at(visitor: Visit, page: Page, url: str) -> list[str]:
    """Everything that is wrong with one page; axe-core itself trips over the CSP, so complaints are taken before."""
    page.set_viewport_size({"width": SIZES["desktop"][0], "height": SIZES["desktop"][1]})
    page.emulate_media(color_scheme="light")
    page.goto(url)
    settle(page)
    wrong = visitor.take_complaints() + serious(page)
    weight = page.evaluate(WEIGHT)
    if weight > MOST_BYTES:
        wrong.append(f"takes {weight:,} bytes")
    wrong += [f"shows {found[0]!r} as it is stored" for found in RAW.finditer(page.evaluate(SHOWN))]
    if page.evaluate(OVERFLOW) > 0:
        wrong.append("is wider than a desktop's window")
    page.emulate_media(color_scheme="dark")
    wrong += [f"dark: {one}" for one in serious(page, runOnly=["color-contrast"])]
    page.set_viewport_size({"width": SIZES["phone"][0], "height": SIZES["phone"][1]})
    if (excess := page.evaluate(OVERFLOW)) > 0:
        wrong.append(f"is {excess} px wider than a phone")
    visitor.take_complaints()
    return wrong


def test_every_page_is_sound(owner: Visit) -> None:
    page, wrong = owner.new_page(), list[str]()
    pages = all_pages(owner)
    for address in pages:
        found = look_at(owner, page, address.url)
        wrong += [f"{address.url}: {one}" for one in found]
    assert len(pages) > 80
    assert not wrong, f"{len(wrong)} on {len(pages)} pages:\n" + "\n".join(wrong)


def test_pages_of_who_is_not_signed_in_and_of_errors_are_sound(seeded: Services, browser: Browser) -> None:
    with visit(browser, seeded.url, account=None) as stranger, visit(browser, seeded.url) as owner:
        page = stranger.new_page()
        assert look_at(stranger, page, "/login") == []
        page.goto(f"/p/{PROJECT}/runs")
        assert page.url.endswith("/login?next=/p/demo/runs")
        for url in (f"/p/{PROJECT}/runs/999999", "/nowhere", f"/p/{PROJECT}/new/nothing"):
            found = [one for one in look_at(owner, owner.new_page(), url) if "status of 4" not in one]
            assert found == [], url


def test_pages_of_a_grader_are_sound(seeded: Services, browser: Browser) -> None:
    with visit(browser, seeded.url, account="simulated grader") as grader:
        page = grader.new_page()
        page.goto("/")
        assert page.url.endswith(f"/p/{PROJECT}/grade")
        assert page.get_by_role("link", name="PrefLab").get_attribute("href") == f"/p/{PROJECT}/grade"
        for url in ("/review", "/review/1", "/review/1/next", "/grade", "/grade/1", "/grade/1/next", "/grade/2"):
            found = look_at(grader, page, f"/p/{PROJECT}{url}")
            assert found == [], url
