"""A recipe's form: what a browser would send back of it is what was meant."""

import re
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from app import db
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.models import Checkpoint
from app.projects.models import Project
from app.runs import queue


class Sent(HTMLParser):
    """The (name, value) pairs that a browser would send for a page's recipe form."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pairs: list[tuple[str, str]] = []
        self._select: tuple[str, bool] | None = None
        self._options: list[tuple[str, bool]] = []
        self._area: str | None = None
        self.feed(page[page.index('id="recipe-form"') - 200 :])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "input" and (given.get("type") != "checkbox" or "checked" in given):
            self.pairs.append((given["name"], given["value"]))
        elif tag == "select":
            self._select, self._options = (given["name"], "multiple" in given), []
        elif tag == "option" and self._select:
            self._options.append((given["value"], "selected" in given))
        elif tag == "textarea":
            self._area = given["name"]
            self.pairs.append((given["name"], ""))

    def handle_data(self, data: str) -> None:
        if self._area:
            self.pairs[-1] = (self._area, self.pairs[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None
        elif tag == "select" and self._select:
            name, is_multiple = self._select
            chosen = [value for value, is_chosen in self._options if is_chosen]
            if not is_multiple and self._options:
                chosen = chosen[-1:] or [self._options[0][0]]
            self.pairs += [(name, value) for value in chosen]
            self._select = None

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


@pytest.fixture
def checkpoints(project: Project) -> list[int]:
    with db.transaction() as session:
        rows = [
            Checkpoint(project_id=project.id, name=f"c{i}", role="policy", method="imported", path="x")
            for i in range(14)
        ]
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


def test_a_box_that_was_cleared_stays_clear_when_the_form_comes_back(client: TestClient) -> None:
    form = {"is_both_orders": "false", "temperature": "9"}
    answer = client.post("/p/demo/new/judge", data=form)
    assert answer.status_code == 422 and Sent(answer.text).values("is_both_orders") == ["false"]
    assert Sent(client.get("/p/demo/new/judge").text).values("is_both_orders") == ["false", "true"]
    assert Sent(client.get("/p/demo/new/judge?is_both_orders=false").text).values("is_both_orders") == ["false"]


def test_several_rows_are_chosen_again_by_their_whole_number(client: TestClient, checkpoints: list[int]) -> None:
    wanted = [str(checkpoints[0]), str(checkpoints[12])]
    page = client.get(f"/p/demo/new/grading?checkpoints={wanted[0]}&checkpoints={wanted[1]}")
    assert sorted(Sent(page.text).values("checkpoints"))[1:] == sorted(wanted)
    typed = client.get("/p/demo/new/import_prompts?ood_categories=maths")
    assert Sent(typed.text).values("ood_categories") == ["maths"]


def test_an_address_may_fill_nested_fields_and_never_breaks_the_page(client: TestClient) -> None:
    page = client.get("/p/demo/new/generate?decoding.temperature=0.25&splits=test")
    assert Sent(page.text).values("decoding.temperature") == ["0.25"]
    assert Sent(page.text).values("splits") == ["", "test"]
    assert client.get("/p/demo/new/generate?decoding=x").status_code == 200


def test_choosing_nothing_is_not_the_default(client: TestClient) -> None:
    answer = client.post("/p/demo/new/generate", data={"prompt_set": "1", "checkpoint": "1", "splits": ""})
    assert answer.status_code == 422 and re.search(r'id="f-splits-error">[^<]*at least 1', answer.text)


def test_a_run_repeated_keeps_a_row_that_is_archived(client: TestClient, checkpoints: list[int]) -> None:
    with db.transaction() as session:
        recipe = BenchmarkRecipe(checkpoint=checkpoints[3], benchmark="truthfulqa", use_chat_template=True)
        like = queue.launch(session, recipe, project_id=1).id
        session.get_one(Checkpoint, checkpoints[3]).archived_at = db.now()
    sent = Sent(client.get(f"/p/demo/new/benchmark?like={like}").text)
    assert sent.values("checkpoint") == [str(checkpoints[3])]
    assert sent.values("use_chat_template") == ["false", "true"]


def test_a_row_that_is_gone_is_said_on_the_form(client: TestClient) -> None:
    answer = client.post("/p/demo/new/judge", data={"pair_set": "7", "judge": "1", "name": "typed"})
    assert answer.status_code == 422 and 'value="typed"' in answer.text and "no pair set 7" in answer.text
