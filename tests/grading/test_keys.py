"""Review and grading by keyboard alone, in a real browser, as a person would."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from sqlmodel import col, select

from app.accounts.logins import COOKIE, make_login
from app.accounts.models import Account
from app.db import reading, transaction
from app.grading.models import ArmGuess, Grade, Grading
from app.projects.models import Project
from app.review.models import Answer, Override, Queue
from app.review.queues import make_queue
from app.review.recipes import AuditRecipe
from tests.grading.rows import make_marked_grading
from tests.review.rows import make_pairs, make_run, make_verdicts
from tests.servers import free_port

pytestmark = [pytest.mark.browser, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


@pytest.fixture
def address(project: Project) -> Iterator[str]:
    """The app on a port of its own."""
    from app.main import create_app

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page signed in as the owner; an error in its console fails the test."""
    with transaction() as session:
        owner = session.exec(select(Account).where(Account.name == "owner")).one()
        cookie = make_login(session, owner, "session")
    context = browser.new_context()
    context.add_cookies([{"name": COOKIE, "value": cookie, "url": address}])
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def press(page: Page, key: str) -> None:
    """Presses a key and waits for the page that follows."""
    with page.expect_navigation():
        page.keyboard.press(key)


def test_review_by_keys(page: Page, address: str, project: Project) -> None:
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 8), ["a"])
        recipe = AuditRecipe(verdict_set=verdicts.id, n=4)
        queue: Queue = make_queue(session, recipe, project.id, make_run(session, project, "audit").id)
    page.goto(f"{address}/p/demo/review/{queue.id}", wait_until="networkidle")  # its estimates come by themselves
    press(page, "Enter")  # Start has the focus
    assert page.get_by_text("Which completion is better?").is_visible()
    page.keyboard.press("?")
    assert page.get_by_role("heading", name="Keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.keyboard.type("1 is not a choice here")
    page.keyboard.press("Enter")  # answers nothing
    page.keyboard.press("Escape")
    press(page, "1")
    assert page.get_by_text("What the judge said").is_visible()
    with reading() as session:
        first = session.exec(select(Answer).where(col(Answer.first).is_not(None))).one()
        assert first.note == "1 is not a choice here"
    page.keyboard.press("2")  # no second answer by accident: changing asks for U first
    page.wait_for_timeout(200)
    with reading() as session:
        assert session.exec(select(Answer.later).where(Answer.id == first.id)).one() is None
    page.keyboard.press("u")
    press(page, "4")
    with reading() as session:
        after = session.exec(select(Answer).where(Answer.id == first.id)).one()
        assert (after.first, after.later) == (first.first, "both_bad")
        standing = session.exec(select(Override.choice).where(col(Override.withdrawn_at).is_(None))).all()
        assert standing == ["both_bad"]
    press(page, "n")
    page.keyboard.press("a")  # go on by itself
    press(page, "3")
    assert page.get_by_text("The pair before: you said tie").is_visible()
    press(page, "s")
    press(page, "2")
    assert page.get_by_text("All answered").is_visible()
    with reading() as session:
        said = session.exec(select(Answer.first).where(Answer.queue_id == queue.id)).all()
    assert None not in said and {"skip", "tie"} <= set(said)


def test_grading_by_keys(page: Page, address: str, project: Project) -> None:
    with transaction() as session:
        grading: Grading = make_marked_grading(session, project, n=3)
    page.goto(f"{address}/p/demo/grade/{grading.id}")
    page.get_by_role("link", name="Start").click()
    page.keyboard.press("1")  # the marks are missing: the browser says so and nothing is sent
    page.wait_for_timeout(200)
    with reading() as session:
        assert session.exec(select(Grade)).all() == []
    for key in "rfzl":
        page.keyboard.press(key)
    press(page, "1")
    for key in "tfcj":
        page.keyboard.press(key)
    press(page, "4")
    press(page, "u")  # back to what was just graded
    assert page.locator("input:checked").count() == 4
    press(page, "3")
    press(page, "s")
    with reading() as session:
        grades = session.exec(select(Grade).order_by(col(Grade.id))).all()
    assert [grade.choice for grade in grades] == ["left", "tie", "skip"]
    assert (grades[0].left_alignment, grades[0].left_correct) == (4, "yes")
    assert (grades[0].right_alignment, grades[0].right_correct) == (1, "no")
    page.get_by_role("button", name="End my part").click()
    for place in range(page.locator("fieldset").count()):
        page.locator("fieldset").nth(place).get_by_label("Left", exact=True).check()
    page.get_by_role("button", name="That is my guess").click()
    page.wait_for_url(f"{address}/p/demo/grade/{grading.id}")
    with reading() as session:
        assert session.exec(select(ArmGuess.n)).one() == 2
    page.get_by_role("button", name="Close and show the results").click()
    page.get_by_role("button", name="Close it").click()
    assert page.get_by_text("Did blinding hold?").is_visible()
