"""How a run's process is started and on which GPUs: plain python, or `accelerate launch` with several processes."""

import os
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from app.config import settings
from app.errors import AppError

# Kinds that several processes can train. The others run as one process, on the first GPU of their slot.
TRAINED_BY_SEVERAL = frozenset({"sft", "reward", "dpo", "simpo", "kto", "ppo", "grpo", "rloo"})


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs this worker may use, as the driver names them (torch is not imported here)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one.strip() for one in visible.split(",") if one.strip() not in {"", "-1"}]
    root = Path("/proc/driver/nvidia/gpus")
    return [str(place) for place in range(len(list(root.iterdir())) if root.is_dir() else 0)]


@cache
def gpu_slots() -> tuple[str, ...]:
    """The slots of this worker: PREFLAB_SLOTS, else one per GPU (under accelerate one of all), else one for the CPU.

    A slot is host/cuda:0, or host/cuda:0+1 for one that owns two GPUs. One run at a time holds a slot, across all
    workers: the database keeps it unique.
    """
    gpus = visible_gpus()
    if settings().slots:
        names = [name.strip() for name in settings().slots.split(",") if name.strip()]
    elif settings().accelerate_config and gpus:
        names = ["cuda:" + "+".join(gpus)]
    else:
        names = [f"cuda:{gpu}" for gpu in gpus] or ["cpu"]
    return tuple(f"{socket.gethostname()}/{name}" for name in names)


def gpus_of(slot: str | None) -> list[str]:
    """The GPUs a slot owns; none for the CPU's and for other names."""
    _, found, gpus = (slot or "").partition("/cuda:")
    return gpus.split("+") if found else []


def check_slots() -> None:
    """Raises AppError at a worker's start where slots, GPUs and accelerate's configuration do not fit."""
    owned = [gpu for slot in gpu_slots() for gpu in gpus_of(slot)]
    if len(owned) != len(set(owned)):
        raise AppError(f"PREFLAB_SLOTS: a GPU stands in two slots ({settings().slots}): one run at a time owns a GPU.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (hidden := set(owned) - set(visible_gpus())):
        raise AppError(
            f"PREFLAB_SLOTS names GPU {', '.join(sorted(hidden))}, which CUDA_VISIBLE_DEVICES={visible} hides: leave "
            "one of the two out."
        )
    given = settings().accelerate
    for slot in gpu_slots():
        if given and gpus_of(slot) and len(gpus_of(slot)) != given["num_processes"]:
            raise AppError(
                f"PREFLAB_ACCELERATE_CONFIG starts {given['num_processes']} processes, but the slot {slot} has "
                f"{len(gpus_of(slot))} GPUs: make them equal (PREFLAB_SLOTS=cuda:0+1 is one slot of two GPUs)."
            )


def is_by_several(kind: str) -> bool:
    """Whether this worker trains this kind by several processes."""
    return bool(settings().accelerate_config) and kind in TRAINED_BY_SEVERAL


def command_of(kind: str, run_id: int, attempt: int) -> list[str]:
    """The command that does one attempt. What the recipe and the slot decide is not read from accelerate's file."""
    child = ["-m", "worker.child", str(run_id), str(attempt)]
    if not is_by_several(kind):
        return [sys.executable, *child]
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings().accelerate_config),
        "--multi_gpu",  # one process a device by torch's launcher: over NCCL, or over gloo where there is no GPU
        "--main_process_port", "0",  # a free one: two runs on one machine do not meet
        "--mixed_precision", "no", "--gpu_ids", "all", *child,
    ]  # fmt: skip


def environment_of(kind: str, slot: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: it sees its slot's GPUs, and only the first where one process does the run.

    One process that saw several would split its batches over them (torch's DataParallel), which no recipe asks for.
    """
    gpus = gpus_of(slot)
    if not gpus:
        return dict(environ)
    return {**environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus if is_by_several(kind) else gpus[:1])}
