"""The pages of imported annotations: from the import by the worker to the figures as files."""

import csv
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.annotations.agreement import DECIDED, compare, figures
from app.annotations.labels import read_labelled
from app.annotations.models import Annotation, AnnotationSet
from app.db import get, reading, transaction
from app.projects.models import Project
from tests.prompts.rows import do, made

WORDS = {"a": "one two three", "b": "one"}


def votes(tmp_path: Path, n: int = 36) -> Path:
    """n items: three people who mostly say a, the longer; a judge of two orders, unreadable on each twelfth item."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        about = {"q": i, "topic": f"topic {i % 2}", "text": f"question {i}", "left": WORDS["a"], "right": WORDS["b"]}
        said = {"ann": "a", "bob": "tie" if i % 9 == 0 else "a", "cyd": "b" if i % 3 == 0 else "a"}
        rows += [{**about, "who": who, "says": label} for who, label in said.items()]
        rows += [
            {**about, "who": "gpt-4", "says": label}
            for label in ("?" if i % 12 == 0 else "a", "b" if i % 4 == 1 else "a")
        ]
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


VOTES = {
    "layout": "rows", "scale": "pairwise3", "item_fields": ["q"], "category_field": "topic", "annotator_field": "who",
    "label_field": "says", "prompt_field": "text", "a_field": "left", "b_field": "right", "judges": ["gpt-4"],
    "name": "house votes",
}  # fmt: skip


def brought_in(project: Project, file: Path, **values: Any) -> int:
    run = do(project.id, "import_annotations", path=str(file), **values)
    assert run.status == "done", run.error
    return made(run, "annotation_set")


def test_from_import_to_figures(client: TestClient, project: Project, tmp_path: Path) -> None:
    root = f"/p/{project.slug}/annotations"
    assert "No annotations yet" in client.get(root).text
    assert f'href="{root}"' in client.get(f"/p/{project.slug}/review").text
    set_id = brought_in(project, votes(tmp_path), **VOTES)
    assert "house votes" in client.get(root).text
    page = client.get(f"{root}/{set_id}")
    assert page.status_code == 200
    for words in (
        "Imported annotations: 36 items", "all items, unreadable = disagreement", "readable only", "people’s majority",
        "Fleiss", "prefers the longer text", "order consistency", "two people: ann – bob", "passes", "ε = 0.2",
        "topic 1", "people among themselves", "which of two is better, or a tie",
    ):  # fmt: skip
        assert words in page.text, words
    chosen = client.get(f"{root}/{set_id}", params={"one": "*:ann", "other": "0:gpt-4", "epsilon": 0})
    assert "ann and gpt-4, own order" in chosen.text and "ε = 0.0" in chosen.text
    refused = client.get(f"{root}/{set_id}", params={"one": "nobody"})
    assert refused.status_code == 422 and "no side" in refused.text
    rows = client.get(f"{root}/{set_id}/figures.json").json()["rows"]
    with reading() as session:
        labelled = read_labelled(session, get(session, AnnotationSet, set_id))
    assert rows == json.loads(json.dumps(figures(labelled, 0.2)))
    table = list(csv.DictReader(io.StringIO(client.get(f"{root}/{set_id}/figures.csv").text)))
    assert len(table) == len(rows) and {row["figure"] for row in table} >= {
        "raw",
        "kappa",
        "alpha",
        "Fleiss",
        "rate",
        "omega",
        "a and a",
    }


def test_what_is_compared_is_chosen_by_links_at_the_top(client: TestClient, project: Project, tmp_path: Path) -> None:
    set_id = brought_in(project, votes(tmp_path), **VOTES)
    url = f"/p/{project.slug}/annotations/{set_id}"
    with reading() as session:
        labelled = read_labelled(session, get(session, AnnotationSet, set_id))

    def opened(query: str) -> tuple[str, list[str], dict[str, str]]:
        """The heading, what is chosen, and all choices with their links."""
        page = client.get(url + query).text
        nav = page.partition('<nav class="choices"')[2].partition("</nav>")[0]
        links = {words: href for href, words in re.findall(r'<a href="([^"]+)"[^>]*>([^<]+)</a>', nav)}
        chosen = re.findall(r'aria-current="true">([^<]+)<', nav)
        heading = re.search(r'id="chosen-title">([^<]+)</h2>(.*?)</dl>', page, re.DOTALL)
        assert heading
        return (
            heading[1] + heading[2],
            chosen,
            {words: unescape(href).partition("?")[2] for words, href in links.items()},
        )

    first, chosen, links = opened("")
    assert chosen == ["people, each label – gpt-4", "with ties"] and first.startswith("people, each label and gpt-4")
    everything = compare(labelled, "people", "*:gpt-4").lines[0]
    assert everything.kappa and f"{everything.kappa.value:.3f}" in first.replace("−", "-")
    assert set(links) == {*chosen, "people’s majority – gpt-4", "people – people", "without ties"}
    people, chosen, _ = opened("?" + opened("?" + links["without ties"])[2]["people – people"])
    assert chosen == ["people – people", "without ties"] and people.startswith("People among themselves")
    decided = compare(labelled, "people", "people").lines[2]
    assert decided.raw and decided.name == DECIDED and f"{decided.raw.value:.3f}" in people
    assert f"n = {decided.n}" in people and "κ" not in people, "neither of two people is the first"
    other, chosen, _ = opened("?one=*:bob&other=0:gpt-4")
    assert chosen == ["with ties"] and other.startswith("bob and gpt-4, own order")
    assert client.get(f"{url}?ties=some").status_code == 422
    options = re.findall(r"<option value=\"\*:([^\"]+)\"", client.get(url).text)
    assert options[:4] == ["gpt-4", "ann", "bob", "cyd"]


def test_few_labels_carry_a_warning(client: TestClient, project: Project, tmp_path: Path) -> None:
    few, many = (brought_in(project, votes(tmp_path, n), **VOTES | {"name": f"{n} items"}) for n in (3, 36))
    pages = [client.get(f"/p/{project.slug}/annotations/{one}").text for one in (few, many)]
    assert "too few" in pages[0] and "too few" not in pages[1].partition("Everything side by side")[0]


def test_unreadable_is_disagreement_and_its_own_line(client: TestClient, project: Project, tmp_path: Path) -> None:
    set_id = brought_in(project, votes(tmp_path), **VOTES)
    with reading() as session:
        labelled = read_labelled(session, get(session, AnnotationSet, set_id))
    everything, readable, decided = compare(labelled, "*:ann", "0:gpt-4").lines
    assert (everything.n, readable.n, decided.n) == (36, 33, 33)
    assert (
        everything.raw and readable.raw and everything.raw.value == pytest.approx(33 / 36) and readable.raw.value == 1
    )
    tied = compare(labelled, "*:ann", "*:bob").lines[0]
    assert tied.raw and tied.raw.value == pytest.approx(32 / 36) and tied.half == pytest.approx(34 / 36)
    majority = compare(labelled, "majority", "*:ann")
    assert majority.n_split == 4, "a, tie and b: nobody has most"


def test_labels_and_items(client: TestClient, project: Project, tmp_path: Path) -> None:
    set_id = brought_in(project, votes(tmp_path), **VOTES)
    root = f"/p/{project.slug}/annotations/{set_id}"
    unreadable = client.get(f"{root}/items.json", params={"label": "unreadable"}).json()["rows"]
    assert [row["reason"] for row in unreadable] == ["no label: ?"] * 3
    page = client.get(f"{root}/items", params={"annotator": "cyd", "label": "b"})
    assert page.status_code == 200 and f"{root}/items/" in page.text
    item = client.get(f"{root}/items/{unreadable[0]['item_id']}")
    assert "question 0" in item.text and "unreadable: no label: ?" in item.text and WORDS["a"] in item.text
    assert client.get(f"{root}/items/999999").status_code == 404
    assert client.get(f"/p/{project.slug}/annotations/999999").status_code == 404


def test_scores(client: TestClient, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    lines = [f"{i},{i % 7},{i % 7 + i % 2},{'?' if i == 3 else i % 7 * 1.5}" for i in range(40)]
    file.write_text("id,ann,bob,m\n" + "\n".join(lines))
    set_id = brought_in(project, file, layout="rows", scale="score", item_fields=["id"],
                        annotator_columns=["ann", "bob", "m"], judges=["m"])  # fmt: skip
    page = client.get(f"/p/{project.slug}/annotations/{set_id}", params={"one": "*:ann", "other": "*:bob"})
    assert "Root mean square error" in page.text and "Spearman" in page.text and "scores are no categories" in page.text
    with reading() as session:
        found = compare(read_labelled(session, get(session, AnnotationSet, set_id)), "*:ann", "*:bob")
    assert found.scores and found.scores.mae and found.scores.mae.value == 0.5 and found.lines[0].alpha is None


def test_another_project_sees_nothing(client: TestClient, project: Project, tmp_path: Path) -> None:
    set_id = brought_in(project, votes(tmp_path, 4), **VOTES)
    with transaction() as session:
        other = Project(slug="elsewhere", name="Elsewhere")
        session.add(other)
        session.flush()
        get(session, AnnotationSet, set_id).project_id = other.id
        assert session.exec(select(Annotation).where(col(Annotation.set_id) == set_id)).first()
    for below in ("", "/items", "/items.csv", "/figures.json"):
        assert client.get(f"/p/{project.slug}/annotations/{set_id}{below}").status_code == 404
