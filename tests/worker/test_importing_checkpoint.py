"""Importing a checkpoint: what is refused, what is noted, and that what was imported can be loaded."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import get, reading
from app.projects.models import Project
from app.runs.models import Run
from tests.benchmarks.rows import fresh_project
from tests.prompts.rows import do, made
from tests.worker.tiny import same, tiny_model, write_tiny
from worker.bi_encoder import make_bi_encoder
from worker.checkpoints import weights_of
from worker.importing_checkpoint import EXAMPLE
from worker.llm import FALLBACK, LocalModel
from worker.loading import load_lora, load_tokenizer
from worker.saving import is_whole, write_model


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about files."""
    return fresh_project()


def stored(run: Run) -> Checkpoint:
    with reading() as session:
        return get(session, Checkpoint, made(run, "checkpoint"))


def test_a_real_checkpoint_is_copied_sealed_and_described(demo: Project, shared_data: Path) -> None:
    source = shared_data / "stories260k" / "hf"
    run = do(demo.id, "import_checkpoint", source=str(source))
    assert run.status == "done", run.error
    row = stored(run)
    assert (row.name, row.method, row.role, row.n_parameters) == ("stories260k/hf", "base", "policy", 260_032)
    assert row.facts["context"] == 512 and row.facts["has_chat_template"] is False
    assert row.facts["rendering"] == FALLBACK
    folder = settings().data_path / row.path
    assert is_whole(folder) and row.manifest_sha256
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with reading() as session:
        model = LocalModel(weights_of(session, row.id))
    (said,) = model.sample(
        [[{"role": "user", "content": "Once upon a time"}]], {"temperature": 0, "max_new_tokens": 8}, 1
    )
    assert said.n_tokens == 8


