"""Pushing an export: what a hub has afterwards is the folder, byte for byte; a refusal says so."""

import pytest

from app.config import settings
from app.projects.models import Project
from app.recipes import read_recipe
from tests.hub_server import TOKEN, Hub
from tests.worker.test_training_runs import TINY_BASE, made, run, tiny_project

__all__ = ["tiny_project"]  # a fixture


def test_an_export_is_pushed_whole_and_a_refusal_says_what_to_do(
    tiny_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made(run(tiny_project, TINY_BASE))
    recipe = read_recipe(
        {"kind": "export", "checkpoint": base.id, "push_to": "somebody/something", "is_private": True}
    )  # fmt: skip
    with Hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.origin)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol of its own
        monkeypatch.setenv("HF_TOKEN", "wrong")
        refused = run(tiny_project, recipe)
        assert (refused.status, hub.files, hub.refused) == ("failed", {}, 1)
        assert "The folder is written" in (refused.error or "") and "HF_TOKEN" in (refused.error or "")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        pushed = run(tiny_project, recipe)
    assert pushed.status == "done", pushed.error
    folder = settings().data_path / "exports" / f"run-{pushed.id}"
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "model.safetensors" in written and "README.md" in written
    assert hub.files == {"somebody/something": written}
    assert hub.private == {"somebody/something"}
