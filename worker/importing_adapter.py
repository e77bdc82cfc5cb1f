"""What an imported adapter or bi-encoder must be before it is stored: LoRA, whole, and made for the base it is put on.

The model is built without weights (on torch's meta device), so that names and shapes of all tensors can be compared
with the file's at no cost of memory, whatever the size of the base.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from app.errors import Invalid
from worker.bi_encoder import FACTS, BiEncoder
from worker.loading import Weights
from worker.saving import read_manifest

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE_WEIGHTS = "base_weights"  # in an export's manifest: the hashes of its base's weight files
Shapes = Mapping[str, list[int]]


def as_invalid(message: str, field: str = "source") -> Invalid:
    """An error of the import's form."""
    return Invalid(message, {field: [message]})


def weight_hashes(weights: Weights) -> dict[str, str]:
    """The sha256 of each safetensors file by its name, as the folder's manifest has them; empty without one."""
    files = (read_manifest(weights.folder) or {}).get("files", {})
    return {name: known["sha256"] for name, known in files.items() if name.endswith(".safetensors")}


def check_own_base(folder: Path, base: Weights) -> None:
    """Refuses a base whose weights are not those that an export's manifest names, where both are known."""
    wanted, found = (read_manifest(folder) or {}).get(BASE_WEIGHTS), weight_hashes(base)
    if wanted and found and wanted != found:
        raise as_invalid(f"{folder.name} was trained on other weights than this base’s: choose its own base.", "base")


def read_bi_encoder(folder: Path) -> tuple[Literal["dot", "cosine"], int | None]:
    """How the towers meet and the adapters' rank; raises Invalid for a file that says something else."""
    try:
        said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        scoring, rank = said["scoring"], said["rank"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise as_invalid(f"{FACTS} cannot be read ({error}): export the reward model again.") from error
    is_rank = rank is None or (type(rank) is int and 1 <= rank <= 1024)
    if scoring not in ("dot", "cosine") or not is_rank:
        raise as_invalid(f"{FACTS} says scoring {scoring!r} and rank {rank!r}: export the reward model again.")
    return scoring, rank


def check_bi_encoder(folder: Path, shapes: Shapes, config: Any, is_adapter: bool) -> tuple[str, int | None]:
    """Its scoring and rank; raises Invalid unless every tensor is the one that such a model on this body has."""
    from transformers import AutoModel

    scoring, rank = read_bi_encoder(folder)
    if is_adapter != (rank is not None):
        raise as_invalid(f"{FACTS} says rank {rank}, which its weights are not: export the reward model again.")
    with _unbuilt(folder):
        model = BiEncoder(AutoModel.from_config(config), scoring, rank)
    _compare(folder, shapes, model.state_dict())
    return scoring, rank


def check_adapter(folder: Path, shapes: Shapes, config: Any, role: str) -> str:
    """One line on a LoRA adapter; raises Invalid unless it is one for this role and fits a base of this configuration.

    Settings that make peft import modules by name are refused, as remote code is.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        said = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = said["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise as_invalid(f"{ADAPTER_CONFIG} of {folder.name} cannot be read ({error}).") from error
    if kind != "LORA" or said.get("megatron_config") or said.get("auto_mapping"):
        raise as_invalid(f"{folder.name} is no plain LoRA adapter: merge it into its base and import that.")
    task, make = (
        ("CAUSAL_LM", AutoModelForCausalLM) if role == "policy" else ("SEQ_CLS", AutoModelForSequenceClassification)
    )
    if said.get("task_type") != task:
        raise as_invalid(f"{folder.name} is an adapter for {said.get('task_type')}; a {role} model’s is for {task}.")
    config.num_labels = 1 if role == "reward" else config.num_labels
    with _unbuilt(folder):
        adapter = LoraConfig.from_pretrained(str(folder))
        adapter.base_model_name_or_path = None  # where it lay when it was trained says nothing here
        model = get_peft_model(make.from_config(config), adapter)
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    _compare(folder, shapes, wanted)
    return f"LoRA adapter of rank {adapter.r}" + (", one output" if role == "reward" else "")


@contextmanager
def _unbuilt(folder: Path) -> Any:
    """On the meta device; what a library refuses becomes Invalid."""
    try:
        with torch.device("meta"):
            yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise as_invalid(f"{folder.name} does not fit this base: {str(error)[:300]}", "base") from error


def _compare(folder: Path, found: Shapes, wanted: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        has, needs = found.get(name), list(wanted[name].shape) if name in wanted else None
        if has != needs:
            raise as_invalid(
                f"{folder.name} does not fit: {name} is {has or 'missing'} there and {needs or 'unknown'} here. Choose "
                "the base that it was trained on; if this is the one, export it again."
            )
