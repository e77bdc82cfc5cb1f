"""Rows that are too long: left out by one rule in every method, and counted everywhere; dev metrics are over rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlmodel import select

from app.accounts.models import Account
from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import reading, transaction
from app.projects.access import Member
from app.projects.models import Project
from app.runs.models import LogLine, Metric, Run
from app.training.lengths import make_count, say_fit
from app.training.models import Snapshot
from app.training.recipes import DpoRecipe, KtoRecipe, RewardRecipe, SftRecipe, SimpoRecipe
from tests.worker.test_training_runs import ground, made, run, tiny_project  # noqa: F401
from tests.worker.tiny import IDS, Silent, preferences, write_tiny
from worker.checkpoints import weights_of
from worker.dpo import fit_dpo, make_trainer
from worker.fitting import count_parts, count_whole, keep_fitting
from worker.kto import fit_kto
from worker.loading import Weights, load_tokenizer
from worker.preferences import Preferences, Row, read_preferences
from worker.reference_cache import MemoryCache, say_reads
from worker.reward import fit_reward
from worker.saving import sha256_of
from worker.sft import fit_sft

ASKED = {"lr": 1e-3, "batch_size": 8, "max_steps": 1, "max_length": 1024, "save_every": 50, "eval_every": 50}
SIDES = ("chosen", "rejected")
N_LONG, N_DEV_LONG = 5, 3  # of 24 and 8


def lengthen(row: Row, side: str) -> Row:
    text = row[side][0]["content"]
    return {**row, side: [{"role": "assistant", "content": f"{text} " * 40}]}


def with_long(found: Preferences, side: str = "rejected") -> Preferences:
    """The first rows of both splits have one text that no context of 128 tokens holds."""
    train = [lengthen(row, side) if place < N_LONG else row for place, row in enumerate(found.train)]
    dev = [lengthen(row, side) if place < N_DEV_LONG else row for place, row in enumerate(found.dev)]
    return Preferences(train, dev)


def freeze(snapshot: int, found: Preferences) -> None:
    """Puts other rows into a snapshot's file."""
    with transaction() as session:
        row = session.get_one(Snapshot, snapshot)
        path = settings().data_path / row.path
        rows = [{**one, "split": split} for split in ("train", "dev") for one in getattr(found, split)]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        row.sha256, row.n_train, row.n_dev = sha256_of(path), len(found.train), len(found.dev)


def lines_of(done: Run) -> list[str]:
    with reading() as session:
        return list(session.exec(select(LogLine.text).where(LogLine.run_id == done.id).order_by(LogLine.id)).all())  # type: ignore[arg-type]


