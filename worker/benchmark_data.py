"""Local files of known benchmarks, written anew as the rows that lm-eval's own task definitions read."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from app.errors import Invalid
from app.prompts.demo_corpus import four_choice_items

OURS = Path(__file__).resolve().parent / "benchmark_tasks"
Rows = list[dict[str, Any]]
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
            with path.open(encoding="utf-8", newline="") as file:
                rows = [_mmlu_row(line, n, path) for n, line in enumerate(csv.reader(file), 1)]
            subjects.setdefault(subject, {})[split] = rows
    return {name: splits for name, splits in subjects.items() if "test" in splits}


def _maybe(data: str, pattern: str) -> list[Path]:
    place = Path(data).expanduser().resolve()
    return sorted(place.rglob(pattern)) if place.is_dir() else []


def _mmlu_row(line: list[str], n: int, path: Path) -> dict[str, Any]:
    if len(line) != 6 or line[5].strip() not in "ABCD":
        raise Invalid(f"{path.name}, row {n}: six columns are needed, the last one A, B, C or D.")
    return {"question": line[0], "choices": line[1:5], "answer": "ABCD".index(line[5].strip())}


def read_hellaswag(data: str) -> Rows:
    """Rows with HellaSwag's own fields, from JSON lines."""
    for path in find_files(data, "*.jsonl", "HellaSwag"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if rows and {"ctx_a", "ctx_b", "activity_label", "endings", "label"} <= set(rows[0]):
            names = ("ind", "activity_label", "ctx_a", "ctx_b", "endings", "label", "source_id")
            return [{name: row.get(name, "") for name in names} for row in rows]
    raise Invalid(
        f"Local files: no .jsonl in {data} has HellaSwag's fields ctx_a, ctx_b, activity_label, endings, label."
    )


def read_truthfulqa(data: str) -> Rows:
    """Rows as on the hub, from mc_task.json; categories from TruthfulQA.csv where it lies beside."""
    path = find_files(data, "mc_task.json", "TruthfulQA")[0]
    table = path.with_name("TruthfulQA.csv")
    categories = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            categories = {row["Question"]: row["Category"] for row in csv.DictReader(file)}
    return [
        {
            "question": row["question"],
            "category": categories.get(row["question"], ""),
            **{
                name: {"choices": list(row[name]), "labels": list(row[name].values())}
                for name in ("mc1_targets", "mc2_targets")
            },
        }
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


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
