"""Import of a checkpoint: a Hugging Face id or a local directory; safetensors only, never remote code.

What is needed is copied into the data folder and sealed with a manifest, so that what a run reads can be checked and
does not change under it; weights over a gigabyte are linked instead of copied. An adapter, a policy's or a reward
model's, is imported onto its base (worker/importing_adapter.py).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from app.checkpoints.models import Checkpoint
from app.checkpoints.recipes import ImportCheckpointRecipe
from app.db import get
from app.errors import AppError, Invalid
from app.prompts.files import resolve_path
from worker.bi_encoder import FACTS as BI_ENCODER
from worker.bi_encoder import describe
from worker.checkpoints import store_checkpoint, weights_of
from worker.hub_model import BESIDES, INDEX, fetch_model
from worker.importing_adapter import ADAPTER, ADAPTER_CONFIG, check_adapter, check_bi_encoder, check_own_base
from worker.job import Job
from worker.llm import FALLBACK, context_of, render_messages
from worker.loading import Weights, load_tokenizer
from worker.saving import MANIFEST

LARGEST_COPY = 2**30
MOST_BESIDES = 2**28
EXAMPLE = [{"role": "user", "content": "What is the capital of France?"}]


def import_checkpoint(job: Job) -> None:
    """Checks a checkpoint's files, copies what is needed, and notes what they say of it."""
    recipe: ImportCheckpointRecipe = job.recipe
    place = resolve_path(recipe.source)
    is_local = place.is_dir()
    folder, revision = (place, "") if is_local else fetch_model(job, recipe.source, recipe.revision)
    with job.read() as session:
        base = weights_of(session, recipe.base) if recipe.base is not None else None
    files = list_weights(folder)
    is_adapter = files[0].name == ADAPTER
    if is_adapter and base is None:
        raise _bad(
            f"{folder.name} holds an adapter only: choose the base it was trained on, or merge it into its base "
            "(merge_and_unload) and import that."
        )
    if not is_adapter and base is not None:
        raise Invalid(
            f"{folder.name} holds full weights, which need no base.", {"base": ["leave it empty for full weights"]}
        )
    facts, n_parameters = read_facts(folder, files, recipe.role, base)

    def write(target: Path) -> None:
        _copy(folder, files, target)
        if base is None:
            check_weights(target, folder.name, recipe.role)

    checkpoint_id = store_checkpoint(
        job,
        write,
        method="base" if recipe.role == "policy" and not is_adapter else "imported",
        role=recipe.role,
        start=recipe.base,
        is_adapter=is_adapter,
        n_parameters=n_parameters,
        facts=facts,
    )
    with job.write() as session:
        row = get(session, Checkpoint, checkpoint_id)
        row.name = (recipe.name or (place.name if is_local else recipe.source))[:120]
        if is_local and not recipe.name and place.name in {"hf", "model", "final"}:
            row.name = f"{place.parent.name}/{place.name}"[:120]
        row.source, row.revision = recipe.source[:500], revision[:80]
    job.log(f"{n_parameters:,} parameters, context {facts['context']:,} tokens; prompts by {facts['rendering']}")


def _bad(message: str) -> Invalid:
    return Invalid(message, {"source": [message]})


