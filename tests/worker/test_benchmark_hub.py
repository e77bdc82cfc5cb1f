"""Benchmarks that read the hub: at one commit for all arms, stored with the scores, whatever a cache holds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlmodel import select
from starlette.testclient import TestClient

from app.benchmarks.models import Benchmark, Score
from app.db import reading, transaction
from app.projects.models import Project
from app.runs.models import Run
from app.runs.queue import outputs, resume
from tests.benchmarks.rows import do, score, tiny_checkpoint
from tests.hub_server import Hub
from tests.servers import free_port
from tests.worker.test_hub import hub, lines, online
from worker.benchmark_data import ON_HUB, built_in

__all__ = ["hub", "online"]  # fixtures

HELLASWAG, PAIRS, PROMPTS = "Rowan/hellaswag", "PKU-Alignment/PKU-SafeRLHF", "PKU-Alignment/BeaverTails-Evaluation"


@pytest.fixture
def database(sqlite_database: str) -> str:
    """What is asked of the hub does not depend on the database."""
    return sqlite_database


def hellaswag(n: int, word: str) -> dict[str, bytes]:
    rows: list[dict[str, Any]] = [
        {"ind": k, "activity_label": "Rome", "ctx_a": f"The {word} of {k} is", "ctx_b": "", "source_id": f"a~{k}",
         "endings": ["one", "two", "three", f"{word}"], "label": str(k % 4)} for k in range(n)
    ]  # fmt: skip
    return {"data/train.jsonl": lines(*rows[:1]), "data/validation.jsonl": lines(*rows)}


def benchmark_of(run: Run) -> Benchmark:
    assert run.status == "done", run.error
    with reading() as session:
        return session.get_one(Benchmark, outputs(session, run.id, "benchmark")[0])


def test_all_arms_of_a_project_read_one_commit_until_somebody_asks_for_the_newest(
    client: TestClient, project: Project, online: Hub, data_dir: Path
) -> None:
    first = online.add("datasets", HELLASWAG, hellaswag(6, "capital"))
    arms = [tiny_checkpoint(project, 1, name) for name in ("one", "two")]
    asked = {"benchmark": "hellaswag", "max_truncated": 1}
    one = score(project, checkpoint=arms[0], **asked)
    second = online.add("datasets", HELLASWAG, hellaswag(7, "river"))
    two = score(project, checkpoint=arms[1], **asked)
    same = benchmark_of(one)
    assert same.settings["hub"] == [f"{HELLASWAG}@{first}"] and benchmark_of(two).id == same.id
    with reading() as session:
        prompts = {
            row.detail["prompt"] for row in session.exec(select(Score).where(Score.run_id == two.id)) if row.detail
        }
        item = session.exec(select(Score.id).where(Score.run_id == one.id)).first()
    assert len(prompts) == 6 and all("capital" in one for one in prompts)
    for page in (f"/p/demo/benchmarks/{same.id}/items/{item}", f"/p/demo/benchmarks/{same.id}",
                 f"/p/demo/runs/{one.id}/panel/benchmark"):  # fmt: skip
        assert f"{HELLASWAG}@{first}" in client.get(page).text, page

    renewed = benchmark_of(score(project, checkpoint=arms[0], is_data_renewed=True, **asked))
    assert renewed.settings["hub"] == [f"{HELLASWAG}@{second}"] and renewed.version == 2
    assert benchmark_of(score(project, checkpoint=arms[1], seed=2, **asked)).id == renewed.id

    online.add("datasets", HELLASWAG, hellaswag(8, "tower"))
    with transaction() as session:  # an attempt that goes on reads what the first one read
        run = session.get_one(Run, one.id)
        run.status = "cancelled"
        for row in session.exec(select(Score).where(Score.run_id == one.id)):
            session.delete(row)
        session.flush()
        resume(session, run)
    assert benchmark_of(do(one.id)).id == same.id


def test_what_the_cache_holds_of_another_commit_is_not_taken_for_the_one_that_is_pinned(
    project: Project, online: Hub, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = online.add("datasets", HELLASWAG, hellaswag(6, "capital"))
    arm = tiny_checkpoint(project)
    asked = {"checkpoint": arm, "benchmark": "hellaswag", "max_truncated": 1}
    pinned = score(project, **asked)
    online.add("datasets", HELLASWAG, hellaswag(7, "river"))
    newer = score(project, is_data_renewed=True, **asked)
    with transaction() as session:
        session.get_one(Run, pinned.id).status = "queued"
        for row in session.exec(select(Score).where(Score.run_id == pinned.id)):
            session.delete(row)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert newer.status == "done"
    again = do(pinned.id)
    assert again.status == "failed" and f"could not be read at commit {first}" in str(again.error)


def test_pku_pins_both_of_its_data_sets(project: Project, online: Hub, data_dir: Path) -> None:
    pairs = online.add("datasets", PAIRS, {"test.jsonl": lines({
        "prompt": "How?", "response_0": "So.", "response_1": "Not so.", "better_response_id": 0, "safer_response_id": 1,
    })})  # fmt: skip
    prompts = online.add("datasets", PROMPTS, {"test.jsonl": lines({"prompt": "Why?", "category": "privacy"})})
    run = score(project, checkpoint=tiny_checkpoint(project), benchmark="pku_saferlhf", max_new_tokens=4)
    assert benchmark_of(run).settings["hub"] == [f"{PAIRS}@{pairs}", f"{PROMPTS}@{prompts}"]


def test_a_task_that_names_a_configuration_reads_that_one(project: Project, online: Hub, data_dir: Path) -> None:
    targets = {"choices": ["Rome", "Oslo"], "labels": [1, 0]}
    commit = online.add("datasets", ON_HUB["truthfulqa"], {
        "README.md": b"---\nconfigs:\n- config_name: generation\n  data_files: other.jsonl\n"
                     b"- config_name: multiple_choice\n  data_files: [{split: validation, path: mc.jsonl}]\n---\n",
        "other.jsonl": lines({"a": 1}),
        "mc.jsonl": lines({"question": "Where?", "mc1_targets": targets, "mc2_targets": targets}),
    })  # fmt: skip
    run = score(project, checkpoint=tiny_checkpoint(project), benchmark="truthfulqa", max_truncated=1)
    found = benchmark_of(run).settings
    assert found["hub"] == [f"{ON_HUB['truthfulqa']}@{commit}"] and found["n_items"] == 1


def test_a_hub_that_refuses_says_what_to_do(project: Project, online: Hub, data_dir: Path) -> None:
    online.failing["truthfulqa/truthful_qa"] = 429
    run = score(project, checkpoint=tiny_checkpoint(project), benchmark="truthfulqa")
    assert run.status == "failed" and "too many requests: wait" in str(run.error) and "Traceback" not in str(run.error)


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [("mmlu", "mmlu/default/_default_template_yaml"), ("hellaswag", "hellaswag/hellaswag.yaml"),
     ("truthfulqa", "truthfulqa/truthfulqa_mc1.yaml")],
)  # fmt: skip
def test_what_is_pinned_is_what_lm_eval_reads(benchmark: str, file: str) -> None:
    text = Path(built_in(file)).read_text(encoding="utf-8").replace("!function", "")
    assert yaml.safe_load(text)["dataset_path"] == ON_HUB[benchmark]
