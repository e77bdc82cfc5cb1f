"""Exports: a folder that loads without PrefLab, equal to the checkpoint, with a card that says how it was made."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.db import reading, transaction
from app.errors import Invalid
from app.projects.models import Project
from app.recipes import read_recipe
from app.runs.models import LogLine, Run
from app.runs.queue import launch
from tests.worker.test_training_runs import OFFLINE, TINY_BASE, ground, made, run
from worker.checkpoints import weights_of
from worker.llm import RewardScorer
from worker.loading import load_full
from worker.saving import is_whole

__all__ = ["ground"]  # a fixture


@pytest.fixture
def database(sqlite_database: str) -> str:
    """SQLite alone: these runs are about files."""
    return sqlite_database


@pytest.fixture
def tiny_project(project: Project) -> Project:
    """The project that `client` is signed in to."""
    return project


def export(project: Project, **values: Any) -> Run:
    return run(project, read_recipe({"kind": "export", **values}))


def unpack(client: TestClient, project: Project, run: Run, to: Path) -> Path:
    page = client.get(f"/p/{project.slug}/runs/{run.id}/export.tar")
    assert page.status_code == 200
    with tarfile.open(fileobj=io.BytesIO(page.content)) as tar:
        tar.extractall(to, filter="data")
    return to / f"preflab-export-{run.id}"


def test_an_adapter_is_exported_merged_and_alone(
    tiny_project: Project, ground: dict[str, int], client: TestClient, tmp_path: Path
) -> None:
    given = {"start": ground["base"], "snapshot": ground["snapshot"], "is_lora": True, "lora_rank": 4, **OFFLINE}
    sft = made(run(tiny_project, read_recipe({"kind": "sft", **given})))
    merged = export(tiny_project, checkpoint=sft.id, form="merged", licence="apache-2.0")
    assert merged.status == "done", merged.error
    folder = unpack(client, tiny_project, merged, tmp_path)
    assert is_whole(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with reading() as session:
        ours = load_full(weights_of(session, sft.id))
    ids = AutoTokenizer.from_pretrained(folder)("What is the capital of France?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours(ids).logits, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0\n")
    recipe = json.loads(card.partition("```json\n")[2].partition("\n```")[0])
    assert (recipe["kind"], recipe["lora_rank"]) == ("sft", 4)
    assert "None were measured" in card and "Preferences: “preferences”" in card
    alone = export(tiny_project, checkpoint=sft.id, form="adapter")
    from peft import PeftModel

    with reading() as session:
        base = load_full(weights_of(session, ground["base"]))
    again = PeftModel.from_pretrained(base, unpack(client, tiny_project, alone, tmp_path))
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, ours(ids).logits, atol=1e-5)
    panel = client.get(f"/p/{tiny_project.slug}/runs/{alone.id}/panel/export").text
    assert "adapter_model.safetensors" in panel and "Download as tar" in panel


def test_what_cannot_be_is_refused_before_it_starts(tiny_project: Project, client: TestClient) -> None:
    base = made(run(tiny_project, TINY_BASE))
    with pytest.raises(Invalid, match="not an adapter"), transaction() as session:
        launch(session, read_recipe({"kind": "export", "checkpoint": base.id, "form": "adapter"}), project_id=1)
    with pytest.raises(Invalid, match="push_to"):
        read_recipe({"kind": "export", "checkpoint": base.id, "push_to": "../etc"})
    assert client.get(f"/p/{tiny_project.slug}/runs/1/export.tar").status_code == 404  # no export


def test_a_push_that_fails_keeps_the_folder_and_says_what_to_do(
    tiny_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made(run(tiny_project, TINY_BASE))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = export(tiny_project, checkpoint=base.id, push_to="somebody/something")
    assert found.status == "failed"
    assert "The folder is written, but pushing to “somebody/something” failed" in (found.error or "")
    assert "HF_TOKEN" in (found.error or "")
    with reading() as session:
        said = [line.text for line in session.query(LogLine).filter(LogLine.run_id == found.id)]  # type: ignore[arg-type]
    assert any("written to exports" in line for line in said)


@pytest.mark.parametrize(
    ("architecture", "is_lora"), [("bi_encoder", False), ("bi_encoder", True), ("classifier", True)]
)
def test_a_reward_model_comes_back_with_the_same_scores(
    tiny_project: Project, ground: dict[str, int], client: TestClient, tmp_path: Path, architecture: str, is_lora: bool
) -> None:
    given = {"start": ground["base"], "snapshot": ground["snapshot"], "is_lora": is_lora, "lora_rank": 4, **OFFLINE}
    reward = made(run(tiny_project, read_recipe({"kind": "reward", "architecture": architecture, **given})))
    folder = unpack(
        client, tiny_project, export(tiny_project, checkpoint=reward.id, form="as_it_is", name="out"), tmp_path
    )
    card = (folder / "README.md").read_text()
    assert ("bi-encoder: two" in card and "u = W_p·mean(h of the prompt)" in card) == (architecture == "bi_encoder")
    assert ("It is an adapter: it needs its base, “tiny”" in card) == is_lora
    wanted: dict[str, Any] = {"kind": "import_checkpoint", "source": str(folder), "role": "reward"}
    if is_lora:
        alone = run(tiny_project, read_recipe(wanted))
        assert alone.status == "failed" and "choose the base it was trained on" in str(alone.error)
        wanted["base"] = ground["base"]
    again = made(run(tiny_project, read_recipe(wanted)))
    assert (again.role, again.weights, again.method) == ("reward", reward.weights, "imported")
    assert again.base_id == (ground["base"] if is_lora else None)
    assert again.facts["architecture"].startswith("bi-encoder: two" if architecture == "bi_encoder" else "LoRA adapter")
    texts = ["Paris.", "Answer: Paris — Confidence: high — Reasoning: it is so."]
    asked = [[{"role": "user", "content": "What is the capital of France?"}]] * 2
    with reading() as session:
        ours, theirs = (RewardScorer(weights_of(session, one.id)).score(asked, texts) for one in (reward, again))
    assert theirs == pytest.approx(ours, abs=1e-6) and abs(ours[0] - ours[1]) > 1e-5
    other = made(run(tiny_project, TINY_BASE.model_copy(update={"seed": 9, "name": "other"})))
    strange = run(tiny_project, read_recipe({**wanted, "base": other.id}))
    assert strange.status == "failed"
    assert ("was trained on other weights" if is_lora else "need no base") in str(strange.error)
