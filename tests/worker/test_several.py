"""More than one process for a run: `accelerate launch` over gloo on a CPU; on GPUs, up to the command."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from sqlmodel import select

from app.checkpoints.models import Checkpoint
from app.config import read_settings, settings
from app.db import reading, transaction
from app.errors import AppError
from app.projects.models import Project
from app.recipes import read_recipe
from app.runs.models import Metric, Run, Sampled
from app.runs.queue import cancel, claim, launch, resume
from app.training.models import LogProb
from tests.conftest import forget_settings
from tests.judging.rows import claim_next
from tests.judging.rows import start as claimed
from tests.worker.test_training_runs import OFFLINE, ground, made, tiny_project
from tests.worker.test_training_runs import run as run_alone
from tests.worker.tiny import same, weights_in
from tests.worker.two import in_both
from worker import launch as launching
from worker.several import share_rows
from worker.supervise import Supervisor

__all__ = ["ground", "tiny_project"]  # fixtures

TWO = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"


@pytest.fixture
def two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The worker's setting: accelerate's file asks for two processes on the CPU."""
    path = tmp_path / "accelerate.yaml"
    path.write_text(TWO)
    monkeypatch.setenv("PREFLAB_ACCELERATE_CONFIG", str(path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forget_settings()
    launching.gpu_slots.cache_clear()
    yield path
    launching.gpu_slots.cache_clear()


def start(project: Project, **recipe: Any) -> int:
    with transaction() as session:
        return launch(session, read_recipe(recipe), project_id=project.id).id


def read(run_id: int) -> Run:
    with reading() as session:
        return session.get_one(Run, run_id)


def rows_of(run_id: int, table: Any) -> list[Any]:
    with reading() as session:
        return list(session.exec(select(table).where(table.run_id == run_id)).all())


def test_two_processes_train_as_one_does_and_only_the_first_writes(
    tiny_project: Project, ground: dict[str, int], two_processes: Path
) -> None:
    given = {
        "kind": "dpo", "start": ground["base"], "reference": ground["base"], "snapshot": ground["snapshot"],
        "sft_weight": 0.5,
    }  # fmt: skip
    alone = run_alone(tiny_project, read_recipe({**given, **OFFLINE, "name": "one"}))
    with transaction() as session:  # the second run has to read the reference itself, in one process of the two
        for row in session.execute(select(LogProb)).scalars():
            session.delete(row)
    run_id = start(tiny_project, **given, **OFFLINE, name="two")
    assert Supervisor(["gpu"]).run_next()
    both = read(run_id)
    a, b = made(alone), made(both)
    assert both.attempt == 1
    one, two = (weights_in(settings().data_path / row.path) for row in (a, b))
    assert all(torch.isfinite(value).all() for value in two.values())
    # the same rows in every step, on two processes: equal up to the order in which floats are added
    with reading() as session:
        base = weights_in(settings().data_path / session.get_one(Checkpoint, ground["base"]).path)
    moved = max(float((one[name] - base[name]).abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart < 1e-3 * moved
    points = [(m.name, m.step) for m in rows_of(both.id, Metric)]
    assert len(points) == len(set(points))
    assert {m.name for m in rows_of(alone.id, Metric)} == {m.name for m in rows_of(both.id, Metric)}
    for name in ("loss", "margin", "dev_loss", "tokens"):
        first, second = (
            {m.step: m.value for m in rows_of(run.id, Metric) if m.name == name} for run in (alone, both)
        )  # fmt: skip
        assert first.keys() == second.keys()
        assert [first[s] for s in first] == pytest.approx([second[s] for s in first], rel=1e-4, abs=1e-4)
    samples = [(s.step, s.place) for s in rows_of(both.id, Sampled)]
    assert samples and len(samples) == len(set(samples))
    states = settings().data_path / "runs" / str(both.id)
    assert (states / "checkpoint-4" / "rng_state_1.pth").is_file()
    assert (states / "checkpoint-4" / "manifest.json").is_file()


def processes_of(run_id: int, wanted: Callable[[], bool]) -> list[psutil.Process]:
    """The launcher and the two processes of a run, once there are so many and what is wanted holds."""
    deadline = time.monotonic() + 180  # a busy machine takes a while to import everything thrice
    doing: list[psutil.Process] = []
    while time.monotonic() < deadline and not (len(doing) == 3 and wanted()):
        time.sleep(0.05)
        found = psutil.Process().children(recursive=True)
        doing = [one for one in found if f"worker.child {run_id}" in " ".join(one.cmdline())]
    assert len(doing) == 3 and wanted()
    return doing


def test_killed_cancelled_and_resumed_ppo_ends_as_if_nobody_had_touched_it(
    tiny_project: Project, ground: dict[str, int], two_processes: Path, tmp_path: Path
) -> None:
    recipe = {
        "kind": "ppo", "start": ground["base"], "reference": ground["base"], "prompt_set": ground["prompts"],
        "rule_weight": 1.0, "iterations": 40, "rollouts": 8, "minibatches": 2, "ppo_epochs": 1, "max_new_tokens": 8,
        "lr": 1e-3, "save_every": 1, "sample_every": 1000,
    }  # fmt: skip
    run_id = start(tiny_project, **recipe, name="touched")
    worker = threading.Thread(target=Supervisor(["gpu"]).run_next)
    worker.start()
    doing = processes_of(run_id, lambda: read(run_id).done > 0)
    (second,) = [one for one in doing if one.environ().get("RANK") == "1"]
    second.kill()
    killed_at = time.monotonic()
    worker.join(30)
    assert time.monotonic() - killed_at < 15
    assert psutil.wait_procs(doing, timeout=0.1)[1] == []  # the others did not wait for it
    killed = read(run_id)
    assert (killed.status, killed.attempt, killed.deaths) == ("queued", 1, 1), killed.error

    worker = threading.Thread(target=Supervisor(["gpu"]).run_next)
    worker.start()
    doing = processes_of(run_id, lambda: True)
    with transaction() as session:
        cancel(session, session.get_one(Run, run_id))
    worker.join(60)
    assert read(run_id).status == "cancelled"
    assert psutil.wait_procs(doing, timeout=5)[1] == []

    with transaction() as session:
        resume(session, session.get_one(Run, run_id))
    touched = in_both(claim_next(), tmp_path / "touched")
    assert touched.attempt == 3
    assert [m.step for m in rows_of(run_id, Metric) if m.name == "kl"] == list(range(1, 41))
    whole = in_both(claimed(tiny_project.id, **recipe, name="whole"), tmp_path / "whole")
    one, two = (weights_in(settings().data_path / made(run).path) for run in (touched, whole))
    assert same(one, two)


def test_on_gpus_the_launcher_gets_every_gpu_of_the_slot_and_one_process_the_first(
    two_processes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    (slot,) = launching.gpu_slots()
    assert slot == f"{socket.gethostname()}/cuda:2+5"
    launching.check_slots()
    assert launching.command_of("dpo", 7, 2) == [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(two_processes), "--multi_gpu",
        "--main_process_port", "0", "--mixed_precision", "no", "--gpu_ids", "all", "-m", "worker.child", "7", "2",
    ]  # fmt: skip
    assert launching.command_of("judge", 7, 2) == [sys.executable, "-m", "worker.child", "7", "2"]
    kinds = ("sft", "reward", "dpo", "simpo", "kto", "ppo", "grpo", "rloo", "judge")
    seen = {kind: launching.environment_of(kind, slot, {})["CUDA_VISIBLE_DEVICES"] for kind in kinds}
    assert seen == {**dict.fromkeys(kinds, "2,5"), "judge": "2"}
    assert launching.environment_of("dpo", f"{socket.gethostname()}/cpu", {"A": "b"}) == {"A": "b"}


@pytest.mark.parametrize(
    ("visible", "slots", "names", "refusal"),
    [
        ("0,1", "", ["cuda:0", "cuda:1"], ""),
        ("3", "", ["cuda:3"], ""),  # two workers on one machine, a GPU each, do not share a name
        ("", "", ["cpu"], ""),
        ("0,1,2", "cuda:0+1,cuda:2", ["cuda:0+1", "cuda:2"], ""),
        ("0,1", "cuda:0+1,cuda:1", ["cuda:0+1", "cuda:1"], "a GPU stands in two slots"),
        ("0", "cuda:1", ["cuda:1"], "names GPU 1, which CUDA_VISIBLE_DEVICES=0 hides"),
    ],
)
def test_slots_are_named_after_host_and_gpu(
    visible: str, slots: str, names: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("PREFLAB_SLOTS", slots)
    forget_settings()
    launching.gpu_slots.cache_clear()
    try:
        assert launching.gpu_slots() == tuple(f"{socket.gethostname()}/{name}" for name in names)
        if not refusal:
            launching.check_slots()
            return
        with pytest.raises(AppError, match=refusal):
            launching.check_slots()
    finally:
        launching.gpu_slots.cache_clear()


def test_a_slot_is_one_runs_alone_and_its_name_knows_the_machine(tiny_project: Project) -> None:
    recipe = {"kind": "demo_base", "steps": 1}
    for _ in range(3):
        start(tiny_project, **recipe)

    def take(slot: str) -> bool:
        with transaction() as session:
            return claim(session, ["gpu"], "worker", slot) is not None

    assert [take("a/cuda:0"), take("a/cuda:0"), take("a/cuda:1"), take("b/cuda:0")] == [True, False, True, True]


def test_processes_must_be_as_many_as_gpus(two_processes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(AppError, match=r"starts 2 processes, but the slot .* has 3 GPUs"):
        launching.check_slots()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (None, "cannot be read as yaml"),
        ("a: [", "cannot be read as yaml"),
        ("- a", "holds no settings"),
        (TWO.replace("MULTI_CPU", "FSDP"), "distributed_type is FSDP: choose MULTI_GPU or MULTI_CPU"),
        (TWO.replace("processes: 2", "processes: 1"), "num_processes must be 2 or more"),
        (TWO + "num_machines: 2\n", "num_machines must be 1"),
    ],
)
def test_an_accelerate_file_that_does_not_fit_stops_the_start(text: str | None, refusal: str, tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AppError, match=f"PREFLAB_ACCELERATE_CONFIG: .*{refusal}"):
        read_settings({"PREFLAB_ACCELERATE_CONFIG": str(path)})


def test_a_step_has_the_recipes_rows_however_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert share_rows(16, 2) == 2
    with pytest.raises(
        AppError, match="16 rows per step do not divide into 8 parts on 4 processes each: choose a mult"
    ):
        share_rows(16, 8)
