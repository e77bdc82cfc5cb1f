"""Odd rows of benchmarks: scored as lm-eval's own backend scores them, or refused with the row and the remedy."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.checkpoints.arms import find_or_make_arm
from app.config import settings
from app.db import transaction
from app.projects.models import Project
from tests.benchmarks.rows import fresh_project, score, scores_of, tiny_checkpoint
from worker.benchmark_pku import read_json_rows
from worker.saving import seal_folder

SYSTEM = "You are brief."
LONG = "Rome was not built in a day. " * 40
ENDINGS = [
    ["one", "two", "three", "four"],
    ["one", "two", "three", "four"],  # twice the same
    ["", "a", "a", " b"],  # an empty one, two that are equal, one that begins with a space
    ["東京は大きい。", "Ünïcödé — 👩‍🚀", "a\u2028b", "نعم"],
    ["yes", "yes and no", "no", "x " * 30],
]


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    return fresh_project()


def hellaswag(folder: Path) -> Path:
    contexts = ["Paris is", "Paris is", "  Rome  ", "日本の首都は [title] x", LONG]
    rows = [
        {
            "ind": n,
            "activity_label": "City",
            "ctx_a": text,
            "ctx_b": "end" * (n % 2),
            "endings": endings,
            "label": n % 4,
        }
        for n, (text, endings) in enumerate(zip(contexts, ENDINGS, strict=True))
    ]
    path = folder / "hellaswag.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def mmlu(folder: Path, *more: list[str]) -> Path:
    rows = [
        ["What is\n“2 + 2”?", "3", "4", "5", "", "B"],
        ["What is\n“2 + 2”?", "3", "4", "5", "", "B"],
        ["Où est Paris ?", "France", "France", "Italie", "日本", " A "],
        [LONG, "a", "b", "c", "d", "D"],
    ]
    for subject in ("anatomy", "astronomy"):
        for split, some in (("test", [*rows, *more]), ("dev", rows[:3])):
            with (folder / f"{subject}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(some)
    return folder


def truthfulqa(folder: Path) -> Path:
    rows = [
        {
            "question": "Où est “Rome”?",
            "mc1_targets": {"Ici.": 1, "Là.": 0},
            "mc2_targets": {"a": 1, "b": 0, "日本": 1, "ab": 0},
        },
        {"question": "Où est “Rome”?", "mc1_targets": {"Ici.": 1, "Là.": 0}, "mc2_targets": {"a": 0, "": 1}},
        {"question": LONG, "mc1_targets": {"only": 1}, "mc2_targets": {"only": 1, "and this ": 1}},
    ]
    (folder / "mc_task.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def by_lm_eval(run_id: int, **given: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """(task, item) → sample, from lm-eval's own backend as its command calls it, on the same task files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = settings().data_path / "runs" / str(run_id) / "lm_eval"
    place = settings().data_path / "tiny" / "1" / "model"
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(place), "dtype": "float32"}, device="cpu", batch_size=3,
        tasks=[path.stem for path in sorted(folder.glob("*.yaml"))], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False), **given,
    )  # fmt: skip
    assert found is not None
    return {(task, one["doc_id"]): one for task, some in found["samples"].items() for one in some}


@pytest.mark.parametrize(
    ("benchmark", "num_fewshot", "with_template"),
    [("hellaswag", 0, False), ("truthfulqa", 0, False), ("mmlu", 2, False), ("mmlu", 2, True), ("mmlu", 0, True)],
)
def test_odd_rows_score_as_by_lm_evals_own_backend(
    demo: Project, tmp_path: Path, benchmark: str, num_fewshot: int, with_template: bool
) -> None:
    checkpoint = tiny_checkpoint(demo)
    data = {"hellaswag": hellaswag, "truthfulqa": truthfulqa, "mmlu": mmlu}[benchmark](tmp_path)
    asked: dict[str, Any] = {"checkpoint": checkpoint}
    if with_template:
        with transaction() as session:
            asked = {"arm": find_or_make_arm(session, demo.id, checkpoint=checkpoint, system=SYSTEM, decoding={}).id}
    run = score(
        demo, benchmark=benchmark, data=str(data), num_fewshot=num_fewshot, use_chat_template=with_template,
        batch_size=2, max_truncated=1, **asked,
    )  # fmt: skip
    assert run.status == "done", run.error
    given = {"apply_chat_template": True, "system_instruction": SYSTEM} if with_template else {}
    theirs = by_lm_eval(run.id, **given)
    ours = {(row.metric, row.item): row for row in scores_of(run)}
    n_read = 0
    assert len(ours) == len(theirs) * (2 if benchmark == "hellaswag" else 1)
    for (task, number), sample in theirs.items():
        item = f"{task.removeprefix('mmlu_')}/{number}" if benchmark == "mmlu" else str(number)
        for metric in ("acc", "acc_norm") if benchmark == "hellaswag" else ("acc",):
            row = ours[task.removeprefix("truthfulqa_") if benchmark == "truthfulqa" else metric, item]
            assert row.value == pytest.approx(sample[metric], abs=1e-6), (item, metric)
            if row.detail:  # the words are kept once
                lls = [ll for ll, _ in sample["filtered_resps"]]
                assert row.detail["log_likelihoods"] == pytest.approx(lls, abs=1e-4)
                n_read += 1
    assert n_read == len(theirs)
    cut = {row.is_truncated for row in ours.values()}
    assert True in cut and (benchmark == "truthfulqa" or num_fewshot or False in cut)


