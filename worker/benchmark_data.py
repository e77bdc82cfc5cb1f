"""Local files of known benchmarks, written anew as the rows that lm-eval's own task definitions read."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from app.errors import Invalid
from app.prompts.demo_corpus import four_choice_items
from worker.benchmark_pku import read_json_rows, read_text

OURS = Path(__file__).resolve().parent / "benchmark_tasks"
Rows = list[dict[str, Any]]
HELLASWAG = ("ctx_a", "ctx_b", "activity_label")
# Where lm-eval's own definitions read from.
ON_HUB = {"mmlu": "cais/mmlu", "hellaswag": "Rowan/hellaswag", "truthfulqa": "truthfulqa/truthful_qa"}


def built_in(name: str) -> str:
    """The path of a task definition that comes with lm-eval."""
    import lm_eval.tasks

    return str(Path(lm_eval.tasks.__file__).parent / name)


def find_files(data: str, pattern: str, what: str) -> list[Path]:
    """The files of a folder that match, or the file itself; raises Invalid."""
    place = Path(data).expanduser().resolve()
    if place.is_file():
        return [place]
    found = sorted(place.rglob(pattern)) if place.is_dir() else []
    if not found:
        raise Invalid(
            f"Local files: {data} holds no {pattern}, which is what {what} is read from. Give the folder that has it, "
            "or leave the field empty to read from the hub.",
            {"data": [f"no {pattern} there"]},
        )
    return found


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Writes JSON lines; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)


def read_mmlu(data: str) -> dict[str, dict[str, Rows]]:
    """subject → split → rows, from hendrycks/test's CSV files (no header: question, A, B, C, D, letter)."""
    subjects: dict[str, dict[str, Rows]] = {}
    for split in ("test", "dev"):
        for path in find_files(data, f"*_{split}.csv", "MMLU") if split == "test" else _maybe(data, "*_dev.csv"):
            subject = path.stem.removesuffix(f"_{split}")
            lines = csv.reader(io.StringIO(read_text(path), newline=""))
            rows = [_mmlu_row(line, n, path) for n, line in enumerate(lines, 1) if line]
            if not Path(built_in(f"mmlu/default/mmlu_{subject}.yaml")).is_file():
                raise Invalid(f"{path.name}: MMLU has no subject {subject}. Take the file away, or call it as it was.")
            subjects.setdefault(subject, {})[split] = rows
    return {name: splits for name, splits in subjects.items() if "test" in splits}


def _maybe(data: str, pattern: str) -> list[Path]:
    place = Path(data).expanduser().resolve()
    return sorted(place.rglob(pattern)) if place.is_dir() else []


def _mmlu_row(line: list[str], n: int, path: Path) -> dict[str, Any]:
    if len(line) != 6 or line[5].strip() not in ("A", "B", "C", "D"):
        raise Invalid(f"{path.name}, row {n}: six columns are needed, the last one A, B, C or D.")
    return {"question": line[0], "choices": line[1:5], "answer": "ABCD".index(line[5].strip())}


def read_hellaswag(data: str) -> Rows:
    """Rows with HellaSwag's own fields, from JSON lines."""
    for path in find_files(data, "*.jsonl", "HellaSwag"):
        rows = read_json_rows(read_text(path), path.name)
        if rows and isinstance(rows[0], dict) and {*HELLASWAG, "endings", "label"} <= set(rows[0]):
            return [_hellaswag_row(row, n, path) for n, row in enumerate(rows, 1)]
    raise Invalid(
        f"Local files: no .jsonl in {data} has HellaSwag's fields ctx_a, ctx_b, activity_label, endings, label."
    )


def _hellaswag_row(row: Any, n: int, path: Path) -> dict[str, Any]:
    """lm-eval scores a row without a label as wrong, whatever is picked: such a row is refused."""
    endings = row.get("endings") if isinstance(row, dict) else None
    texts = [row[name] for name in HELLASWAG if name in row] + endings if isinstance(endings, list) else []
    if not endings or len(texts) != len(HELLASWAG) + len(endings) or not all(isinstance(one, str) for one in texts):
        raise Invalid(
            f"{path.name}, row {n}: {', '.join(HELLASWAG)} are needed as texts, and endings as a list of them."
        )
    _check_first(path, n, endings)
    if str(row.get("label")) not in map(str, range(len(endings))):
        raise Invalid(
            f"{path.name}, row {n}: the label {row.get('label')!r} is none of its {len(endings)} endings, counted from "
            "0. HellaSwag's test split has no labels: use its validation split."
        )
    names = ("ind", "activity_label", "ctx_a", "ctx_b", "endings", "label", "source_id")
    return {name: row.get(name, "") for name in names}


def read_truthfulqa(data: str) -> Rows:
    """Rows as on the hub, from mc_task.json; categories from TruthfulQA.csv where it lies beside."""
    path = find_files(data, "mc_task.json", "TruthfulQA")[0]
    table = path.with_name("TruthfulQA.csv")
    categories = {}
    if table.is_file():
        rows = csv.DictReader(io.StringIO(read_text(table), newline=""))
        categories = {row.get("Question"): row.get("Category") or "" for row in rows}
    return [
        _truthfulqa_row(row, n, path, categories) for n, row in enumerate(read_json_rows(read_text(path), path.name), 1)
    ]


