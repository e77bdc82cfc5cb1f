"""Near-duplicates, overlap with benchmarks' questions, lengths and categories: found, stored, shown, filtered by."""

import json
from pathlib import Path

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.db import get, reading
from app.projects.models import Project
from app.prompts.demo_corpus import four_choice_items
from app.prompts.hygiene import warnings_of
from app.prompts.models import Prompt, PromptSet
from tests.prompts.rows import do, made
from worker import hygiene
from worker.hygiene import Finder, Questions

LONG = "The committee of the northern harbour town decided after a long evening to plant forty oaks along the sea road"


def test_near_duplicates_and_overlaps_are_flagged_and_shown(
    client: TestClient, project: Project, tmp_path: Path
) -> None:
    held = four_choice_items()[0]["question"]
    texts = [f"{LONG}, why?", "What is seven times eight?", f"{LONG}; why?!", f"Please think. {held}", LONG + " now."]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps({"question": t, "category": "x" if "times" in t else "y"}) for t in texts))
    run = do(project.id, "import_prompts", path=str(file))
    assert run.status == "done", run.error
    key = made(run, "prompt_set")
    with reading() as session:
        rows = session.exec(select(Prompt).where(Prompt.set_id == key).order_by(col(Prompt.position))).all()
        found = get(session, PromptSet, key)
    assert [(row.near_of, row.overlaps) for row in rows] == [
        (None, ""), (None, ""), (0, ""), (None, "demo_facts"), (0, ""),
    ]  # fmt: skip
    assert (found.hygiene["n_near"], found.hygiene["overlaps"]) == (2, {"demo_facts": 1})
    assert found.hygiene["categories"] == {"y": 4, "x": 1}
    assert sum(bar["count"] for bar in found.hygiene["lengths"]) == 5
    assert len(warnings_of(found)) == 2
    page = client.get(f"/p/demo/prompts/{key}")
    assert "1 prompt overlaps with the questions of demo_facts" in page.text and "like no. 1" in page.text
    near = client.get(f"/p/demo/prompts/{key}?flag=near").text
    assert "now." in near and "seven times eight" not in near


def test_later_turns_are_looked_at_too(project: Project, tmp_path: Path) -> None:
    held = four_choice_items()[0]["question"]
    file = tmp_path / "turns.jsonl"
    talks = [[f"{LONG}, why?", held], [f"{LONG}, why?", "Tell the whole story of that evening in the words of a child"]]
    file.write_text("\n".join(json.dumps({"turns": turns}) for turns in talks))
    run = do(project.id, "import_prompts", path=str(file))
    assert run.status == "done", run.error
    with reading() as session:
        rows = session.exec(select(Prompt).order_by(col(Prompt.position))).all()
    assert [(row.near_of, row.overlaps) for row in rows] == [(None, "demo_facts"), (None, "")]


def test_a_set_is_checked_again_against_a_file_of_questions(
    client: TestClient, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": LONG}) + "\n" + json.dumps({"question": "Name a tree."}))
    key = made(do(project.id, "import_prompts", path=str(file)), "prompt_set")
    assert "No near-duplicates" in client.get(f"/p/demo/prompts/{key}").text
    test = tmp_path / "secret_test.jsonl"
    test.write_text(json.dumps({"question": "Read this. " + LONG + ". Who decided?", "answer": "they"}))
    run = do(project.id, "check_prompts", prompt_set=key, questions=[str(test)])
    assert run.status == "done", run.error
    with reading() as session:
        found = get(session, PromptSet, key)
    assert (
        found.hygiene["overlaps"] == {"secret_test.jsonl": 1} and found.hygiene["questions"]["secret_test.jsonl"] == 1
    )


@pytest.mark.parametrize(
    ("question", "text", "is_held"),
    [
        ("Who wrote Hamlet?", "who wrote hamlet", True),
        ("Who wrote Hamlet?", "Tell me who wrote Hamlet and when", False),  # too short to be a run by itself
        ("Who wrote the play Hamlet?", "Tell me: who wrote the play Hamlet, and when", True),
        (LONG, " ".join(LONG.split()[3:17]), True),
        (LONG, " ".join(LONG.split()[3:15]), False),
    ],
)
def test_what_counts_as_overlap(question: str, text: str, is_held: bool) -> None:
    known = Questions()
    known.add("quiz", question)
    assert (known.find(text) == "quiz") is is_held


def test_the_template_of_many_questions_is_no_overlap() -> None:
    known = Questions()
    start = "the following are multiple choice questions with answers about the subject of"
    for n in range(20):
        known.add("mmlu", f"{start} biology number {n}")
    assert known.find(f"{start} biology") == ""


def test_estimates_agree_with_the_true_similarity() -> None:
    finder = Finder(0.8)
    words = [f"w{n}" for n in range(60)]
    assert finder.add(0, " ".join(words)) is None
    assert finder.add(1, " ".join([*words[:58], "x", "y"])) == 0  # 56 of 60 runs shared: .93
    assert finder.add(2, " ".join([*words[:30], *(f"v{n}" for n in range(30))])) is None  # 28 of 88: .32


def test_only_the_first_prompts_are_compared_and_the_page_says_so(
    client: TestClient, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hygiene, "LIMIT", 1)
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": LONG}) + "\n" + json.dumps({"question": LONG + "!"}))
    key = made(do(project.id, "import_prompts", path=str(file)), "prompt_set")
    assert "among the first 1 of 2 prompts only" in client.get(f"/p/demo/prompts/{key}").text