def test_a_template_is_shown_and_code_is_left_behind(demo: Project, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_model(*tiny_model(), folder)
    (folder / "modeling_mine.py").write_text("raise SystemExit('never run')")
    (folder / "training_args.bin").write_bytes(b"pickle")
    run = do(demo.id, "import_checkpoint", source=str(folder), name="mine")
    row = stored(run)
    assert row.facts["has_chat_template"] is True
    assert row.facts["rendered_example"] == "<|user|>What is the capital of France?<|end|><|assistant|>"
    kept = {path.name for path in (settings().data_path / row.path).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= kept
    assert not any(name.endswith((".py", ".bin")) for name in kept)


def spoil(folder: Path, case: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if case == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "code":
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "m.M"}}))
    elif case == "tokenizer code":
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}}))
    elif case == "torn":
        (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    elif case == "unknown":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    elif case == "encoder":
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    elif case == "shard":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    elif case in {"index", "index of a list"}:
        said = {"weight_map": ["a"]} if case == "index" else []
        (folder / "model.safetensors.index.json").write_text(json.dumps(said))
    elif case == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif case == "untied":
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    elif case == "wider":
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    elif case == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif case in {"missing", "fewer rows"}:
        tensors = load_file(folder / "model.safetensors")
        if case == "missing":
            del tensors["model.layers.1.mlp.up_proj.weight"]
        else:
            tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
            (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif case == "no end":
        said = json.loads((folder / "tokenizer_config.json").read_text())
        said = {key: value for key, value in said.items() if key not in {"eos_token", "pad_token"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
    elif case == "adapter":
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")


REFUSED = [
    ("pickle", "pickles only (pytorch_model.bin)"), ("code", "config.json: auto_map"),
    ("tokenizer code", "tokenizer_config.json: auto_map"), ("torn", "no whole safetensors file"),
    ("unknown", "transformers cannot read"), ("encoder", "is a BertModel"), ("shard", "lacks model-2.safetensors"),
    ("adapter", "holds an adapter only"), ("index", "lacks its weights"), ("index of a list", "is no JSON object"),
    ("cut", "no whole safetensors file"), ("untied", "lacks lm_head.weight, which would be random numbers"),
    ("wider", "model.layers.0.mlp.down_proj.weight is [32, 64] there and [32, 96] by the configuration"),
    ("missing", "lacks model.layers.1.mlp.up_proj.weight"), ("no tokenizer", "configuration or tokenizer of mine"),
    ("fewer rows", "and the model embeddings for 300: resize them"), ("no end", "neither an end token nor a padding"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), REFUSED)
def test_what_is_unsafe_or_broken_is_refused(demo: Project, tmp_path: Path, case: str, reason: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(write_tiny(tmp_path / "tiny").folder, folder)
    spoil(folder, case)
    run = do(demo.id, "import_checkpoint", source=str(folder))
    assert run.status == "failed"
    assert reason in str(run.error) and "Traceback" not in str(run.error)


@pytest.mark.parametrize("case", ["shards", "wider embedding", "pad is end", "stray adapter"])
def test_what_is_odd_but_whole_is_imported(demo: Project, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "mine"
    model, tokenizer = tiny_model()
    model = copy.deepcopy(model)
    if case == "wider embedding":
        model.resize_token_embeddings(len(tokenizer) + 50)
    model.save_pretrained(folder, max_shard_size="40kB" if case == "shards" else "5GB")
    tokenizer.save_pretrained(folder)
    if case == "pad is end":
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**said, "pad_token": said["eos_token"]}))
    if case == "stray adapter":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/where"}))
    run = do(demo.id, "import_checkpoint", source=str(folder))
    assert run.status == "done", run.error
    with reading() as session:
        loaded = LocalModel(weights_of(session, stored(run).id))
    assert same(loaded.model.state_dict(), model.state_dict())
    assert len(loaded.sample([EXAMPLE, EXAMPLE], {"max_new_tokens": 4}, 1)) == 2


def test_what_is_neither_a_directory_nor_an_id(demo: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = do(demo.id, "import_checkpoint", source="../no/such/folder")
    assert "no directory on the server and no Hugging Face id" in str(run.error)
    run = do(demo.id, "import_checkpoint", source=str(Path(__file__).parent), role="policy")
    assert "no model.safetensors" in str(run.error)


SPOILED = [
    ("a tensor is missing", "heads.prompt.weight is missing"), ("another width", "heads.prompt.weight is [3, 3] there"),
    ("another scoring", "says scoring 'dice'"), ("adapters", "says rank 4, which its weights are not"),
    ("policy", "is a bi-encoder, which scores texts"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), SPOILED)
def test_a_bi_encoder_that_cannot_be_one_is_refused(demo: Project, tmp_path: Path, case: str, reason: str) -> None:
    base = write_tiny(tmp_path / "tiny")
    folder = tmp_path / "mine"
    folder.mkdir()
    make_bi_encoder(base, "dot", None, "float32", 1).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if case == "a tensor is missing":
        del tensors["heads.prompt.weight"]
    elif case == "another width":
        tensors["heads.prompt.weight"] = tensors["heads.prompt.weight"][:3, :3].contiguous()
    save_file(tensors, folder / "model.safetensors")
    if case in ("another scoring", "adapters"):
        said = {"scoring": "dice", "rank": None} if case == "another scoring" else {"scoring": "dot", "rank": 4}
        (folder / "bi_encoder.json").write_text(json.dumps(said))
    run = do(demo.id, "import_checkpoint", source=str(folder), role="policy" if case == "policy" else "reward")
    assert run.status == "failed"
    assert reason in str(run.error) and "Traceback" not in str(run.error)


@pytest.mark.parametrize(
    "change", [{"peft_type": "IA3"}, {"megatron_config": {"a": 1}}, {"task_type": "SEQ_CLS"}, {"r": 3}]
)
def test_an_adapter_of_another_kind_is_refused(demo: Project, tmp_path: Path, change: dict[str, Any]) -> None:
    base = write_tiny(tmp_path / "tiny")
    key = made(do(demo.id, "import_checkpoint", source=base.place), "checkpoint")
    folder = tmp_path / "mine"
    load_lora(base, 2).save_pretrained(folder)
    fine = do(demo.id, "import_checkpoint", source=str(folder), base=key)
    assert fine.status == "done", fine.error
    row = stored(fine)
    assert (row.weights, row.base_id, row.facts["architecture"]) == ("adapter", key, "LoRA adapter of rank 2")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    run = do(demo.id, "import_checkpoint", source=str(folder), base=key)
    assert run.status == "failed" and "Traceback" not in str(run.error)
    assert any(said in str(run.error) for said in ("no plain LoRA", "is an adapter for SEQ_CLS", "does not fit"))