def list_weights(folder: Path) -> list[Path]:
    """The weight files a loader would read, or an adapter's; raises Invalid without safetensors."""
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX).get("weight_map")
        names = {Path(str(shard)).name for shard in shards.values()} if isinstance(shards, dict) else set()
        files = [folder / name for name in sorted(names)]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise _bad(f"{folder.name} lacks {', '.join(missing[:3]) or 'its weights'}: copy or download it again.")
        return files
    for name in ("model.safetensors", ADAPTER):
        if (folder / name).is_file():
            return [folder / name]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles:
        raise _bad(
            f"{folder.name} has its weights as pickles only ({pickles[0]}), which can run code: save safetensors."
        )
    raise _bad(f"{folder.name} holds no model.safetensors: give the folder that a model was saved in.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(f"{path.name} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise _bad(f"{path.name} is no JSON object.")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; raises Invalid when it, or the tokenizer's, asks for remote code."""
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if config is None:
        raise _bad(f"{folder.name} has no config.json: give the folder that a model was saved in.")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and _read_json(folder / name).get("auto_map"):
            raise _bad(f"{folder.name} asks for code of its own ({name}: auto_map), which is never run: choose a model "
                       "that transformers knows.")  # fmt: skip
    return config


def count_parameters(files: list[Path]) -> tuple[int, dict[str, list[int]]]:
    """Parameters by the headers of the weight files, and the shape of each tensor."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        with file.open("rb") as data:
            size = int.from_bytes(data.read(8), "little")
            header = data.read(size) if size <= 100 * 2**20 else b""
        try:
            tensors = {name: one for name, one in json.loads(header).items() if name != "__metadata__"}
            shapes |= {name: list(one["shape"]) for name, one in tensors.items()}
            if 8 + size + max((one["data_offsets"][1] for one in tensors.values()), default=0) != file.stat().st_size:
                raise ValueError("its end is missing")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _bad(f"{file.name} is no whole safetensors file: copy or download it again.") from error
    total = 0
    for shape in shapes.values():
        n = 1
        for length in shape:
            n *= int(length)
        total += n
    return total, shapes


def read_facts(
    folder: Path, files: list[Path], role: str, base: Weights | None = None
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """What a checkpoint says of itself, and its parameters; raises Invalid when it does not fit its role or base."""
    n_parameters, shapes = count_parameters(files)
    config = read_config(folder if base is None else base.root.folder)
    weights = Weights(str(folder), base=base)
    try:
        from transformers import AutoConfig

        tokenizer = load_tokenizer(weights)
        loaded = AutoConfig.from_pretrained(weights.root.place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise _bad(
            f"transformers cannot read the configuration or tokenizer of {folder.name}: {str(error)[:300]}"
        ) from error
    architecture = _check_kind(folder, shapes, config, loaded, role, base)
    if tokenizer.pad_token_id is None:
        raise _bad(
            f"The tokenizer of {folder.name} has neither an end token nor a padding token: add one and save again."
        )
    try:
        example = render_messages(tokenizer, EXAMPLE)
    except AppError as error:
        raise _bad(error.message) from error
    has_template = bool(tokenizer.chat_template)
    return {
        "architecture": architecture,
        "context": context_of(loaded, tokenizer),
        "vocabulary": len(tokenizer),
        "has_chat_template": has_template,
        "rendering": "the tokenizer's chat template" if has_template else FALLBACK,
        "rendered_example": example,
        "dtype": str(loaded.dtype or "float32").removeprefix("torch."),
        "bytes": sum(file.stat().st_size for file in files),
    }, n_parameters


def _check_kind(
    folder: Path, shapes: dict[str, list[int]], config: dict[str, Any], loaded: Any, role: str, base: Weights | None
) -> str:  # fmt: skip
    """One line on what it is; raises Invalid where that is none of this role."""
    if base is not None:
        check_own_base(folder, base)
    if (folder / BI_ENCODER).is_file():
        if role != "reward":
            raise _bad(f"{folder.name} is a bi-encoder, which scores texts and writes none: choose the role reward.")
        return describe(*check_bi_encoder(folder, shapes, loaded, is_adapter=base is not None))
    if base is not None:
        return check_adapter(folder, shapes, loaded, role)
    architecture = str((config.get("architectures") or ["unknown"])[0])
    wanted = "ForCausalLM" if role == "policy" else "ForSequenceClassification"
    if not architecture.endswith(wanted):
        raise _bad(
            f"{folder.name} is a {architecture}; a {role} model is a …{wanted}: choose the other role or another model."
        )
    head = shapes.get("score.weight")
    if role == "reward" and head is not None and head[0] != 1:
        raise _bad(f"{folder.name} gives {head[0]} scores; a reward model gives one.")
    return architecture


def check_weights(copy: Path, name: str, role: str) -> None:
    """Refuses a copy of full weights that its configuration does not fit, or that lacks embeddings for its tokenizer.

    What is missing transformers would fill with random numbers. Only names and shapes are read. Quantised weights are
    left to the device that can build them, and a bi-encoder has been compared already.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if (copy / BI_ENCODER).is_file() or _read_json(copy / "config.json").get("quantization_config"):
        return
    make = AutoModelForCausalLM if role == "policy" else AutoModelForSequenceClassification
    try:
        model, found = make.from_pretrained(
            copy, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True,
            trust_remote_code=False, local_files_only=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise _bad(f"transformers cannot read the weights of {name}: {str(error)[:300]}") from error
    for tensor, has, needs in sorted(found["mismatched_keys"]):
        raise _bad(
            f"{name} does not fit its config.json: {tensor} is {list(has)} there and {list(needs)} by the "
            "configuration. Copy or save both again."
        )
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise _bad(f"{name} lacks {missing}, which would be random numbers: copy or save it again.")
    highest = max(load_tokenizer(Weights(str(copy))).get_vocab().values())
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise _bad(
            f"The tokenizer of {name} has tokens up to number {highest}, and the model embeddings for {rows}: resize "
            "them (resize_token_embeddings) and save again, or use the model's own tokenizer."
        )


def _copy(folder: Path, files: list[Path], target: Path) -> None:
    """Weights, configuration and tokenizer; nothing else of the folder (no code, no pickles)."""
    is_copied = sum(file.stat().st_size for file in files) <= LARGEST_COPY
    for file in files:
        if is_copied:
            shutil.copyfile(file, target / file.name)
        else:
            (target / file.name).symlink_to(file.resolve())
    is_adapter = files[0].name == ADAPTER
    for file in folder.iterdir():
        is_known = file.suffix in BESIDES and file.name != MANIFEST and not file.name.startswith("pytorch_")
        if file.name.startswith("adapter_") and not (is_adapter and file.name == ADAPTER_CONFIG):
            is_known = False
        if file.is_file() and is_known and file.stat().st_size <= MOST_BESIDES:
            shutil.copyfile(file, target / file.name)
