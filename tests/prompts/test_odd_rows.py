"""One odd row among many changes nothing of what a file is taken for: it is listed with its line and the reason."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.annotations.looking import TARGETS, Look, choose, look
from app.prompts.files import guess_format, typical_row
from tests.prompts.test_wizard import TREE, talk, ultra, vote

N = 9
# Layout → (what it is opened as, a row of it, a field without which a row is odd). {n} makes each row its own.
KNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "chosen_rejected": ("pairs", {"prompt": "q {n}", "chosen": "yes", "rejected": "no"}, "rejected"),
    "hh_rlhf": ("pairs", {"chosen": "\n\nHuman: q {n}\n\nAssistant: yes",
                          "rejected": "\n\nHuman: q {n}\n\nAssistant: no"}, "rejected"),
    "pku_saferlhf": ("pairs", {"prompt": "q {n}", "response_0": "x", "response_1": "y", "better_response_id": 1,
                               "safer_response_id": 0}, "response_0"),
    "ultrafeedback": ("pairs", {**ultra(1, 3), "instruction": "Do {n}."}, "completions"),
    "oasst": ("pairs", TREE, "prompt"),
    "votes": ("pairs", {**vote("model_a"), "question_id": "{n}", "model_a": "m", "model_b": "o", "judge": "j"},
              "conversation_b"),
    "pandalm": ("pairs", {"idx": "{n}", "motivation_app": "mail", "instruction": "Do {n}.", "response1": "x",
                          "response2": "y", "annotator1": 1, "annotator2": 1, "annotator3": 1}, "response1"),
    "dolly": ("prompts", {"instruction": "Do {n}.", "context": "", "response": "Done."}, "instruction"),
    "alpaca": ("prompts", {"instruction": "Do {n}.", "input": "", "output": "Done."}, "output"),
    "conversations": ("prompts", {"conversations": [{"from": "human", "value": "q {n}"},
                                                    {"from": "gpt", "value": "a"}]}, "conversations"),
    "messages": ("prompts", {"messages": talk("q {n}")}, "messages"),
    "prompt": ("prompts", {"prompt": "q {n}"}, "prompt"),
    "question": ("prompts", {"question": "q {n}", "answer": "a"}, "question"),
    "turns": ("prompts", {"turns": ["q {n}", "and then?"]}, "turns"),
    "tulu": ("annotations", {"instance_id": "{n}", "prompt": "q {n}", "completion_a": "x", "completion_b": "y",
                             "model_a": "m", "model_b": "o", "preference": "a-is-better", "evaluator": "e"},
             "preference"),
    "mt_bench": ("annotations", {"question_id": "{n}", "turn": "1", "category": "c", "model_a": "m", "model_b": "o",
                                 "human_winner": "model_a", "gpt4_winner": "tie", "human_judge": "h"}, "human_winner"),
    "arena": ("annotations", {"question_id": "{n}", "turn": 1, "judge": "j", "winner": "model_a", "model_a": "m",
                              "model_b": "o"}, "winner"),
    "xstest": ("annotations", {"id": "{n}", "type": "t", "prompt": "q {n}", "completion": "x",
                               "final_label": "1_full_compliance", "annotation_1": "1_full_compliance",
                               "annotation_2": "1_full_compliance",
                               "gpt4_label": "1_full_compliance"}, "final_label"),
}  # fmt: skip


def rows_of(layout: str) -> list[Any]:
    text = json.dumps(KNOWN[layout][1])
    return [json.loads(text.replace("{n}", str(n))) for n in range(N)]


def seen(path: Path) -> tuple[str, Look]:
    """What a file is opened as, and what is shown of it."""
    looks = {target: look(target, {"path": str(path)}) for target in TARGETS}
    return choose(looks), looks[choose(looks)]


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize("place", [0, N // 2, N - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("layout", KNOWN)
@pytest.mark.parametrize("oddity", ["lacks a field", "another shape", "no object", "no JSON"])
def test_one_odd_row_is_listed_and_decides_nothing(tmp_path: Path, layout: str, place: int, oddity: str) -> None:
    target, row, field = KNOWN[layout]
    odd = {"lacks a field": json.dumps(without(row, field)), "another shape": '{"zip": 1, "sum": "2"}',
           "no object": "[1]", "no JSON": '{"prompt": '}[oddity]  # fmt: skip
    lines = [json.dumps(one) for one in rows_of(layout)]
    lines[place] = odd
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    opened, found = seen(path)
    assert (opened, found.layout, found.error) == (target, layout, "")
    assert (found.n_good, [one.line for one in found.bad]) == (N - 1, [place + 1])
    assert len(found.bad[0].reason) > 10


@pytest.mark.parametrize("place", [0, N // 2, N - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("layout", ["chosen_rejected", "dolly", "mt_bench", "xstest"])
def test_a_line_of_a_table_with_too_few_cells(tmp_path: Path, layout: str, place: int) -> None:
    rows: Sequence[dict[str, Any]] = rows_of(layout)
    sink = io.StringIO()
    write = csv.writer(sink).writerow
    write(list(rows[0]))
    for n, row in enumerate(rows):
        write(["alone"] if n == place else list(row.values()))
    path = tmp_path / "rows.csv"
    path.write_text(sink.getvalue())
    opened, found = seen(path)
    assert (opened, found.layout, found.n_good) == (KNOWN[layout][0], layout, N - 1)
    assert [one.line for one in found.bad] == [place + 2] and "1 fields where the first line names" in found.bad[
        0
    ].reason


def test_the_missing_field_is_named(tmp_path: Path) -> None:
    rows = rows_of("chosen_rejected")
    del rows[0]["rejected"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    opened, found = seen(path)
    assert opened == "pairs" and found.bad[0].line == 1 and "it has no “rejected”" in found.bad[0].reason


@pytest.mark.parametrize("first", ["no JSON", "[1, 2]", "[oops", "{oops"])
@pytest.mark.parametrize("name", ["rows.txt", "rows.json", "rows"])
def test_the_format_goes_by_most_lines_too(tmp_path: Path, name: str, first: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join([first, *(json.dumps(one) for one in rows_of("prompt"))]) + "\n")
    assert guess_format(path) == "jsonl"
    assert seen(path)[1].n_good == N


def test_a_column_without_a_name_is_no_field_of_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",title,body\n1,t,b\n2,u,c\n")  # as pandas writes its index
    _, found = seen(path)
    assert found.n_good == 0 and "no prompt among its fields" in found.bad[0].reason


@pytest.mark.parametrize(
    ("rows", "typical"),
    [([], None), (["a"], "a"), (["x", "b", "b"], "b"), (["?", "a"], "a"), (["?", "?", "a"], "?"), (["a", "b"], "a")],
)
def test_most_rows_decide_and_a_known_look_wins_a_draw(rows: list[str], typical: str | None) -> None:
    assert typical_row(rows, lambda row: "" if row == "?" else row) == typical