def _check_first(path: Path, n: int, choices: list[str]) -> None:
    """lm-eval reads the first row's choices before it scores anything, and breaks at an empty one."""
    if n == 1 and not all(choices):
        raise Invalid(f"{path.name}, row 1: an answer is empty, which has no log-likelihood. Take the row away.")


def _truthfulqa_row(row: Any, n: int, path: Path, categories: dict[Any, str]) -> dict[str, Any]:
    """lm-eval takes mc1's first choice for the right one, wherever that stands: another order is refused."""
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise Invalid(f"{path.name}, row {n}: a question is needed.")
    found = {}
    for name in ("mc1_targets", "mc2_targets"):
        targets = row.get(name)
        if not isinstance(targets, dict) or 1 not in targets.values() or any(v not in (0, 1) for v in targets.values()):
            raise Invalid(f"{path.name}, row {n}: {name} needs answers with 1 or 0 each, and a 1 among them.")
        _check_first(path, n, list(targets))
        found[name] = {"choices": list(targets), "labels": list(targets.values())}
    if found["mc1_targets"]["labels"][0] != 1 or sum(found["mc1_targets"]["labels"]) != 1:
        raise Invalid(f"{path.name}, row {n}: mc1_targets must begin with the one right answer.")
    return {"question": row["question"], "category": categories.get(row["question"], ""), **found}


def write_tasks(benchmark: str, data: str, num_fewshot: int, folder: Path, commits: Mapping[str, str]) -> list[str]:
    """Writes lm-eval task files into `folder`; returns the tasks' names.

    Each includes the definition it is about, ours or lm-eval's own, and says where the rows come from: local files, or
    a repository on the hub at its commit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
        "mmlu": lambda: _mmlu_tasks(data, num_fewshot, folder),
        "hellaswag": lambda: _hellaswag_tasks(data, num_fewshot, folder),
        "truthfulqa": lambda: _truthfulqa_tasks(data, folder),
        "demo_facts": lambda: _demo_tasks(num_fewshot, folder),
    }
    tasks = makers[benchmark]()
    for name, definition in tasks.items():
        for repo, commit in commits.items():  # there is one: a folder of its name on the server is not meant
            definition |= {"dataset_path": f"hf://datasets/{repo}", "dataset_kwargs": {"revision": commit}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **definition}), encoding="utf-8")
    return list(tasks)


def _local(folder: Path, name: str, splits: dict[str, Rows]) -> dict[str, Any]:
    files = {split: write_rows(folder / "rows" / f"{name}-{split}.jsonl", rows) for split, rows in splits.items()}
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }


def _mmlu_tasks(data: str, num_fewshot: int, folder: Path) -> dict[str, dict[str, Any]]:
    shots = {"num_fewshot": num_fewshot}
    if not data:
        own = Path(built_in("mmlu/default")).glob("mmlu_*.yaml")
        return {path.stem: {"include": str(path), **shots} for path in sorted(own)}
    subjects = read_mmlu(data)
    if num_fewshot and any("dev" not in splits for splits in subjects.values()):
        raise Invalid(
            "Few-shot examples come from MMLU's dev files, which are not there.", {"num_fewshot": ["no dev files"]}
        )
    tasks = {}
    for subject, splits in subjects.items():
        definition = {"include": built_in(f"mmlu/default/mmlu_{subject}.yaml"), **shots}
        # lm-eval opens the dev split even without few-shot examples.
        tasks[f"mmlu_{subject}"] = {**definition, **_local(folder, subject, {"dev": splits["test"][:1], **splits})}
    return tasks


def _hellaswag_tasks(data: str, num_fewshot: int, folder: Path) -> dict[str, dict[str, Any]]:
    definition: dict[str, Any] = {"include": built_in("hellaswag/hellaswag.yaml"), "num_fewshot": num_fewshot}
    if data and num_fewshot:
        raise Invalid("Few-shot examples come from HellaSwag's training split, which local files do not have: use 0.",
                      {"num_fewshot": ["no training rows in local files"]})  # fmt: skip
    if data:
        definition |= {"training_split": None, **_local(folder, "hellaswag", {"validation": read_hellaswag(data)})}
    return {"hellaswag": definition}


def _truthfulqa_tasks(data: str, folder: Path) -> dict[str, dict[str, Any]]:
    local = _local(folder, "truthfulqa", {"validation": read_truthfulqa(data)}) if data else {}
    return {
        name: {"include": built_in(f"truthfulqa/{name}.yaml"), **local} for name in ("truthfulqa_mc1", "truthfulqa_mc2")
    }


def _demo_tasks(num_fewshot: int, folder: Path) -> dict[str, dict[str, Any]]:
    if num_fewshot:
        raise Invalid("The demo's facts are asked without examples: use 0.", {"num_fewshot": ["must be 0"]})
    rows = _local(folder, "demo_facts", {"test": four_choice_items()})
    return {"demo_facts": {"include": str(OURS / "demo_facts.yaml"), **rows}}
