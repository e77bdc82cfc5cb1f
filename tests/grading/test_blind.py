"""A crawler in a grader's place: nothing it is sent names a model or an arm, or lets it tell one from another."""

import json
import re
from collections import deque
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE
from app.accounts.models import Account
from app.db import transaction
from app.grading.models import Grade, Grading
from app.projects.models import Project
from app.review.queues import make_queue
from app.review.recipes import AuditRecipe
from tests.grading.rows import FIRST_ID, MARK, make_marked_grading
from tests.review.rows import make_pairs, make_person, make_run, make_verdicts

METHODS = re.compile(r"\b(dpo|ppo|sft|grpo|untrained)\b|arm-base", re.IGNORECASE)
IDS = str(FIRST_ID)[:5]
FULL = {"left_alignment": "4", "right_alignment": "2", "left_correct": "yes", "right_correct": "no"}


class Crawler:
    """Follows every link and sends every form it is shown, and keeps all that came back."""

    def __init__(self, client: TestClient, cookie: str) -> None:
        self.client = client
        client.cookies.set(COOKIE, cookie)
        self.seen: list[tuple[str, str]] = []  # (address, everything that was sent: address, headers, body)
        self.statuses: dict[str, int] = {}

    def note(self, response: Any) -> Any:
        for one in [*response.history, response]:
            headers = "\n".join(f"{name}: {value}" for name, value in one.headers.items())
            self.seen.append((str(one.url), f"{one.url}\n{headers}\n{one.text}"))
        return response

    def get(self, path: str) -> Any:
        response = self.note(self.client.get(path))
        self.statuses[path] = response.status_code
        return response

    def post(self, path: str, data: dict[str, str]) -> Any:
        return self.note(self.client.post(path, data=data))

    def crawl(self, start: str) -> None:
        """Every address that pages mention, in any attribute, within the app."""
        todo, known = deque([start]), {start}
        while todo:
            page = todo.popleft()
            response = self.get(page)
            for link in re.findall(r'(?:href|src|hx-get|action)="([^"]+)"', response.text):
                url = urlsplit(urljoin(str(response.url), link.replace("&amp;", "&")))
                path = url.path + (f"?{url.query}" if url.query else "")
                if url.netloc == "127.0.0.1" and path not in known and not path.startswith("/static/"):
                    known.add(path)
                    todo.append(path)


def leaks(crawler: Crawler, *, has_ended: bool = False) -> list[tuple[str, str]]:
    """What was sent that could tell who wrote what."""
    found = [(address, word) for address, sent in crawler.seen for word in (MARK, IDS) if word in sent.lower()]
    for address, sent in crawler.seen:
        # the methods (never the names) stand on the guess page alone, which comes once the grades are final
        if not (has_ended and address.endswith("/guess")) and (match := METHODS.search(sent)):
            found.append((address, match.group()))
    return found


@pytest.fixture
def grading(project: Project) -> Grading:
    """A grading, a review queue beside it, and a run: all marked."""
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 6), ["a", "b"])
        verdicts.name = f"{MARK} verdicts"
        run = make_run(session, project, "audit")
        make_queue(session, AuditRecipe(verdict_set=verdicts.id, n=4, name=f"{MARK} audit"), project.id, run.id)
        return make_marked_grading(session, project, n=5, methods=("base", "dpo", "sft"))


def test_a_grader_is_sent_nothing_that_identifies_an_arm(
    client: TestClient, project: Project, grading: Grading
) -> None:
    with transaction() as session:
        _, cookie = make_person(session, project, "grace", "grader")
    crawler = Crawler(client, cookie)
    crawler.crawl("/p/demo/grade")
    crawler.crawl("/")
    assert sum(status == 200 for status in crawler.statuses.values()) >= 5
    assert leaks(crawler) == []

    shown = set()
    for _ in range(grading.planned_n):
        item = crawler.get(f"/p/demo/grade/{grading.id}/next")
        shown.add(item.url.path)
        crawler.post(item.url.path, {"choice": "left"})  # refused: what an error says is looked at too
        crawler.post(item.url.path, {"choice": "left", **FULL})
    assert len(shown) == grading.planned_n == 15
    for path in (f"/api/v1/p/demo/grade/{grading.id}/next", "/p/demo/grade.json", "/p/demo/review.json",
                 "/p/demo/grade/item/none", f"/p/demo/grade/{grading.id}.json", f"/p/demo/runs/{grading.run_id}",
                 f"/p/demo/checkpoints/{FIRST_ID}", "/p/demo/report", "/p/demo/pairs.json"):  # fmt: skip
        response = crawler.client.get(path)
        sent = "\n".join(f"{name}: {value}" for name, value in response.headers.items()) + response.text
        crawler.seen.append(("(asked for)", sent))
    assert leaks(crawler) == []

    last = crawler.get(f"/p/demo/grade/{grading.id}/next")
    assert last.url.path.endswith("/guess")
    assert leaks(crawler) == []
    guess = crawler.post(f"/p/demo/grade/{grading.id}/end", {})
    assert METHODS.search(guess.text)
    tokens = set(re.findall(r'type="radio" name="([^"]+)"', guess.text))
    assert 1 <= len(tokens) <= 10
    crawler.post(f"/p/demo/grade/{grading.id}/guess", dict.fromkeys(tokens, "left"))
    crawler.get(f"/p/demo/grade/{grading.id}")
    assert leaks(crawler, has_ended=True) == []

    with transaction() as session:
        grace = session.exec(select(Account).where(Account.name == "grace")).one()
        assert len(session.exec(select(Grade).where(Grade.account_id == grace.id)).all()) == 15


def test_closing_opens_nothing_to_a_grader(client: TestClient, project: Project, grading: Grading) -> None:
    assert client.post(f"/p/demo/grade/{grading.id}/close").status_code == 200
    with transaction() as session:
        _, cookie = make_person(session, project, "grace", "grader")
    crawler = Crawler(client, cookie)
    crawler.crawl("/p/demo/grade")
    assert leaks(crawler) == []
    assert crawler.statuses[f"/p/demo/grade/{grading.id}"] == 200


def test_items_tell_nothing_by_order_or_form(client: TestClient, grading: Grading) -> None:
    """The pages of all items differ in prompt, texts, token and the clock alone; not even an owner's tell more."""
    skeletons = set()
    for _ in range(grading.planned_n):
        item = client.get(f"/p/demo/grade/{grading.id}/next")
        main = item.text.split("<main", 1)[1].split("</main>")[0]
        main = re.sub(r"To question \d, in manner [αβγ]\.|Question \d\?|Truth \d", "TEXT", main)
        main = re.sub(r"item/[\w-]+", "item/TOKEN", main)
        main = re.sub(
            r'name="shown_at" value="\d+"|\d+ of \d+ done|<a class="button" href="[^"]+" data-key="u">.*?</a>', "", main
        )
        skeletons.add(" ".join(main.split()))
        client.post(item.url.path, data={"choice": "skip"})
    assert len(skeletons) == 1
    assert json.dumps(sorted(skeletons)).count("TEXT") == 4
