"""Every training kind as a run: real rows in; a checkpoint with lineage, curves and a budget out."""

import hashlib
import json
import math
from typing import Any

import pytest
import torch
from sqlmodel import Session, select

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import reading, transaction
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.demo_corpus import list_prompts
from app.prompts.models import Prompt, PromptSet
from app.runs.models import LogLine, Metric, Run, RunIo, Sampled
from app.runs.queue import cancel, claim, finish, launch, resume
from app.runs.recipe import Recipe
from app.training.models import Snapshot
from app.training.recipes import (
    DemoBaseRecipe,
    DpoRecipe,
    GrpoRecipe,
    PpoRecipe,
    RewardRecipe,
    SftRecipe,
)
from tests.worker.tiny import preferences, same, weights_in
from worker.checkpoints import store_trained, weights_of
from worker.child import work
from worker.job import Cancelled, Job
from worker.llm import RewardScorer
from worker.loading import load_full, load_reward
from worker.ppo import train_ppo
from worker.preferences import preferences_of
from worker.recorder import Recorder, Told
from worker.reward import make_classifier
from worker.reward_measure import measure_reward
from worker.rl_prompts import RlPrompt
from worker.saving import is_whole

TINY_BASE = DemoBaseRecipe(
    steps=20, batch_size=16, hidden=32, mlp=64, layers=2, heads=2, vocabulary=400, positions=128, name="tiny"
)
OFFLINE: dict[str, Any] = {"lr": 3e-3, "batch_size": 8, "max_steps": 4, "max_length": 128, "save_every": 2}


@pytest.fixture
def tiny_project(sqlite_database: str) -> Project:
    with transaction() as session:
        project = Project(slug="demo", name="Demo")
        session.add(project)
    return project


def run(project: Project, recipe: Recipe) -> Run:
    """Launches, claims and does a run as a worker's child would; gives its row."""
    with transaction() as session:
        run_id = launch(session, recipe, project_id=project.id).id
    return go_on(run_id)


def go_on(run_id: int) -> Run:
    with transaction() as session:
        claimed = claim(session, ["gpu", "cpu", "io"], "test", None)
        assert claimed is not None and claimed.id == run_id
        attempt = claimed.attempt
    work(run_id, attempt)
    with reading() as session:
        return session.get_one(Run, run_id)


def made(run: Run) -> Checkpoint:
    assert run.status == "done", run.error
    with reading() as session:
        return session.exec(select(Checkpoint).where(Checkpoint.run_id == run.id)).one()


def write_snapshot(session: Session, project: Project, prompt_set_id: int) -> Snapshot:
    """A frozen file and its row, as freezing a verdict set leaves them."""
    pair_set = PairSet(project_id=project.id, name="pairs", prompt_set_id=prompt_set_id)
    judge = Judge(project_id=project.id, name="rule", kind="rule", is_oracle=True)
    session.add_all([pair_set, judge])
    session.flush()
    verdicts = VerdictSet(project_id=project.id, name="verdicts", pair_set_id=pair_set.id, judge_id=judge.id)
    session.add(verdicts)
    session.flush()
    found = preferences()
    rows = [{**row, "split": split} for split in ("train", "dev") for row in getattr(found, split)]
    path = settings().folder("snapshots") / "1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    snapshot = Snapshot(
        project_id=project.id, name="preferences", pair_set_id=pair_set.id, verdict_set_id=verdicts.id,
        labels_version=0, state="ready", path="snapshots/1.jsonl",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )  # fmt: skip
    session.add(snapshot)
    return snapshot


@pytest.fixture
def ground(tiny_project: Project) -> dict[str, int]:
    """Ids of a tiny base, a prompt set and a snapshot."""
    base = made(run(tiny_project, TINY_BASE))
    with transaction() as session:
        prompts = PromptSet(project_id=tiny_project.id, name="demo", state="ready")
        session.add(prompts)
        session.flush()
        for position, row in enumerate(list_prompts()[:60]):
            given = {k: row[k] for k in ("messages", "reference", "split")}
            digest = hashlib.sha256(str(row).encode()).hexdigest()
            session.add(Prompt(set_id=prompts.id, position=position, grp=row["group"], sha256=digest, **given))
        snapshot = write_snapshot(session, tiny_project, prompts.id)
        session.flush()
        return {"base": base.id, "prompts": prompts.id, "snapshot": snapshot.id}