REFUSED: list[tuple[str, str, str, str]] = [
    ("mmlu", "anatomy_test.csv", "What?,a,b,c,d,\n", "row 1: six columns are needed, the last one A, B, C or D"),
    ("mmlu", "anatomy_test.csv", "What?,a,b,c,d,AB\n", "row 1: six columns are needed, the last one A, B, C or D"),
    ("mmlu", "cooking_test.csv", "What?,a,b,c,d,A\n", "MMLU has no subject cooking"),
    ("hellaswag", "x.jsonl", '{"ctx_a": "A", "ctx_b": "", "activity_label": "b", "endings": ["c"], "label": ""}',
     "row 1: the label '' is none of its 1 endings"),
    ("hellaswag", "x.jsonl", '{"ctx_a": "A", "ctx_b": "", "activity_label": "b", "endings": [], "label": 0}',
     "row 1: ctx_a, ctx_b, activity_label are needed as texts, and endings"),
    ("hellaswag", "x.jsonl", '{"ctx_a": "A"}\n{', "x.jsonl, line 2: no JSON"),
    ("truthfulqa", "mc_task.json", '[{"question": "Why?", "mc1_targets": {"a": 0, "b": 1}, "mc2_targets": {"a": 1}}]',
     "row 1: mc1_targets must begin with the one right answer"),
    ("truthfulqa", "mc_task.json", '[{"question": "Why?", "mc1_targets": {"a": 1}}]', "row 1: mc2_targets needs an"),
    ("truthfulqa", "mc_task.json", '[{"question": "Why?", "mc1_targets": {"": 1}, "mc2_targets": {"a": 1}}]',
     "row 1: an answer is empty"),
    ("pku_saferlhf", "a.jsonl", '{"prompt": "Why?", "response_0": "So."}', "has no prompt, no response_1"),
    ("pku_saferlhf", "a.jsonl.gz", "no gzip", "a.jsonl.gz cannot be read"),
    ("mmlu", "anatomy_test.csv", "\udcff,a,b,c,d,A\n", "anatomy_test.csv cannot be read as UTF-8 text"),
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "name", "text", "said"), REFUSED)
def test_what_cannot_be_scored_is_refused_with_its_row(
    demo: Project, tmp_path: Path, benchmark: str, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    run = score(demo, checkpoint=tiny_checkpoint(demo), benchmark=benchmark, data=str(tmp_path))
    assert run.status == "failed" and said in str(run.error), run.error
    assert "Traceback" not in str(run.error)


@pytest.mark.parametrize(
    ("choice", "use_chat_template", "said"),
    [
        ("", True, "an empty choice has no log-likelihood"),
        ("Rome " * 200, False, "does not fit this model's context of"),
    ],
)
def test_a_choice_that_has_no_log_likelihood_names_its_item(
    demo: Project, tmp_path: Path, choice: str, use_chat_template: bool, said: str
) -> None:
    rows = [
        {"ctx_a": "Rome is", "ctx_b": "", "activity_label": "City", "endings": ["old", one], "label": 0}
        for one in ("new", choice)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = score(
        demo, checkpoint=tiny_checkpoint(demo), benchmark="hellaswag", data=str(tmp_path), max_truncated=1,
        use_chat_template=use_chat_template,
    )  # fmt: skip
    assert run.status == "failed" and said in str(run.error), run.error
    assert "hellaswag, item 1" in str(run.error)


def test_log_likelihoods_that_are_no_numbers_are_no_scores(demo: Project) -> None:
    checkpoint = tiny_checkpoint(demo)
    file = settings().data_path / "tiny" / "1" / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    seal_folder(file.parent)
    run = score(demo, checkpoint=checkpoint, benchmark="demo_facts", limit=2)
    assert run.status == "failed" and "log-likelihoods are not finite numbers" in str(run.error), run.error
    assert not scores_of(run)


def test_a_line_ends_where_json_lines_say_so() -> None:
    assert read_json_rows('{"a": "b\u2028c\x85d"}\n{"a": "e"}\n', "x") == [{"a": "b\u2028c\x85d"}, {"a": "e"}]
