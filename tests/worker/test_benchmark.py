"""Benchmarks by the real worker function: equal to lm-eval's own backend, resumable, honest about truncation."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from app.benchmarks.models import Benchmark, Score
from app.checkpoints.models import Arm
from app.db import get, reading, transaction
from app.projects.models import Project
from app.prompts.strict_format import read_strict_format
from app.runs.models import Run
from app.runs.queue import outputs, resume
from tests.benchmarks.rows import demo_prompts, do, fresh_project, score, scores_of, stored_checkpoint, tiny_checkpoint
from worker.benchmark import TooManyTruncated, check_truncated


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about models, not about databases."""
    return fresh_project()


def by_lm_eval(run: Run, folder: Path, place: Path, limit: int | None) -> dict[str, list[dict[str, Any]]]:
    """task → samples, from lm-eval's own Hugging Face backend on the very same task files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = [path.stem for path in sorted(folder.glob("*.yaml"))]
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(place), "dtype": "float32"}, tasks=names, limit=limit, device="cpu",
        batch_size=8, bootstrap_iters=0, task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    assert found is not None
    return dict(found["samples"])


CASES = [
    ("hellaswag", 24, {"acc": "acc", "acc_norm": "acc_norm"}, 0),
    ("truthfulqa", 8, {"acc": "mc1"}, 0),
    ("mmlu", 1, {"acc": "acc"}, 1),
]


@pytest.mark.parametrize(("benchmark", "limit", "metrics", "num_fewshot"), CASES)
def test_scores_equal_lm_evals_own_backend(
    demo: Project, shared_data: Path, data_dir: Path, benchmark: str, limit: int, metrics: dict[str, str],
    num_fewshot: int,
) -> None:  # fmt: skip
    place = shared_data / "stories260k" / "hf"
    checkpoint = stored_checkpoint(demo, place, "stories260k")
    run = score(
        demo, checkpoint=checkpoint, benchmark=benchmark, data=str(shared_data / benchmark), limit=limit,
        num_fewshot=num_fewshot, batch_size=16, max_truncated=1,
    )  # fmt: skip
    assert run.status == "done", run.error
    theirs = by_lm_eval(run, data_dir / "runs" / str(run.id) / "lm_eval", place, limit)
    ours = {(row.metric, row.item): row for row in scores_of(run)}
    n = 0
    for task, samples in theirs.items():
        for sample in samples:
            item = f"{task.removeprefix('mmlu_')}/{sample['doc_id']}" if benchmark == "mmlu" else str(sample["doc_id"])
            for name, metric in metrics.items():
                mine = ours[task.removeprefix("truthfulqa_") if benchmark == "truthfulqa" else metric, item]
                assert mine.value == pytest.approx(sample[name], abs=1e-4)
                n += 1
            lls = [ll for ll, _ in sample["filtered_resps"]]
            stored = ours[
                ("mc1" if task.endswith("mc1") else "mc2") if benchmark == "truthfulqa" else next(iter(metrics)), item
            ]
            kept = stored if stored.detail else next(row for (_, i), row in ours.items() if i == item and row.detail)
            assert kept.detail["log_likelihoods"] == pytest.approx(lls, abs=1e-4)
    assert n == len(ours)
    if benchmark == "mmlu":
        assert len({row.category for row in ours.values()}) == 57


def test_chance_levels_and_clusters_are_those_of_the_items(demo: Project, shared_data: Path) -> None:
    checkpoint = stored_checkpoint(demo, shared_data / "stories260k" / "hf", "stories260k")
    run = score(demo, checkpoint=checkpoint, benchmark="truthfulqa", data=str(shared_data / "truthfulqa"), limit=5,
                max_truncated=1)  # fmt: skip
    with reading() as session:
        benchmark = get(session, Benchmark, outputs(session, run.id, "benchmark")[0])
    rows = json.loads((shared_data / "truthfulqa" / "mc_task.json").read_text())[:5]
    mc1 = sum(1 / len(row["mc1_targets"]) for row in rows) / 5
    mc2 = sum(sum(row["mc2_targets"].values()) / len(row["mc2_targets"]) for row in rows) / 5
    assert benchmark.settings["chance"] == pytest.approx({"mc1": mc1, "mc2": mc2}, abs=1e-6)
    assert {row.category for row in scores_of(run)} == {"Misconceptions"} or all(row.category for row in scores_of(run))


def test_truncation_stops_the_run_with_the_reason_before_anything_is_scored(demo: Project, shared_data: Path) -> None:
    checkpoint = stored_checkpoint(demo, shared_data / "stories260k" / "hf", "stories260k")
    values = {
        "checkpoint": checkpoint,
        "benchmark": "mmlu",
        "data": str(shared_data / "mmlu"),
        "num_fewshot": 5,
        "limit": 1,
    }
    run = score(demo, **values)
    assert run.status == "failed"
    assert "57 of 57 items (100%) exceed the model's context" in (run.error or "")
    assert not scores_of(run)
    told = score(demo, **values, max_truncated=1)
    assert told.status == "done"
    assert all(row.is_truncated for row in scores_of(told))


@pytest.mark.parametrize(("n_truncated", "n", "is_refused"), [(2, 10, False), (3, 10, True), (0, 0, False)])
def test_truncation_is_refused_above_the_recipes_share(n_truncated: int, n: int, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(TooManyTruncated):
            check_truncated(n_truncated, n, 0.2)
    else:
        check_truncated(n_truncated, n, 0.2)


def forget(run: Run, keep: int) -> None:
    """Leaves the run as a kill after `keep` scores would: those stay, the rest was never stored."""
    with transaction() as session:
        kept = session.exec(select(Score.id).where(Score.run_id == run.id).order_by(col(Score.id)).limit(keep)).all()
        session.execute(sa.delete(Score).where(col(Score.run_id) == run.id, col(Score.id).not_in(kept)))
        session.execute(sa.update(Run).where(col(Run.id) == run.id).values(status="cancelled"))
        resume(session, get(session, Run, run.id))


def as_set(run: Run) -> set[tuple[str, str, int, float | None, str]]:
    return {(r.metric, r.item, r.sample, r.value, json.dumps(r.detail, sort_keys=True)) for r in scores_of(run)}


def test_demo_facts_resumes_to_the_same_scores(demo: Project) -> None:
    checkpoint = tiny_checkpoint(demo)
    run = score(demo, checkpoint=checkpoint, benchmark="demo_facts", use_chat_template=True, batch_size=64)
    assert run.status == "done", run.error
    before = as_set(run)
    assert len(before) == 178  # 89 facts in two phrasings
    rows = scores_of(run)
    assert len({row.cluster for row in rows}) == 89
    assert all(row.value == float(row.detail["picked"] == int(row.detail["right"])) for row in rows)
    forget(run, keep=64)
    assert do(run.id).status == "done"
    assert as_set(run) == before
    with reading() as session:
        arm = get(session, Arm, outputs(session, run.id, "arm")[0])
        assert (arm.checkpoint_id, arm.decoding) == (checkpoint, {})


def test_strict_format_samples_counts_and_resumes(demo: Project) -> None:
    checkpoint = tiny_checkpoint(demo)
    with transaction() as session:
        prompts = demo_prompts(session, demo, 12)
    run = score(demo, checkpoint=checkpoint, benchmark="strict_format", prompt_set=prompts.id, samples=3, batch_size=8,
                max_new_tokens=24)  # fmt: skip
    assert run.status == "done", run.error
    rows = scores_of(run, "format")
    assert len(rows) == 36 and len(scores_of(run, "format_greedy")) == 12
    assert all(row.value == float(read_strict_format(row.detail["completion"]).is_strict) for row in rows)
    assert run.cost["generated_tokens"] == sum(
        row.detail["n_tokens"] for row in scores_of(run) if row.metric in {"format", "format_greedy"}
    )
    before = as_set(run)
    forget(run, keep=len(before) // 2 // 16 * 16)
    assert do(run.id).status == "done"
    assert as_set(run) == before


def test_the_same_settings_are_one_benchmark_and_others_a_new_version(demo: Project) -> None:
    checkpoint = tiny_checkpoint(demo)
    for values in ({}, {"batch_size": 32}, {"limit": 20}):
        assert (
            score(demo, checkpoint=checkpoint, benchmark="demo_facts", use_chat_template=True, **values).status
            == "done"
        )
    with reading() as session:
        found = session.exec(select(Benchmark.version, Benchmark.settings)).all()
    assert [(version, known["limit"]) for version, known in found] == [(1, None), (2, 20)]


def test_a_template_that_is_not_there_is_named(demo: Project, shared_data: Path) -> None:
    checkpoint = stored_checkpoint(demo, shared_data / "stories260k" / "hf", "stories260k")
    run = score(demo, checkpoint=checkpoint, benchmark="demo_facts", use_chat_template=True)
    assert run.status == "failed" and "no chat template" in (run.error or "")


@pytest.mark.parametrize("benchmark", ["mmlu", "hellaswag", "truthfulqa"])
def test_a_folder_without_the_files_is_named(demo: Project, tmp_path: Path, benchmark: str) -> None:
    run = score(demo, checkpoint=tiny_checkpoint(demo), benchmark=benchmark, data=str(tmp_path / "nothing"))
    assert run.status == "failed" and "holds no" in (run.error or "")


def test_log_likelihoods_are_finite_numbers(demo: Project) -> None:
    run = score(demo, checkpoint=tiny_checkpoint(demo), benchmark="demo_facts", limit=4)
    assert all(math.isfinite(ll) and ll < 0 for row in scores_of(run) for ll in row.detail["log_likelihoods"])
