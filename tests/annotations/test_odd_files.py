"""Hostile and odd files: every row is taken, or refused with a reason; nothing crashes a page or an import."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import make_account
from app.annotations.agreement import compare, confusion_table
from app.annotations.fields import as_text, read_annotation
from app.annotations.labels import read_labelled
from app.annotations.looking import look
from app.annotations.models import AnnotationSet
from app.annotations.recipes import ImportAnnotationsRecipe
from app.db import get, reading, transaction
from app.pairs.fields import read_pairs
from app.projects.models import Project
from app.projects.projects import make_project
from app.prompts.fields import BadField, read_prompt
from app.prompts.models import Prompt, PromptSet, RejectedRow
from app.prompts.recipes import ImportPairsRecipe, ImportPromptsRecipe
from tests.prompts.rows import do, made

LABELS = ImportAnnotationsRecipe(
    path="x", layout="rows", scale="pairwise3", item_fields=["q", "t"], annotator_field="who", label_field="says"
)
PAIR = {"prompt": "Q", "chosen": "x", "rejected": "y"}


def test_items_are_told_apart_by_every_field() -> None:
    keys = {read_annotation({"q": q, "t": t, "who": "x", "says": "a"}, 1, LABELS).key
            for q, t in (("1:2", "3"), ("1", "2:3"), ("1\\", ":2:3"), ("1", ""))}  # fmt: skip
    assert len(keys) == 4
    with pytest.raises(BadField, match="q and t is empty"):
        read_annotation({"q": "", "t": None, "who": "x", "says": "a"}, 1, LABELS)


@pytest.mark.parametrize(
    ("cell", "text"), [(b"caf\xc3\xa9", "café"), (date(2020, 1, 2), "2020-01-02"), (Decimal("1.50"), "1.50"),
                       (1.5, "1.5"), (True, "true"), ({"at": date(2020, 1, 2)}, '{"at": "2020-01-02"}')],
)  # fmt: skip
def test_what_parquet_holds_is_text(cell: Any, text: str) -> None:
    assert as_text(cell) == text
    with pytest.raises(BadField, match="broken Unicode"):
        as_text(b"\xff")


@pytest.mark.parametrize(("said", "split"), [("validation", "dev"), ("Test", "test"), ("ood", "ood"), ("helpful", "")])
def test_a_preference_keeps_its_own_split_and_group(said: str, split: str) -> None:
    (pair,) = read_pairs({**PAIR, "split": said, "group": 7}, ImportPairsRecipe(path="x"))
    assert (pair.prompt.split, pair.prompt.group) == (split, "7")


def test_labels_and_turns_that_parquet_made_floats_of() -> None:
    row: dict[str, Any] = {"prompt": "Q", "response_0": "x", "response_1": "y", "better_response_id": 1.0}
    better = ImportPairsRecipe(path="x", label="better")
    assert read_pairs(row, better)[0].first == "y"
    for bad in (True, 2, 0.5, None, [1]):
        with pytest.raises(BadField, match="neither 0 nor 1"):
            read_pairs({**row, "better_response_id": bad}, better)
    talks = {
        f"conversation_{side}": [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": side},
                                 {"role": "user", "content": "Q2"}, {"role": "assistant", "content": side * 2}]
        for side in "ab"
    }  # fmt: skip
    (vote,) = read_pairs({**talks, "winner": "model_a", "turn": 1.0}, ImportPairsRecipe(path="x"))
    assert (vote.prompt.messages[-1]["content"], vote.first, vote.second) == ("Q1", "a", "b")


@pytest.mark.parametrize("score", ["nan", float("nan"), "inf", None])
def test_a_score_that_is_no_number_is_named(score: Any) -> None:
    told = [{"response": "x", "overall_score": 5}, {"response": "y", "overall_score": score}]
    with pytest.raises(BadField, match="completion 2 has no number"):
        read_pairs({"instruction": "Q", "completions": told}, ImportPairsRecipe(path="x"))


def test_an_empty_cell_is_no_vote() -> None:
    row = {"instruction": "Q", "response1": "x", "response2": "y", "annotator1": "1.0", "annotator2": ""}
    assert read_pairs(row, ImportPairsRecipe(path="x"))[0].label == "a"


BROKEN = {
    "latin.csv": "caf\xe9,x\n1,2\n".encode("latin-1"), "half.jsonl": b'{"\\ud800": 1}\n',
    "nul.jsonl": b'{"a\\u0000": 1}\n',
    "split.jsonl": b'{"prompt": "x", "split": "\\u0000"}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_reason_that_quotes_what_cannot_be_stored(
    name: str, client: TestClient, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(BROKEN[name])
    run = do(project.id, "import_prompts", path=str(file))
    assert run.status == "failed" and "No row can be used" in str(run.error)
    with reading() as session:
        assert session.exec(select(RejectedRow)).one().reason
    assert client.get("/p/demo/import/look", params={"path": str(file)}).status_code == 200


@pytest.fixture
def sqlite_project(sqlite_database: str) -> Project:
    with transaction() as session:
        return make_project(session, "demo", "Demo", make_account(session, "owner"))


def test_the_split_of_a_prompt_that_stands_twice(sqlite_project: Project, tmp_path: Path) -> None:
    rows = [{"prompt": "Q1", "split": "train"}, {"prompt": "Q1", "split": "test"}, {"prompt": "Q2"},
            {"prompt": "Q2", "split": "test"}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = do(sqlite_project.id, "import_prompts", path=str(file), may_reject=True, test_share=0, dev_share=0)
    assert run.status == "done", run.error
    with reading() as session:
        splits = {row.messages[0]["content"]: row.split for row in session.exec(select(Prompt))}
        refused = session.exec(select(RejectedRow)).one()
    assert splits == {"Q1": "train", "Q2": "test"}  # what is a test somewhere is trained on nowhere
    assert refused.line == 2 and "belongs to one split" in refused.reason


def test_places_that_lead_nowhere_and_broken_folders_say_why(sqlite_database: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    paths = ["~nobody-at-all/x", str(tmp_path / "loop")]
    for n, (name, text) in enumerate((("state.json", "[1"), ("state.json", "[1]"), ("dataset_dict.json", "{}"),
                                      ("state.json", '{"_data_files": [1]}'))):  # fmt: skip
        folder = tmp_path / f"set {n}"
        folder.mkdir()
        (folder / name).write_text(text)
        paths.append(str(folder))
    for path in paths:
        assert all(look(target, {"path": path}).error for target in ("prompts", "pairs", "annotations")), path


ITEM = {"input": "q", "output_1": "x", "output_2": "y", "label": 1}
FOLDERS: dict[str, dict[str, str]] = {
    "llmbar": {"dataset.json": json.dumps([ITEM]),
               "evaluators/j/p/result.json": json.dumps([{**ITEM, "results": {"x": 1}}])},
    "llmbar, too": {"dataset.json": json.dumps([ITEM]),
                    "evaluators/j/p/result.json": json.dumps([{**ITEM, "results": [{"swap = False": 1}]}])},
    "mt_bench": {"human_vs_gpt4_votes.csv": "question_id,turn\n1,1\n", "conversations.jsonl": '{"x": 1}\n[1]\n'},
    "xstest": {"completions_m_gpteval.csv": "id,a\n1,1\n", "completions_m_streval.csv": "x\n1\n"},
    "prd": {"ratings-human/answer_a-vs-answer_b-human-reviewer_threeclass.jsonl": '{"question_id": 1, "score": [1]}\n',
            "prompts/vicuna_questions.jsonl": "[1]\n", "generations/answer_a.jsonl": "[1]\n"},
}  # fmt: skip


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_folder_of_a_known_layout_with_other_things_in_it(layout: str, tmp_path: Path) -> None:
    for name, text in FOLDERS[layout].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = look("annotations", {"path": str(tmp_path)})
    assert found.layout == layout.partition(",")[0] and found.n_good + found.n_bad + bool(found.error)


def test_a_label_called_unreadable_is_a_label(sqlite_project: Project, tmp_path: Path) -> None:
    file = tmp_path / "scans.csv"
    file.write_text("q,ann,judge\n" + "".join(f"{n},{said},\n" for n, said in enumerate(["unreadable", "clear"] * 3)))
    run = do(sqlite_project.id, "import_annotations", path=str(file), layout="rows", scale="categorical",
             item_fields=["q"], annotator_columns=["ann", "judge"], judges=["judge"])  # fmt: skip
    assert run.status == "done", run.error
    with reading() as session:
        labelled = read_labelled(session, session.exec(select(AnnotationSet)).one())
    line = compare(labelled, "*:ann", "*:judge").lines[0]
    assert line.raw and (line.raw.value, line.n) == (0.0, 6)
    names, _, table = confusion_table(labelled, "*:ann", "*:judge")
    assert table[names.index("unreadable")][names.index("unreadable: no label")] == 3


TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hé\u2028llo\r\nyou\x85"}],
     "reference": "r", "category": "c", "group": "g", "split": "test"},
    {"turns": ["One?", "Two?\r\n"], "split": "dev", "licence": "mit", "source": "s"},
    {"prompt": "=1+1", "split": "ood"},
]  # fmt: skip


@pytest.mark.parametrize("fmt", ["jsonl", "csv", "json"])
def test_a_downloaded_prompt_set_is_the_same_when_it_is_imported(
    fmt: str, client: TestClient, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(talk, ensure_ascii=False) + "\n" for talk in TALKS), encoding="utf-8")
    key = made(do(project.id, "import_prompts", path=str(file)), "prompt_set")
    again = tmp_path / f"again.{fmt}"
    again.write_bytes(client.get(f"/p/demo/prompts/{key}.{fmt}").content)
    run = do(project.id, "import_prompts", path=str(again))
    assert run.status == "done", run.error
    with reading() as session:
        assert get(session, PromptSet, key).sha256 == get(session, PromptSet, made(run, "prompt_set")).sha256


@pytest.mark.parametrize("later", [[1], "x", {"a": 1}, [["b"]], [" "]])
def test_later_turns_that_are_no_texts_are_refused(later: Any) -> None:
    with pytest.raises(BadField, match="follow"):
        read_prompt({"prompt": "Q", "follow_ups": later}, ImportPromptsRecipe(path="x"))