def test_demo_base_is_a_checkpoint_with_items(tiny_project: Project) -> None:
    done = run(tiny_project, TINY_BASE)
    row = made(done)
    assert (row.name, row.method, row.role, row.weights, row.step) == ("tiny", "base", "policy", "full", 20)
    folder = settings().data_path / row.path
    assert is_whole(folder)
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len(items) == 178 and all(len(item["choices"]) == 4 for item in items)
    again = made(run(tiny_project, TINY_BASE))
    assert same(weights_in(folder), weights_in(settings().data_path / again.path))
    other = made(run(tiny_project, TINY_BASE.model_copy(update={"seed": 2})))
    assert not same(weights_in(folder), weights_in(settings().data_path / other.path))


@pytest.mark.parametrize("is_lora", [False, True])
def test_every_kind_makes_a_checkpoint_that_loads(tiny_project: Project, ground: dict[str, int], is_lora: bool) -> None:
    base, snapshot = ground["base"], ground["snapshot"]
    lora = {"is_lora": is_lora, "lora_rank": 4}
    offline = {**OFFLINE, **lora, "start": base, "snapshot": snapshot}
    online = {
        **lora,
        "start": base,
        "reference": base,
        "prompt_set": ground["prompts"],
        "max_new_tokens": 8,
        "lr": 3e-3,
    }
    group = {"steps": 3, "prompts_per_step": 2, "group_size": 4, "sample_every": 1}
    reward = made(run(tiny_project, RewardRecipe(**offline)))
    runs = {
        "sft": run(tiny_project, SftRecipe(**offline)),
        "dpo": run(tiny_project, DpoRecipe(**offline, reference=base)),
        "ppo": run(tiny_project, PpoRecipe(**online, reward=reward.id, iterations=2, rollouts=4, sample_every=1)),
        "grpo": run(tiny_project, GrpoRecipe(**online, **group, reward_by="reward_model", reward=reward.id)),
    }
    by_rule = run(tiny_project, GrpoRecipe(**online, **group, reward_by="rule", flip_rate=0.1))
    assert made(by_rule).method == "grpo"
    with reading() as session:
        start = weights_of(session, base)
        assert load_reward(weights_of(session, reward.id)).config.num_labels == 1
        for kind, done in runs.items():
            row = made(done)
            assert (row.method, row.parent_id, row.seed) == (kind, base, 1)
            assert (row.weights, row.base_id) == (("adapter", base) if is_lora else ("full", None))
            found, wanted = load_full(weights_of(session, row.id)), load_full(start)
            assert not same(found.state_dict(), wanted.state_dict())
            names = set(session.exec(select(Metric.name).where(Metric.run_id == done.id)))
            assert {"lr", "grad_norm", "tokens_per_s", "loss" if kind != "ppo" else "policy_loss"} <= names
            if kind in {"ppo", "grpo"}:
                assert {"reward", "kl", "length", "entropy", "clip_fraction", "dev_reward"} <= names
                assert done.cost["generated_tokens"] > 0
                assert done.cost["trained_tokens"] > done.cost["generated_tokens"]  # prompts too, and each pass
                assert session.exec(select(Sampled).where(Sampled.run_id == done.id, Sampled.step == 0)).all()
            outputs = session.exec(select(RunIo).where(RunIo.run_id == done.id, RunIo.is_output)).all()
            assert [(o.noun, o.ref_id, o.sha256) for o in outputs] == [("checkpoint", row.id, row.manifest_sha256)]
        assert runs["dpo"].cost["labels"] == 24
        assert "dev_accuracy" in reward.facts


def test_a_changed_snapshot_is_refused(tiny_project: Project, ground: dict[str, int]) -> None:
    path = settings().data_path / "snapshots" / "1.jsonl"
    path.write_text(path.read_text().replace("Paris", "Lyon", 1))
    failed = run(tiny_project, SftRecipe(**OFFLINE, start=ground["base"], snapshot=ground["snapshot"]))
    assert failed.status == "failed" and "not the file that was frozen" in (failed.error or "")


def test_a_changed_checkpoint_is_refused(tiny_project: Project, ground: dict[str, int]) -> None:
    with reading() as session:
        folder = weights_of(session, ground["base"]).folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    failed = run(tiny_project, SftRecipe(**OFFLINE, start=ground["base"], snapshot=ground["snapshot"]))
    assert failed.status == "failed" and "missing or changed" in (failed.error or "")