def test_every_method_leaves_out_the_same_rows_and_counts_what_it_reads(
    tiny_project: Project, ground: dict[str, int]  # noqa: F811
) -> None:  # fmt: skip
    freeze(ground["snapshot"], with_long(preferences()))
    given: dict[str, Any] = {**ASKED, "start": ground["base"], "snapshot": ground["snapshot"], "sample_tokens": 4}
    plain = {name: value for name, value in given.items() if name != "sample_tokens"}
    methods = [
        RewardRecipe(**plain), RewardRecipe(**plain, architecture="bi_encoder"), SimpoRecipe(**given),
        KtoRecipe(**given, reference=ground["base"]), DpoRecipe(**given, reference=ground["base"]),
    ]  # fmt: skip
    for recipe in methods:
        done = run(tiny_project, recipe)
        rows = made(done).facts["rows"]
        assert (rows["n_train"], rows["train"], rows["n_dev"], rows["dev"]) == (24, 19, 8, 5)
        assert (rows["limit"], rows["asked"]) == (128, 1024) and rows["longest"] > 128
        assert (done.cost["labels"], done.cost["left_out_rows"], done.cost["left_out_dev_rows"]) == (19, 5, 3)
        said = lines_of(done)
        assert "the start reads 128 tokens at most: that is the longest text, not 1,024" in said
        longest = f"(the longest needs {rows['longest']:,})"
        assert f"19 of 24 preferences fit 128 tokens; 5 left out; of 8 dev rows 3 left out {longest}" in said
        with reading() as session:
            epoch = session.exec(
                select(Metric.value).where(Metric.run_id == done.id, Metric.name == "epoch", Metric.step == 1)
            ).one()
        n_read = 19 if recipe.kind != "kto" else 38  # a pair is two rows there
        assert epoch == pytest.approx(1 / -(-n_read // 8), abs=1e-3)
        if recipe.kind == "reward":  # the curve and what is measured at the end read the same dev rows
            measured = made(done).facts["held_out"]["accuracy"]
            assert measured["n"] == 5 and measured["value"] == pytest.approx(made(done).facts["dev_accuracy"])
    assert "the reference read 48 of 64 texts; 16 not needed, of rows left out" in lines_of(done)
    # SFT reads the chosen only: what is too long there is another row.
    done = run(tiny_project, SftRecipe(**given))
    assert made(done).facts["rows"]["train"] == done.cost["labels"] == 24
    assert any(line.startswith("all 24 preferences fit 128 tokens (the longest needs ") for line in lines_of(done))
    freeze(ground["snapshot"], with_long(preferences(), "chosen"))
    done = run(tiny_project, SftRecipe(**given))
    assert made(done).facts["rows"]["train"] == done.cost["labels"] == 19


def test_the_form_counts_as_the_worker_does(tiny_project: Project, ground: dict[str, int]) -> None:  # noqa: F811
    """Before the start, by the tokenizer's file and the template alone: what the run then says."""
    freeze(ground["snapshot"], with_long(preferences()))
    member = Member(Account(name="r", password_hash=""), tiny_project, "owner")
    values = {"start": ground["base"], "snapshot": ground["snapshot"], "max_length": "1024"}
    with reading() as session:
        start = weights_of(session, ground["base"])
        found = read_preferences(settings().data_path / session.get_one(Snapshot, ground["snapshot"]).path)
        said = say_fit(session, member, "dpo", values)
        assert say_fit(session, member, "sft", values) == said[:1]
        assert say_fit(session, member, "sft", {**values, "max_length": "9"})[0].startswith(
            "None of the 24 preferences"
        )
        assert "when the run starts" in say_fit(session, member, "sft", {**values, "template": "sawyer"})[0]
        for missing in ("start", "snapshot"):
            assert say_fit(session, member, "dpo", {**values, missing: ""}) == []
    theirs, ours = count_whole(load_tokenizer(start)), make_count(start.folder)
    for row in [*found.train, *found.dev]:
        assert [ours(row["prompt"], row[side]) for side in SIDES] == [theirs(row, side) for side in SIDES]
    longest = max(theirs(row, side) for row in [*found.train, *found.dev] for side in SIDES)
    assert said == [
        "The start reads 128 tokens at most: that is the longest text, not 1,024.",
        f"19 of 24 preferences fit 128 tokens; 5 left out; of 8 dev rows 3 left out (the longest needs {longest:,}).",
    ]
    plain = settings().folder("checkpoints", "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(start.folder / name, plain)
    shutil.copy(start.folder / "config.json", plain)
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    theirs, ours = count_whole(load_tokenizer(Weights(str(plain)))), make_count(plain)
    assert [ours(row["prompt"], row["chosen"]) for row in found.dev] == [theirs(row, "chosen") for row in found.dev]


def test_nothing_that_fits_is_an_error_that_says_so(tiny_project: Project, ground: dict[str, int]) -> None:  # noqa: F811
    values: dict[str, Any] = {**ASKED, "max_length": 8, "start": ground["base"], "snapshot": ground["snapshot"]}
    done = run(tiny_project, RewardRecipe(**values))
    assert done.status == "failed" and done.error
    assert done.error.startswith("None of the 24 preferences fits 8 tokens (the shortest needs ")
    assert "raise the longest text, or choose a start that reads longer ones" in done.error
    with reading() as session:
        assert session.exec(select(Checkpoint).where(Checkpoint.run_id == done.id)).first() is None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("has_template", [True, False])
def test_lengths_are_those_of_what_trl_reads(base: Weights, tmp_path: Path, has_template: bool) -> None:
    """At the longest kept row's own length as the limit, TRL drops and cuts nothing."""
    found = with_long(preferences())
    if not has_template:
        at = tmp_path / "plain"
        shutil.copytree(base.folder, at)
        (at / "manifest.json").unlink()
        (at / "chat_template.jinja").unlink(missing_ok=True)
        base = Weights(str(at))
    tokenizer = load_tokenizer(base)
    assert bool(tokenizer.chat_template) is has_template
    count = count_whole(tokenizer)
    wide = {**ASKED, **IDS, "snapshot": 1}
    kept = keep_fitting(Silent(), DpoRecipe(**wide), base, found, count)
    longest = max(count(row, side) for row in kept.train for side in ("chosen", "rejected"))
    trainer = make_trainer(DpoRecipe(**{**wide, "max_length": longest}), 1, base, kept, tmp_path / "dpo")
    assert len(trainer.train_dataset) == len(kept.train) == 19 and len(trainer.eval_dataset) == len(kept.dev) == 5
    read = [
        len(row["prompt_ids"]) + len(row[f"{side}_ids"])
        for row in trainer.train_dataset
        for side in ("chosen", "rejected")
    ]
    assert read == [count(row, side) for row in kept.train for side in ("chosen", "rejected")]
    assert max(read) == longest
    parts = count_parts(tokenizer)
    assert parts(kept.train[0], "chosen") == count(kept.train[0], "chosen")


def test_where_the_reference_s_values_come_from(base: Weights, tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, text: str, level: str = "info") -> None:
            self.said.append(text)

    cache, found = MemoryCache(), preferences(10)
    recipe = DpoRecipe(**{**ASKED, **IDS, "snapshot": 1, "max_length": 128})
    twice = Preferences([*found.train, found.train[0]], found.dev)
    for watch, expected in (
        (first := Heard(), "the reference read 36 of 38 texts; 2 equal to one that was read"),
        (second := Heard(), "the reference read 0 of 38 texts; 38 known already"),
    ):
        fit_dpo(recipe, 1, base, twice, tmp_path / expected[-9:].replace(" ", "-"), watch, cache)
        assert watch.said[0] == expected
    assert first is not second
    assert say_reads(408, 404, 4, 204) == (
        "the reference read 404 of 612 texts; 4 known already; 204 not needed, of rows left out"
    )


def test_dev_metrics_are_means_over_rows(base: Weights, tmp_path: Path) -> None:
    """11 dev rows in batches of 8 and 3 give what one batch of 11 gives: in every metric, in every trainer."""
    found = preferences(16)
    rows = [row if place % 3 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            for place, row in enumerate([*found.dev, *found.train[:3]])]  # fmt: skip
    given = {**ASKED, "snapshot": 1, "max_length": 128}
    fits: dict[str, tuple[Any, Any]] = {
        "sft": (fit_sft, SftRecipe(**given, start=1)),
        "reward": (fit_reward, RewardRecipe(**given, start=1)),
        "dpo": (fit_dpo, DpoRecipe(**given, **IDS, sft_weight=0.0)),
        "kto": (fit_kto, KtoRecipe(**given, **IDS)),
    }
    for kind, (fit, recipe) in fits.items():
        curves = []
        for size in (8, 22):
            watch = Silent()
            one = recipe.model_copy(update={"batch_size": size, "lr": 1e-12})
            torch.manual_seed(1)
            fit(one, 1, base, Preferences(found.train, rows), tmp_path / f"{kind}-{size}", watch)
            curves.append({name: value for name, value in watch.metrics[0].items() if name.startswith("dev_")})
        skipped = {"dev_loss"} if kind == "kto" else set()  # each batch of KTO has a KL of its own
        assert curves[0].keys() == curves[1].keys() and len(curves[0]) >= 3
        for name in curves[0].keys() - skipped:
            assert curves[0][name] == pytest.approx(curves[1][name], rel=1e-4, abs=1e-5), (kind, name)
        if "dev_accuracy" in curves[0]:
            assert curves[0]["dev_accuracy"] * 11 == pytest.approx(round(curves[0]["dev_accuracy"] * 11))
