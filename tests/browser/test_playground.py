"""The playground and the curves in a browser: words that grow, stopping, going on, and addresses that show the same."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from app.accounts.logins import make_account
from app.checkpoints.endpoints import make_endpoint
from app.db import now, transaction
from app.launcher import Services
from app.projects.projects import make_project
from app.prompts.recipes import ImportPromptsRecipe
from app.runs.models import Metric, Run
from app.runs.queue import launch
from tests.browser.visit import settle, visit
from tests.chat_server import ChatServer, Request

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def at_length(request: Request) -> str:
    """The quick server repeats what was said; the slow one counts."""
    last = request["messages"][-1]["content"]
    return f"You said “{last}”." if request["model"] == "echo" else " ".join(str(n) for n in range(400))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(at_length, piece_s=0.02) as running:
        yield running


@pytest.fixture
def page(services: Services, browser: Browser, server: ChatServer) -> Iterator[Page]:
    """A tab of the owner of a project with two endpoints."""
    with transaction() as session:
        project = make_project(session, "demo", "Demo", make_account(session, "owner", "correct horse"))
        for model in ("echo", "count"):
            make_endpoint(session, project.id, origin=server.origin, model=model, name=f"the {model} server")
    with visit(browser, services.url) as visitor:
        yield visitor.new_page()
        assert [said for said in visitor.take_complaints() if "422" not in said] == []


def test_two_endpoints_answer_word_by_word_and_one_is_stopped(page: Page) -> None:
    page.goto("/p/demo/checkpoints")
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("Message", exact=True).fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("choose one to 12")
    expect(page.get_by_label("Message", exact=True)).to_have_value("hello")
    page.get_by_role("checkbox", name="the echo server").check()
    page.get_by_role("checkbox", name="the count server").check()
    page.get_by_role("button", name="Send").click()
    expect(page).to_have_url(re.compile(r"playground\?run=\d+#newest$"))
    counted = page.get_by_role("article", name="the count server").locator("[data-text]")
    expect(counted).to_contain_text("3 4 5")
    expect(counted).not_to_have_text(counted.inner_text())  # it goes on
    expect(page.get_by_role("article", name="the echo server")).to_contain_text("You said “hello”.")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("article", name="the count server")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    page.get_by_role("checkbox", name="the count server").uncheck()
    page.get_by_label("Message", exact=True).fill("and again")
    page.get_by_role("button", name="Send").click()
    newest = page.locator("#newest")
    expect(newest).to_contain_text("You said “and again”.")
    expect(newest).to_contain_text("ended by itself")
    page.goto(page.url)  # the address shows the whole conversation
    expect(page.get_by_role("article", name="the echo server")).to_have_count(2)


def test_how_curves_are_shown_stands_in_the_address(page: Page) -> None:
    with transaction() as session:
        run = launch(session, ImportPromptsRecipe(shipped="demo"), project_id=1)
        run.status, run.ended_at = "done", now()
        session.add_all(Metric(run_id=run.id, name=name, step=step, value=2 + (step % 7) / (step + 1))
                        for step in range(60) for name in ("loss", "accuracy"))  # fmt: skip
        session.add_all(Metric(run_id=run.id, name=f"dev_{name}", step=20, value=2.0) for name in ("loss", "accuracy"))
        other = Run(**run.model_dump(exclude={"id"}))
        session.add(other)
        session.flush()
        key, beside = run.id, other.id
    page.goto(f"/p/demo/runs/{key}")
    settle(page)
    # Train solid and dev dashed, in figures whose names sort either way round (accuracy, loss) and in their legends.
    for name in ("accuracy", "loss"):
        figure = page.locator("figure.curve").filter(has=page.get_by_text(name, exact=True))
        drawn = figure.evaluate("one => one.curve.plot.series.slice(1).map(s => [s.label, (s.dash ?? []).length > 0])")
        assert drawn == [["train", False], ["dev", True]]
        swatches = figure.locator(".u-marker").evaluate_all(
            "all => all.map(one => getComputedStyle(one).borderTopStyle)"
        )
        assert swatches[-2:] == ["solid", "dashed"]
    page.goto(f"/p/demo/runs/{key}?smooth=0.9&over=seconds")
    settle(page)
    smooth = page.get_by_label("Smooth")
    expect(smooth).to_have_count(2)
    for place in (0, 1):
        expect(smooth.nth(place)).to_have_value("0.9")
    expect(page.locator(".u-series.raw").first).to_be_attached()  # the raw curve under it
    smooth.nth(1).fill("0.5")
    page.get_by_label("log").first.check()
    expect(smooth.nth(0)).to_have_value("0.5")
    expect(page).to_have_url(re.compile(r"smooth=0\.5.*log=1|log=1.*smooth=0\.5"))
    page.get_by_text("Lay other runs over these").click()
    page.get_by_label("Runs", exact=True).select_option(str(beside))
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile(rf"smooth=0\.5&log=1&over=seconds&beside={beside}"))
    expect(page.get_by_label("Smooth").first).to_have_value("0.5")
    expect(page.get_by_label("over").first).to_have_value("seconds")
