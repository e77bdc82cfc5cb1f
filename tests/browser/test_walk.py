"""The whole loop as a person walks it in a browser, after the demo: from the one-time link to the report."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlmodel import col, select

from app.accounts.logins import make_login
from app.accounts.models import Account
from app.db import reading, transaction
from app.grading.models import Grading
from app.launcher import Services
from app.review.models import Override, Queue
from app.runs.models import Run
from tests.browser.visit import Visit, settle, visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]
METHODS = re.compile(r"\b(base|sft|dpo|ppo|grpo|checkpoint)\b", re.IGNORECASE)
TRAINING_MS = 600_000  # one small training run, on a machine that does other things


@pytest.fixture
def visitor(demo_services: Services, browser: Browser) -> Iterator[Visit]:
    """A browser that nobody is signed in with, on the demo's data. What its pages complain of fails the test."""
    with transaction() as session:  # a script is no person, and the report must say so
        session.exec(select(Account).where(Account.name == "owner")).one().is_simulated = True
    with visit(browser, demo_services.url, account=None) as visitor:
        yield visitor
        assert visitor.take_complaints() == []


def press(page: Page, key: str) -> None:
    """Presses a key and waits for the page that follows."""
    with page.expect_navigation():
        page.keyboard.press(key)


def go(page: Page, entry: str) -> None:
    """Chooses an entry of the rail."""
    page.get_by_role("navigation").get_by_role("link", name=re.compile(rf"^{entry}\b")).click()
    settle(page)


def test_the_whole_loop(visitor: Visit) -> None:
    page = visitor.new_page()
    sign_in_by_link(page)
    assert [one for one in visitor.take_complaints() if "status of 401" not in one] == []  # the link used twice
    read_report_before_people(page)
    changed = answer_the_audit(page)
    train_again(page, changed)
    page.close()  # the tab may be closed: the run goes on
    page = visitor.new_page()
    see_it_end(page)
    grade_blind(visitor, page)
    close_and_read(page)


def sign_in_by_link(page: Page) -> None:
    link = login_link()
    page.goto(link)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/p/demo$"))
    page.get_by_role("button", name="Log out").click()
    page.goto(link)
    page.get_by_role("button", name="Sign in").click()  # once is once
    expect(page.get_by_text("used already or has run out")).to_be_visible()
    page.goto(login_link())
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/p/demo$"))


def login_link() -> str:
    with transaction() as session:
        owner = session.exec(select(Account).where(Account.name == "owner")).one()
        return f"/login/{make_login(session, owner, 'link')}"


def read_report_before_people(page: Page) -> None:
    with reading() as session:
        n_items = session.exec(select(Grading.planned_n)).one()
    go(page, "Report")
    page.get_by_role("link", name="Format study").first.click()
    people = page.locator("section", has=page.get_by_role("heading", name="People", exact=True))
    expect(people).to_contain_text(f"0 of {n_items} graded")
    expect(people).to_contain_text("0 of 20 audited")
    expect(people.get_by_role("table")).to_have_count(0)  # no human figure
    page.get_by_role("link", name="PrefLab").click()


def answer_the_audit(page: Page) -> int:
    """Answers all twenty by keyboard; returns how many labels stand changed afterwards."""
    page.get_by_role("link", name="Answer the audit").click()  # the next step
    page.wait_for_load_state("networkidle")  # the queue's estimates come by themselves
    press(page, "Enter")  # Start has the focus
    for n in range(20):
        expect(page.get_by_role("heading", name="Which completion is better?")).to_be_visible()
        assert "verdict was" not in page.content() and "What the judge said" not in page.content()
        press(page, "1234"[n % 4])
        expect(page.get_by_role("heading", name="What the judge said")).to_be_visible()
        if n == 0:
            change_mind(page)
        press(page, "n")
    expect(page.get_by_text("All answered")).to_be_visible()
    page.get_by_role("link", name="Back to the queue").click()
    agreement = page.locator("section", has=page.get_by_role("heading", name="Judge and people"))
    expect(agreement).to_contain_text("20 of 20 pairs by 1 person")
    expect(agreement).to_contain_text("simulated")
    with reading() as session:
        queue = session.exec(select(Queue)).one()
        assert queue.n == 20
        return len(session.exec(select(Override).where(col(Override.withdrawn_at).is_(None))).all())


def change_mind(page: Page) -> None:
    """After the reveal: the label follows what is said now, the first answer stays."""
    figures = page.locator("dl.figures")
    expect(figures).to_contain_text("Your first answer")
    page.keyboard.press("u")
    press(page, "4")
    expect(figures).to_contain_text("Said later")
    expect(figures).to_contain_text("override by owner")
    expect(figures.locator("div", has_text="Your first answer")).to_contain_text("left")


