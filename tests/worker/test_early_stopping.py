"""Early stopping: the rule, that the kept weights are those of the best step, and going on after a stop, bit-equal."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.errors import AppError
from app.projects.models import Project
from app.recipes import read_recipe
from app.training.health import write_notes
from app.training.recipes import DpoRecipe, KtoRecipe, RewardRecipe, SftRecipe
from app.training.stopping import find_best
from tests.worker.test_training_runs import ground, made, run
from tests.worker.tiny import Silent, preferences, same, write_tiny
from worker.dpo import fit_dpo
from worker.kto import fit_kto
from worker.loading import Weights
from worker.preferences import Preferences
from worker.reward import fit_reward
from worker.sft import fit_sft

__all__ = ["ground"]  # a fixture

NAN = None
FITS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SftRecipe, fit_sft, {"lr": 1e-2, "patience": 3}),
    "reward": (RewardRecipe, fit_reward, {"lr": 3e-2, "patience": 2}),
    "dpo": (DpoRecipe, fit_dpo, {"lr": 1e-2, "patience": 2, "reference": 1, "label_smoothing": 0.3}),
    "kto": (KtoRecipe, fit_kto, {"lr": 5e-2, "patience": 2, "reference": 1}),
}
OFFLINE: dict[str, Any] = {
    "start": 1, "snapshot": 1, "epochs": 40, "max_steps": 24, "batch_size": 4, "eval_every": 1, "save_every": 2,
    "max_length": 128, "schedule": "constant_with_warmup", "warmup_share": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "patience", "step", "last", "has_stopped"),
    [
        ([3, 2, 1], 1, 2, 2, False),
        ([3, 2, 2.5, 1], 1, 1, 2, True),
        ([3, 2, 2.5, 1], 2, 3, 3, False),
        ([3, 2, 2, 2], 2, 1, 3, True),  # no lower is no better
        ([3, NAN, NAN, 1], 2, 0, 2, True),
        ([NAN, NAN], 2, -1, 1, True),
        ([], 1, -1, -1, False),
    ],
)
def test_the_rule(losses: list[float | None], patience: int, step: int, last: int, has_stopped: bool) -> None:
    best, stopped = find_best(enumerate(losses), patience)
    assert (best.step, best.last, stopped) == (step, last, has_stopped)


@pytest.fixture
def database(sqlite_database: str) -> str:
    """SQLite alone: these runs are about weights."""
    return sqlite_database


@pytest.fixture
def tiny_project(project: Project) -> Project:
    """The project that `client` is signed in to."""
    return project


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def noisy() -> Preferences:
    """Few rows to learn by heart, and dev rows that say the opposite of half of them."""
    rows = preferences(8)
    return Preferences(rows.train, [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows.dev])


def fit(base: Weights, kind: str, folder: Path, watch: Silent, rows: Preferences | None = None, **more: Any) -> Any:
    recipe, function, given = FITS[kind]
    torch.manual_seed(3)  # fresh adapters are drawn from it
    model, _, curves = function(recipe(**{**OFFLINE, **given, **more}), 3, base, rows or noisy(), folder, watch)
    return {name: one.detach().clone() for name, one in model.state_dict().items()}, curves


@pytest.mark.parametrize(("kind", "is_lora"), [("sft", False), ("reward", True), ("dpo", False), ("kto", True)])
def test_the_best_weights_are_kept_and_training_ends(base: Weights, tmp_path: Path, kind: str, is_lora: bool) -> None:
    rows = noisy() if kind in ("sft", "kto") else preferences(8)
    watch, patience = Silent(), FITS[kind][2]["patience"]
    kept, curves = fit(base, kind, tmp_path / "a", watch, rows, is_lora=is_lora)
    losses = sorted((step, values["dev_loss"]) for step, values in watch.metrics.items() if "dev_loss" in values)
    best, stopped = find_best(losses, patience)
    assert stopped and 0 < best.step < best.last < 24 and losses[-1][0] == best.last, losses
    assert (curves["kept_step"], curves["last_step"], curves["step"]) == (best.step, best.last, best.step)
    assert curves["dev_loss"] == best.loss
    plain, _ = fit(base, kind, tmp_path / "b", Silent(), rows, is_lora=is_lora, max_steps=best.step, patience=0)
    assert same(kept, plain)
    (note,) = [one for one in write_notes(kind, {"patience": patience}, {"dev_loss": losses}) if "early" in one.text]
    assert f"after step {best.last}" in note.text and f"those of step {best.step}" in note.text


@pytest.mark.parametrize("stop_after", [5, 6])  # before the last measurement, and with all of them stored
def test_going_on_after_a_stop_keeps_the_same_weights(base: Weights, tmp_path: Path, stop_after: int) -> None:
    whole, curves = fit(base, "sft", tmp_path / "a", Silent())
    assert (curves["kept_step"], curves["last_step"]) == (4, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(base, "sft", tmp_path / "b", Silent(stop_after), save_every=stop_after - 1)
    shutil.rmtree(tmp_path / "b" / "best")  # what lies outside the state may be of a later step, or gone
    watch = Silent()
    resumed, again = fit(base, "sft", tmp_path / "b", watch, save_every=stop_after - 1)
    assert watch.resumed == [stop_after - 1]
    assert same(whole, resumed)
    assert {name: again[name] for name in ("kept_step", "last_step", "dev_loss")} == {
        name: curves[name] for name in ("kept_step", "last_step", "dev_loss")
    }


def test_a_state_stored_after_patience_ran_out_trains_no_further(base: Weights, tmp_path: Path) -> None:
    whole, _ = fit(base, "sft", tmp_path / "a", Silent(), save_every=7)
    watch = Silent()
    again, curves = fit(base, "sft", tmp_path / "a", watch, save_every=7)
    assert watch.resumed == [7] and not any("loss" in values for values in watch.metrics.values())
    assert same(whole, again) and curves["kept_step"] == 4


def test_without_dev_rows_it_says_what_to_do(base: Weights, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="no dev row"):
        fit(base, "sft", tmp_path, Silent(), Preferences(preferences(8).train, []))


def test_a_run_tells_where_it_stopped_and_what_it_kept(
    tiny_project: Project, ground: dict[str, int], client: TestClient
) -> None:
    given = {
        "start": ground["base"],
        "snapshot": ground["snapshot"],
        "lr": 0.5,
        "max_grad_norm": 1e6,
        "warmup_share": 0,
    }
    recipe = {"kind": "sft", **given, "batch_size": 4, "epochs": 20, "eval_every": 1, "patience": 2, "max_length": 128}
    done = run(tiny_project, read_recipe(recipe))
    row = made(done)
    assert row.step == row.facts["kept_step"] < row.facts["last_step"] == done.done == done.total
    assert done.cost["trained_tokens"] > 0
    panel = client.get(f"/p/{tiny_project.slug}/runs/{done.id}/panel/sft").text
    assert f"It stopped early, after step {row.facts['last_step']}" in panel
    assert "last step" in client.get(f"/p/{tiny_project.slug}/checkpoints/{row.id}").text.lower().replace("_", " ")
