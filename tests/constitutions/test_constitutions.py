"""Constitutions: shipped ones, versions frozen once used, lines as people write them, and two versions side by side."""

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app import db
from app.accounts.models import Account
from app.constitutions.constitutions import (
    PrincipleText,
    add_version,
    diff_versions,
    ensure_shipped,
    find_version,
    freeze,
    read_lines,
    read_principles,
    save_version,
    write_lines,
)
from app.constitutions.models import Constitution
from app.constitutions.shipped import HARMS
from app.errors import Conflict, Invalid
from app.projects.models import Project
from app.projects.projects import make_project

TWO = [PrincipleText("kind", "Be kind."), PrincipleText("true", "Be true.", 2.0)]


def test_every_project_gets_the_shipped_ones_once(project: Project):
    for _ in range(2):
        with db.transaction() as session:
            ensure_shipped(session, project.id)
    with db.reading() as session:
        names = {one.name: one.id for one in session.exec(select(Constitution)).all()}
        assert sorted(names) == ["concise-factual", "helpful-honest-harmless", "safety", "strict-format"]
        assert len(read_principles(session, names["safety"])) == len(HARMS) == 19


def test_an_unused_version_changes_in_place_and_a_frozen_one_gets_a_successor(project: Project):
    with db.transaction() as session:
        row = add_version(session, project.id, "mine", "P", TWO)
        same, is_new = save_version(session, row, "P", [*TWO, PrincipleText("short", "Be short.")])
        assert (same.id, is_new) == (row.id, False)
        freeze(session, row.id)
        session.refresh(row)
        assert save_version(session, row, "P", read_principles(session, row.id)) == (row, False)
        later, is_new = save_version(session, row, "P", TWO)
        assert is_new
        assert later.version == 2
        assert later.frozen_at is None
        assert [one.key for one in read_principles(session, row.id)] == ["kind", "true", "short"]
        assert find_version(session, project.id, "mine").id == later.id
        assert find_version(session, project.id, "mine", 1).id == row.id
        with pytest.raises(Conflict):
            find_version(session, project.id, "theirs")


@pytest.mark.parametrize(
    ("principles", "why"),
    [
        ([], "1 to 60 principles"),
        ([PrincipleText("Kind", "x")], "Principle 1: the key"),
        ([PrincipleText("a", "x"), PrincipleText("a", "y")], "Principle 2: the key “a” is there twice"),
        ([PrincipleText("a", " ")], "says nothing"),
        ([PrincipleText("a", "x", -1)], "a weight is between"),
    ],
)
def test_what_cannot_stand_is_refused_by_number(project: Project, principles: list[PrincipleText], why: str):
    with db.transaction() as session, pytest.raises(Invalid, match=why):
        add_version(session, project.id, "mine", "", principles)


def test_lines_are_read_as_they_are_written():
    assert read_lines(write_lines(TWO)) == TWO
    assert read_lines("Kind : be kind: always \n\n true(0.5): yes") == [
        PrincipleText("kind", "be kind: always"),
        PrincipleText("true", "yes", 0.5),
    ]
    with pytest.raises(Invalid, match="Line 2"):
        read_lines("kind: x\nno key here")


def test_two_versions_side_by_side():
    new = [PrincipleText("true", "Be true.", 3.0), PrincipleText("short", "Be short.")]
    rows = diff_versions(("P", TWO), ("P", new))
    assert [(row.change, row.left[:4], row.right[:4]) for row in rows] == [
        ("same", "P", "P"), ("removed", "kind", ""), ("changed", "true", "true"), ("added", "", "shor"),
    ]  # fmt: skip


def test_writing_editing_and_comparing_in_the_page(client: TestClient):
    root = "/p/demo/constitutions"
    assert "Add the shipped constitutions" in client.get(root).text
    assert client.post(f"{root}/shipped", follow_redirects=True).text.count("version") >= 0
    assert "Add the shipped constitutions" not in client.get(root).text
    bad = client.post(f"{root}/new", data={"name": "mine", "principles": "nothing to see"})
    assert bad.status_code == 422
    assert "Line 1" in bad.text
    assert "nothing to see" in bad.text, "the form keeps what was typed"
    made = client.post(f"{root}/new", data={"name": "mine", "principles": "kind: be kind"}, follow_redirects=True)
    assert "be kind" in made.text
    key = int(str(made.url).rpartition("/")[2])
    with db.transaction() as session:
        freeze(session, key)
    edited = client.post(f"{root}/{key}/edit", data={"principles": "kind: be <b>kinder</b>"}, follow_redirects=True)
    newer = int(str(edited.url).rpartition("/")[2])
    assert newer != key
    assert "be &lt;b&gt;kinder" in edited.text
    diff = client.get(f"{root}/{newer}/diff/{key}").text
    assert "<del>kind: be kind</del>" in diff
    assert client.get(f"{root}.json").json()["rows"][0]["name"] == "mine"
    assert client.get(f"{root}/{newer}.json").json()["principles"][0]["weight"] == 1.0


def test_the_api_writes_the_same(client: TestClient):
    root = "/api/v1/p/demo/constitutions"
    body = {"name": "api", "principles": [{"key": "kind", "body": "be kind", "weight": 2}]}
    made = client.post(root, json=body)
    assert made.status_code == 201, made.text
    assert client.post(root, json=body).status_code == 409
    changed = client.post(f"{root}/{made.json()['id']}", json={**body, "preface": "now with one"}).json()
    assert (changed["id"], changed["preface"], changed["is_new_version"]) == (made.json()["id"], "now with one", False)


def test_rows_of_another_project_do_not_exist(client: TestClient, project: Project):
    with db.transaction() as session:
        other = make_project(session, "other", "Other", db.get(session, Account, 1))
        key = add_version(session, other.id, "theirs", "", TWO).id
    assert client.get(f"/p/demo/constitutions/{key}").status_code == 404