def train_again(page: Page, n_changed: int) -> None:
    """What was trained on the old labels says so, and is trained again by one click."""
    assert n_changed > 0
    go(page, "Train")
    dpo = page.get_by_role("row").filter(has=page.get_by_role("link", name="dpo, seed 1"))
    expect(dpo).to_contain_text(f"{n_changed} labels changed since")
    sft = page.get_by_role("row").filter(has=page.get_by_role("link", name="sft, seed 1"))
    expect(sft).to_contain_text("stale")
    grpo = page.get_by_role("row").filter(has=page.get_by_role("link", name="grpo, seed 1"))
    expect(grpo).to_contain_text("as trained")  # it read no label of a person's
    dpo.get_by_role("button", name=re.compile("Train again")).click()
    expect(page).to_have_url(re.compile(r"/runs/\d+$"))
    expect(page.get_by_text("It waits for")).to_be_visible()  # for the preferences to be frozen again


def see_it_end(page: Page) -> None:
    with reading() as session:
        again, before = session.exec(select(Run).where(Run.kind == "dpo").order_by(col(Run.id).desc()).limit(2)).all()
    assert again.recipe["snapshot"] != before.recipe["snapshot"] and again.recipe["start"] == before.recipe["start"]
    page.goto(f"/p/demo/runs/{again.id}")
    expect(page.locator("#progress .badge")).to_have_text("done", timeout=TRAINING_MS)
    settle(page)
    expect(page.locator("#io")).to_be_visible()
    expect(page.locator("section", has=page.locator("#io"))).to_contain_text(f"dpo of run {again.id}")
    expect(page.locator("body")).not_to_contain_text("changed since")
    expect(page.locator("figure.curve .u-wrap").first).to_be_visible()
    go(page, "Train")
    rows = page.get_by_role("row").filter(has_text="DPO")
    expect(rows.filter(has_text="as trained")).to_have_count(1)
    expect(rows.filter(has_text="changed since")).to_have_count(1)


def grade_blind(visitor: Visit, page: Page) -> None:
    """Grades every item by keyboard; nothing on the way says whose the completions are."""
    asked: list[str] = []
    go(page, "Grade")
    page.get_by_role("link", name=re.compile("^Grading of")).click()
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("link", name="Start").click()
    with reading() as session:
        grading = session.exec(select(Grading)).one()
    n_shown = grading.planned_n
    for n in range(n_shown):
        shown = page.locator("main").inner_html() + page.title()
        assert not METHODS.search(shown), METHODS.search(shown)
        for key in ("qwert"[n % 5], "fgh"[n % 3], "zxcvb"[(n + 2) % 5], "jkl"[(n + 1) % 3]):
            page.keyboard.press(key)
        press(page, "1234"[n % 4])
    assert not [url for url in asked if METHODS.search(url)]
    page.get_by_role("button", name="End my part").click()
    expect(page.get_by_role("button", name="That is my guess")).to_be_visible()  # the page may take a while to come
    for place in range(page.locator("fieldset").count()):
        page.locator("fieldset").nth(place).get_by_label("Left", exact=True).check()
    page.get_by_role("button", name="That is my guess").click()
    expect(page.get_by_text("Your part is done")).to_be_visible()
    expect(page.get_by_text(f"{n_shown} of {n_shown} graded")).to_be_visible()
    expect(page.get_by_role("heading", name="Results")).to_have_count(0)  # sealed until it is closed
    assert page.request.get(f"/p/demo/grade/{grading.id}/results.json").status == 409


def close_and_read(page: Page) -> None:
    page.get_by_role("button", name="Close and show the results").click()
    page.get_by_role("button", name="Close it").click()
    expect(page.get_by_role("heading", name="Results")).to_contain_text("simulated")
    expect(page.get_by_text("Did blinding hold?")).to_be_visible()
    go(page, "Report")
    page.get_by_role("link", name="Format study").first.click()
    people = page.locator("section", has=page.get_by_role("heading", name="People", exact=True))
    expect(people.get_by_text("simulated")).to_have_count(2)  # the grading and the audit
    expect(people.get_by_role("table", name="Blind win rates")).to_contain_text("prompts")
    expect(people).to_contain_text("20 of 20 audited")
    expect(people).to_contain_text("Guessing which arm wrote what")
    numbers = page.request.get(page.url + ".json").json()
    assert "simulated" in str(numbers)
