"""The import wizard: a file is looked at first; nothing is stored before somebody says as what."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from sqlmodel import select
from starlette.testclient import TestClient

from app.annotations.looking import look
from app.annotations.models import AnnotationSet
from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import get, reading, transaction
from app.judging.models import Verdict
from app.pairs.fields import read_pairs
from app.projects.models import Project
from app.prompts.fields import BadField
from app.prompts.models import Prompt, PromptSet
from app.prompts.recipes import ImportPairsRecipe
from app.runs.models import Run
from app.runs.queue import claim
from tests.benchmarks.rows import tiny_checkpoint
from tests.prompts.rows import again, do
from worker.child import work

REAL = [
    ("pairs", "hh_rlhf/harmless-base/test.jsonl.gz", "hh_rlhf"),
    ("pairs", "pku_saferlhf/pku_saferlhf_32.json", "pku_saferlhf"),
    ("pairs", "oasst/en_100_tree.jsonl", "oasst"),
    ("pairs", "alpaca/dpo_en_demo.json", "chosen_rejected"),
    ("pairs", "pandalm/testset-v1.json", "pandalm"),
    ("prompts", "dolly/databricks_dolly_1000.csv", "dolly"),
    ("prompts", "alpaca/alpaca_en_demo.json", "alpaca"),
    ("prompts", "oasst/en_100_tree.jsonl", "oasst"),
    ("annotations", "mt_bench", "mt_bench"),
    ("annotations", "mt_bench/human_vs_gpt4_votes.csv", "mt_bench"),
    ("annotations", "tulu1_human_eval/annotations.csv", "tulu"),
    ("annotations", "xstest", "xstest"),
    ("annotations", "llmbar/LLMBar/Natural", "llmbar"),
    ("annotations", "prd_vicuna80", "prd"),
]


@pytest.mark.parametrize(("target", "path", "layout"), REAL)
def test_layouts_are_recognised(shared_data: Path, target: str, path: str, layout: str) -> None:
    found = look(target, {"path": str(shared_data / path)})
    assert (found.error, found.layout) == ("", layout)
    assert found.n_good > 20 and found.good and found.n_good > 5 * found.n_bad


def ultra(*scores: float) -> dict[str, Any]:
    answers = [{"response": f"answer {n}", "overall_score": score} for n, score in enumerate(scores)]
    return {"instruction": "Do it.", "completions": answers}


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def vote(winner: str, a: tuple[str, ...] = ("q", "x"), b: tuple[str, ...] = ("q", "y"), **more: Any) -> dict[str, Any]:
    return {"conversation_a": talk(*a), "conversation_b": talk(*b), "winner": winner, **more}


TREE = {
    "prompt": {"text": "hi", "role": "prompter", "replies": [
        {"text": "good", "role": "assistant", "rank": 0, "replies": [
            {"text": "more", "role": "prompter", "replies": [
                {"text": "second", "role": "assistant", "rank": 1},
                {"text": "first", "role": "assistant", "rank": 0}]}]},
        {"text": "bad", "role": "assistant", "rank": 2},
        {"text": "gone", "role": "assistant", "rank": 1, "deleted": True},
    ]},
}  # fmt: skip
ROWS: list[tuple[dict[str, Any], dict[str, str], list[tuple[str, str, str, str]]]] = [
    (ultra(3, 5, 3), {}, [("Do it.", "answer 1", "answer 0", "a"), ("Do it.", "answer 1", "answer 2", "a")]),
    (ultra(1, 2, 3), {"pairing": "best_worst"}, [("Do it.", "answer 2", "answer 0", "a")]),
    (ultra(2, 2, 1), {"pairing": "all"},
     [("Do it.", "answer 0", "answer 2", "a"), ("Do it.", "answer 1", "answer 2", "a")]),
    (TREE, {}, [("hi", "good", "bad", "a"), ("more", "first", "second", "a")]),
    (vote("model_b"), {}, [("q", "x", "y", "b")]),
    (vote("tie (bothbad)"), {}, [("q", "x", "y", "tie")]),
    (vote("model_a", ("q", "x", "r", "s"), ("q", "y", "r", "t"), turn=1), {}, [("q", "x", "y", "a")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "fields", "wanted"), ROWS)
def test_rows_become_pairs(row: dict[str, Any], fields: dict[str, str], wanted: list[tuple[str, ...]]) -> None:
    recipe = ImportPairsRecipe.model_validate({"path": "x", **fields})
    found = read_pairs(row, recipe)
    assert [(one.prompt.messages[-1]["content"], one.first, one.second, one.label) for one in found] == wanted


REFUSED = [
    (ultra(2, 2), "do not differ in their scores"), (vote("model_c"), "none of"),
    (vote("model_a", ("q", "x", "r", "s"), ("q", "y", "r", "t")), "earlier answers differ"),
    (vote("model_a", ("q", "x"), ("other", "y")), "ask different things"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), REFUSED)
def test_rows_that_are_no_pair_say_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadField, match=said):
        read_pairs(row, ImportPairsRecipe(path="x"))


def finish() -> Run:
    with transaction() as session:
        run = claim(session, ("cpu",), "test", None)
    assert run is not None
    work(run.id, run.attempt)
    return again(run.id)


def test_a_file_is_looked_at_then_imported_as_what_one_chooses(client: TestClient, project: Project) -> None:
    rows = [{"prompt": f"Which is best? {n}", "chosen": "this", "rejected": "that"} for n in range(9)]
    text = "\n".join([*map(json.dumps, rows), '{"prompt": "", "chosen": "x", "rejected": "y"}', "no json"])
    sent = {"target": "prompts", "form_key": "w1", "text": text, "format": "jsonl"}
    page = client.post("/p/demo/import/look", data=sent, files={"file": ("", b"")})
    assert page.status_code == 200 and "Import as preferences" in page.text and ">prompts</a>" in page.text
    assert "Which is best? 0" in page.text and "no JSON" in page.text
    with reading() as session:
        assert not session.exec(select(Run)).all() and not session.exec(select(PromptSet)).all()
    url = str(page.url)
    as_pairs = client.get(url.replace("target=prompts", "target=pairs"))
    assert "preferred" in as_pairs.text and "not preferred" in as_pairs.text and "Shown by role" in as_pairs.text
    path = url.split("path=")[1].split("&")[0].replace("%2F", "/")
    start = {
        "path": path,
        "format": "jsonl",
        "target": "pairs",
        "as": "pairs",
        "labeller": "mine",
        "may_reject": "true",
    }
    refused = client.post("/p/demo/import/start", data={**start, "dev_share": "2"})
    assert refused.status_code == 422 and "must be at most 0.9" in refused.text
    done = client.post("/p/demo/import/start", data=start, follow_redirects=False)
    assert done.status_code == 303, done.text
    run = finish()
    assert run.status == "done", run.error
    assert (run.recipe["layout"], run.recipe["labeller"]) == ("chosen_rejected", "mine")
    with reading() as session:
        assert len(session.exec(select(Verdict)).all()) == 9


def test_the_look_counts_what_the_import_does(client: TestClient, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "Why?", "chosen": f"So {i}.", "rejected": "No."} for i in range(4)]
    long = {"prompt": "Why?", "chosen": "Because " * 9, "rejected": "No."}
    lines = [json.dumps(row) for row in (*rows, rows[0], long)]
    file.write_text("\n".join([*lines, "", '{"prompt": "Why?", "chosen": 7, "rejected": "No."}', ""]))
    page = client.get(f"/p/demo/import/look?path={file}&target=pairs&max_chars=20").text
    assert "5 usable, 1 refused" in page and "1 left out: a text is longer than 20 characters" in page
    assert "1 of the first 7" in page and "its “chosen” must be text or a list of messages" in page
    failed = do(project.id, "import_pairs", path=str(file), max_chars=20)
    assert failed.error is not None and failed.error.startswith("1 of 7 rows cannot be used")
    page = client.get("/p/demo/import/look?path=/no/such").text
    assert "None of its rows could be read" in page and "These are its first rows" not in page


def test_the_mapping_of_annotations_is_stated_in_the_page(client: TestClient, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("thing,who,verdict\n1,ann,ja\n1,bob,nein\n2,ann,vielleicht\n")
    url = f"/p/demo/import/look?path={file}&target=annotations"
    assert "not recognised" in client.get(url).text
    mapping = {"item_fields": "thing", "annotator_field": "who", "label_field": "verdict", "scale": "categorical",
               "label_map": "ja = yes\nnein = no", "layout": "rows"}  # fmt: skip
    page = client.get(url, params={"path": str(file), "target": "annotations", **mapping})
    assert "ann: yes" in page.text and "unreadable (no label: vielleicht)" in page.text
    form = {"path": str(file), "target": "annotations", "as": "annotations", **mapping}
    assert client.post("/p/demo/import/start", data=form, follow_redirects=False).status_code == 303
    assert finish().status == "done"
    with reading() as session:
        found = session.exec(select(AnnotationSet)).one()
    assert (found.n, found.n_labels, found.n_unreadable, found.labels) == (2, 3, 1, ["yes", "no"])


def test_prompts_are_shown_through_a_checkpoints_template(client: TestClient, project: Project) -> None:
    key = tiny_checkpoint(project)
    with reading() as session:
        folder = settings().data_path / get(session, Checkpoint, key).path
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<go>")
    file = settings().folder("uploads", "x") / "q.jsonl"
    file.write_text('{"question": "why?"}\n')
    page = client.get(f"/p/demo/import/look?path={file}&target=prompts&checkpoint={key}")
    assert "&lt;user&gt;why?&lt;go&gt;" in page.text and "Rendered by the chat template" in page.text


def test_a_saved_data_set_is_read_as_it_lies(project: Project, tmp_path: Path) -> None:
    part = Dataset.from_list([{"question": f"What is {n}?"} for n in range(70)])
    DatasetDict({"train": part, "test": Dataset.from_list([{"question": "Last?"}])}).save_to_disk(tmp_path / "saved")
    run = do(project.id, "import_prompts", path=str(tmp_path / "saved"))
    assert run.status == "done", run.error
    with reading() as session:
        splits = {row.messages[0]["content"]: row.split for row in session.exec(select(Prompt)).all()}
    assert len(splits) == 71 and set(splits.values()) == {"train", "test"} and splits["Last?"] == "test"


def test_the_hub_says_what_it_could_not_fetch(project: Project) -> None:
    run = do(project.id, "import_prompts", path="../x", format="hub")
    assert run.status == "failed" and "no data set" in (run.error or "")


@pytest.mark.parametrize("path", ["", "x" * 5000, "no/such/file.csv", "/", "a\x00b", "half \ud800"])
@pytest.mark.parametrize("target", ["prompts", "pairs", "annotations"])
def test_a_path_that_leads_nowhere_is_a_message(target: str, path: str) -> None:
    found = look(target, {"path": path})
    assert found.error and not found.n_good


def test_what_was_typed_first_still_holds_when_it_is_looked_at(
    client: TestClient, project: Project, tmp_path: Path
) -> None:
    path = settings().folder("uploads") / "pairs.jsonl"
    rows = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    sent = {"path": str(path), "format": "auto", "target": "prompts", "limit": "4", "source": "mine"}
    page = client.post(f"/p/{project.slug}/import/look", data=sent)
    assert page.status_code == 200 and "limit=4" in str(page.url) and "target" not in str(page.url)
    assert "As preferences" in page.text  # what fits best, although the first page is the one for prompts
    assert 'value="4"' in page.text and 'value="mine"' in page.text
    assert "limit=4" in page.text.partition("What the file can be imported as")[2].partition("</table>")[0]
    assert "One bad row" not in page.text  # it stands behind the fourth row
    whole = client.post(f"/p/{project.slug}/import/look", data={**sent, "limit": ""})
    assert "One bad row stops the import" in whole.text