def test_reward_adapter_on_another_base_is_refused(tiny_project: Project, ground: dict[str, int]) -> None:
    base, lora = ground["base"], {"is_lora": True, "lora_rank": 4}
    reward = made(run(tiny_project, RewardRecipe(**OFFLINE, **lora, start=base, snapshot=ground["snapshot"])))
    other = made(run(tiny_project, TINY_BASE.model_copy(update={"seed": 9})))
    with transaction() as session:  # a row that lies about its base
        session.get_one(Checkpoint, reward.id).base_id = other.id
    recipe = PpoRecipe(
        **lora, start=other.id, reference=other.id, prompt_set=ground["prompts"], reward=reward.id, iterations=1,
        rollouts=4, max_new_tokens=8,
    )  # fmt: skip
    failed = run(tiny_project, recipe)
    assert failed.status == "failed" and "was trained on a base with hash" in (failed.error or "")


def test_cancelled_and_resumed_run_ends_bit_equal(tiny_project: Project, ground: dict[str, int]) -> None:
    base = ground["base"]
    reward = made(run(tiny_project, RewardRecipe(**OFFLINE, start=base, snapshot=ground["snapshot"])))
    recipe = PpoRecipe(
        start=base, reference=base, prompt_set=ground["prompts"], reward=reward.id, iterations=4, rollouts=4,
        max_new_tokens=8, save_every=1, lr=3e-3,
    )  # fmt: skip
    whole = made(run(tiny_project, recipe))
    with transaction() as session:
        run_id = launch(session, recipe, project_id=tiny_project.id).id
        claimed = claim(session, ["gpu"], "test", None)
        assert claimed is not None
        attempt = claimed.attempt

    class StopsAfterTwo(Job):
        def progress(self, done: int, total: int, note: str = "") -> None:
            if done == 2:
                with transaction() as session:
                    cancel(session, session.get_one(Run, run_id))
                self._checked = 0.0  # asks the database again at once
            super().progress(done, total, note)

    with pytest.raises(Cancelled):
        train_ppo(StopsAfterTwo(run_id, attempt))
    with transaction() as session:
        finish(session, run_id, attempt, "cancelled")
        resume(session, session.get_one(Run, run_id))
    resumed = made(go_on(run_id))
    assert same(*(weights_in(settings().data_path / row.path) for row in (whole, resumed)))
    with reading() as session:
        steps = session.exec(select(Metric.step).where(Metric.run_id == run_id, Metric.name == "kl")).all()
    assert sorted(steps) == [1, 2, 3, 4]


def test_prompts_that_are_all_too_long_are_an_error(tiny_project: Project, ground: dict[str, int]) -> None:
    base = ground["base"]
    recipe = GrpoRecipe(start=base, reference=base, prompt_set=ground["prompts"], max_prompt_tokens=2, max_new_tokens=8)
    failed = run(tiny_project, recipe)
    assert failed.status == "failed" and "no train prompt of at most 2 tokens" in (failed.error or "")


def test_reference_must_be_the_start() -> None:
    with pytest.raises(ValueError, match="reference must be the starting checkpoint"):
        DpoRecipe(start=1, reference=2, snapshot=1)


def test_a_reward_model_without_finite_scores_is_stored_unmeasured(
    tiny_project: Project, ground: dict[str, int]
) -> None:
    recipe = RewardRecipe(**OFFLINE, start=ground["base"], snapshot=ground["snapshot"])
    with transaction() as session:
        launch(session, recipe, project_id=tiny_project.id)
        claimed = claim(session, ["gpu"], "test", None)
        assert claimed is not None
        job = (claimed.id, claimed.attempt)
    with reading() as session:
        start = weights_of(session, ground["base"])
    model = make_classifier(start, recipe, seed=1)
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    opened = Job(*job)
    scorer = RewardScorer(start, model=model)
    assert measure_reward(opened, scorer, preferences_of(opened)) == {}
    key = store_trained(opened, model, scorer.tokenizer, {"dev_loss": math.nan}, role="reward", step=4)
    recorder = Recorder([RlPrompt([{"role": "user", "content": "?"}], [5])], scorer.tokenizer, opened, None)
    recorder.scorer = scorer
    recorder.note(1, [Told("It is.", 3, True)], [math.nan])
    with reading() as session:
        # a database that checks its JSON takes no NaN
        assert session.get_one(Checkpoint, key).facts["dev_loss"] is None
        row = session.exec(select(Sampled).where(Sampled.run_id == job[0])).one()
        assert (row.reward, row.detail["held_out"], row.detail["length"]) == (None, None, 3)
        said = session.exec(select(LogLine.text).where(LogLine.run_id == job[0], LogLine.level == "warning")).all()
    assert any("it has diverged" in one for one in said)
