"""Forms, cancelling, double clicks, back and forward, deep links, a closed tab: what a person does to any web app."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlmodel import col, select

from app.accounts.logins import make_account
from app.accounts.models import Account
from app.db import reading, transaction
from app.launcher import Services
from app.projects.projects import make_project
from app.runs.models import Run
from tests.browser.visit import Visit, settle, visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ENDLESS = {"Steps": "100000", "Hidden size": "32", "MLP size": "32", "Layers": "1", "Attention heads": "2"}


@pytest.fixture
def visitor(services: Services, browser: Browser) -> Iterator[Visit]:
    """A browser on an empty project, not signed in."""
    with transaction() as session:
        make_project(session, "demo", "Demo", make_account(session, "owner", "correct horse"))
    with visit(browser, services.url, account=None) as visitor:
        yield visitor


@pytest.fixture
def page(visitor: Visit) -> Page:
    """A tab signed in by name and password, having asked for a page deep in the app first."""
    page = visitor.new_page()
    page.goto("/p/demo/runs?status=failed")
    page.get_by_label("Name").fill("owner")
    page.get_by_label("Password").fill("wrong horse")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("do not go together")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/p/demo/runs\?status=failed$"))  # where the link led
    visitor.take_complaints()
    return page


def run_ids() -> list[int]:
    with reading() as session:
        return list(session.exec(select(Run.id).order_by(col(Run.id))).all())


def fill(page: Page, values: dict[str, str]) -> None:
    for label, value in values.items():
        page.get_by_label(label).fill(value)


def test_a_wrong_form_keeps_what_was_typed_and_says_where(page: Page) -> None:
    page.goto("/p/demo/new/demo_base")
    fill(page, ENDLESS | {"Name": "n" * 130, "Learning rate": "0.004"})
    page.get_by_role("button", name="Make").click()
    name = page.get_by_label("Name")
    expect(name).to_have_attribute("aria-invalid", "true")
    expect(name).to_have_value("n" * 130)
    expect(page.locator("#f-name-error")).to_contain_text("120")
    expect(page.get_by_label("Learning rate")).to_have_value("0.004")
    fill(page, {"Name": "", "Attention heads": "3"})
    page.get_by_role("button", name="Make").click()
    expect(page.get_by_role("alert")).to_contain_text("even multiple")  # of the whole form, not of one field
    expect(page.get_by_label("Attention heads")).to_have_value("3")
    assert run_ids() == []


def test_a_long_run_is_started_once_watched_left_and_cancelled(visitor: Visit, page: Page) -> None:
    page.goto("/p/demo")
    page.goto("/p/demo/new/demo_base")
    fill(page, ENDLESS)
    page.get_by_role("button", name="Make").dblclick()
    expect(page).to_have_url(re.compile(r"/runs/\d+$"))
    assert len(run_ids()) == 1
    url, bar = page.url, "#progress progress"
    expect(page.locator("#progress .badge")).to_have_text("running", timeout=60_000)
    page.go_back()
    expect(page.get_by_label("Steps")).to_have_value("100000")
    page.go_back()
    expect(page).to_have_url(re.compile(r"/p/demo$"))
    page.go_forward()
    page.go_forward()
    expect(page).to_have_url(url)
    expect(page.locator(bar)).to_have_attribute("value", re.compile(r"^[1-9]"), timeout=60_000)
    seen = int(page.locator(bar).get_attribute("value") or 0)
    page.close()  # the tab may be closed
    other = visitor.new_page()
    other.goto(url)
    settle(other)
    expect(other.locator(bar)).not_to_have_attribute("value", str(seen), timeout=20_000)
    assert int(other.locator(bar).get_attribute("value") or 0) > seen
    other.get_by_role("button", name="Cancel").click()
    expect(other.locator("#progress .badge")).to_have_text("cancelled", timeout=15_000)
    expect(other.get_by_role("button", name="Resume")).to_be_visible()
    expect(other.get_by_role("button", name="Cancel")).to_have_count(0)
    assert visitor.take_complaints() == []


def test_a_failed_run_says_why(page: Page, visitor: Visit) -> None:
    page.goto("/p/demo/new/import_prompts")
    page.get_by_label("File on the server").fill("/nowhere/prompts.jsonl")
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#progress .badge")).to_have_text("failed", timeout=60_000)
    expect(page.get_by_role("alert")).to_contain_text("/nowhere/prompts.jsonl")
    page.get_by_role("link", name="Run again with changes").click()
    expect(page.get_by_label("File on the server")).to_have_value("/nowhere/prompts.jsonl")
    assert visitor.take_complaints() == []


def test_a_stranger_sees_nothing_of_another_project(page: Page, visitor: Visit) -> None:
    with transaction() as session:
        make_project(session, "other", "Other", session.exec(select(Account)).one())
        make_account(session, "stranger", "correct horse")
    page.get_by_role("button", name="Log out").click()
    page.goto("/login")
    page.get_by_label("Name").fill("stranger")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="No project yet")).to_be_visible()
    page.goto("/p/other")
    expect(page.get_by_text("There is no project")).to_be_visible()
    expect(page.get_by_role("navigation")).to_have_count(0)
