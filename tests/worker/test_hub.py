"""Imports from a hub id: the real libraries against a server that speaks the hub's protocol."""

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save
from sqlmodel import select
from starlette.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from app.accounts.models import Account
from app.annotations.models import AnnotationSet
from app.checkpoints.models import Checkpoint
from app.cli import main
from app.config import settings
from app.db import get, reading, transaction
from app.experiments.advance import advance_all
from app.experiments.models import Step
from app.experiments.start import start_experiment
from app.projects.models import Membership, Project
from app.projects.projects import make_project
from app.prompts.models import PromptSet
from app.prompts.sources import fetched_name
from app.runs.models import QUEUES, Run
from app.runs.queue import claim, give_back
from tests.hub_server import TOKEN, Hub
from tests.judging.rows import spawn
from tests.prompts.rows import again, do, made, start
from tests.prompts.test_wizard import finish
from tests.servers import free_port
from tests.worker.tiny import tiny_model
from worker.checkpoints import weights_of
from worker.child import work
from worker.hub_model import INDEX
from worker.llm import LocalModel

CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train.jsonl}
  - {split: test, path: plain/test.jsonl}
- config_name: votes
  data_files: votes.jsonl
---
"""


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(n: int) -> bytes:
    """Pairs of prompt, chosen and rejected."""
    out = io.BytesIO()
    pq.write_table(pa.table({
        "prompt": [f"What is {k} and {k}?" for k in range(n)], "chosen": [f"It is {2 * k}." for k in range(n)],
        "rejected": ["No idea."] * n, "rank": [float("nan")] * n, "icon": [b"\x89PNG"] * n,
    }), out)  # fmt: skip
    return out.getvalue()


QUESTIONS = [{"question": f"Why {n}?", "category": "why"} for n in range(5)]
VOTES = [{"item": 1, "who": "ann", "label": "a"}, {"item": 1, "who": "bob", "label": "b"},
         {"item": 2, "who": "ann", "label": "tie"}]  # fmt: skip
CONFIGS = {
    "README.md": CARD.encode(), "plain/train.jsonl": lines(*QUESTIONS), "plain/test.jsonl": lines(*QUESTIONS[:2]),
    "votes.jsonl": lines(*VOTES),
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as server:
        server.add("datasets", "some/pairs", {"data/train-00000-of-00001.parquet": parquet(30)})
        server.add("datasets", "some/configs", CONFIGS)
        server.add("datasets", "some/private", {"train.jsonl": lines(*QUESTIONS)}, private=True)
        server.add("datasets", "some/gated", {"train.jsonl": lines(*QUESTIONS)}, gated=True)
        server.add("datasets", "some/script", {"script.py": b"raise SystemExit", "train.jsonl": lines(*QUESTIONS)})
        server.add("datasets", "some/pictures", {"train/a.png": b"\x89PNG", "train/b.png": b"\x89PNG"})
        server.add("datasets", "some/broken", {"train.jsonl": b'{"question": "Why?"}\n{"question": \n'})
        outside = tmp_path_factory.mktemp("server") / "secret.txt"
        outside.write_text("of the server")
        card = f"---\nconfigs:\n- config_name: x\n  data_files: {outside}\n---\n".encode()
        server.add("datasets", "some/outside", {"README.md": card, "train.txt": b"x"})
        server.failing = {"some/busy": 429, "some/sick": 503}
        yield server


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """The libraries of this process ask the stand-in; they read these names once, at import."""
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.origin)
    files = hub.origin + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.origin)
    files = hub.origin + "/datasets/{repo_id}/resolve/{revision}/{path}"
    monkeypatch.setattr("datasets.config.HUB_DATASETS_URL", files)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    return hub


@pytest.fixture
def database(sqlite_database: str) -> str:
    """What is asked of the hub does not depend on the database."""
    return sqlite_database


@pytest.fixture
def demo(project: Project) -> Project:
    return project


REFUSED = [
    ("some/configs", "several configurations: name one of some/configs/plain, some/configs/votes"),
    ("some/configs/none", "no configuration “none”: name one of"),
    ("some/configs/plain:dev", "such as some/configs/plain:train, some/configs/plain:test"),
    ("some/private", "it is private: check the id, or let the HF_TOKEN"),
    ("some/gated", "is gated: ask for access on http://"),
    ("some/script", "made by code of its own (script.py), which is never run"),
    ("some/pictures", "read by “imagefolder”, not as rows"),
    ("some/broken", "JSON parse error"),
    ("some/outside", "Data files don't belong to some/outside"),
    ("some/missing", "has no some/missing"),
    ("some/pairs@v2", "no such revision"),
    ("docs/methods", "has no docs/methods"),  # also a folder of this repository
    ("no name", "write owner/name"),
    ("some/busy", "too many requests: wait"),
    ("some/sick", "an error of its own (503): press Resume later"),
]  # fmt: skip


def test_data_sets_come_in_as_what_they_are_with_the_commit_they_had(demo: Project, online: Hub) -> None:
    commit = online.repositories["datasets/some/pairs"].branches["main"]
    pairs = do(demo.id, "import_pairs", path="some/pairs", format="hub")
    assert pairs.status == "done", pairs.error
    test = do(demo.id, "import_prompts", path="some/configs/plain:test", format="hub")
    votes = do(demo.id, "import_annotations", path="some/configs/votes", format="hub", layout="rows", scale="pairwise3",
               item_fields=["item"], annotator_field="who", label_field="label")  # fmt: skip
    with reading() as session:
        first = get(session, PromptSet, made(pairs, "prompt_set"))
        assert (first.name, first.n, first.source) == ("pairs", 30, f"some/pairs@{commit}:train")
        assert get(session, PromptSet, made(test, "prompt_set")).n == 2
        labels = get(session, AnnotationSet, made(votes, "annotation_set"))
        assert (labels.name, labels.n, labels.n_labels) == ("configs", 2, 3)
        assert labels.source.startswith("some/configs/votes@") and labels.source.endswith(":train")


@pytest.mark.parametrize(("name", "said"), REFUSED)
def test_what_the_hub_does_not_give_says_what_to_do(demo: Project, online: Hub, name: str, said: str) -> None:
    run = do(demo.id, "import_prompts", path=name, format="hub")
    assert run.status == "failed" and said in str(run.error) and "Traceback" not in str(run.error)
    assert "of the server" not in str(run.error)


def test_a_token_opens_what_its_account_may_read(
    demo: Project, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for token, name, said in [
        (TOKEN, "some/private", ""), (TOKEN, "some/gated", ""), ("hf_of_a_stranger", "some/gated", "is gated"),
        ("hf_old", "some/private", "does not accept the HF_TOKEN"),
    ]:  # fmt: skip
        monkeypatch.setenv("HF_TOKEN", token)
        run = do(demo.id, "import_prompts", path=name, format="hub")
        assert run.status == ("failed" if said else "done") and said in str(run.error), run.error
        assert token not in str(run.error)


def test_no_network_and_no_wish_for_one_are_told_apart(
    demo: Project, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for kind, values in [("import_prompts", {"path": "some/pairs", "format": "hub"}),
                         ("import_checkpoint", {"source": "some/model"})]:  # fmt: skip
        run = do(demo.id, kind, **values)
        assert "cannot be reached from the worker" in str(run.error) and "HF_ENDPOINT" in str(run.error)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kind, values in [("import_prompts", {"path": "some/pairs", "format": "hub"}),
                         ("import_checkpoint", {"source": "some/model"})]:  # fmt: skip
        assert "HF_HUB_OFFLINE is set" in str(do(demo.id, kind, **values).error)


def test_first_rows_are_looked_at_before_anything_is_stored(client: TestClient, project: Project, online: Hub) -> None:
    commit = online.add("datasets", "some/pairs", {"train.parquet": parquet(30)})
    sent = {"target": "prompts", "form_key": "h1", "path": "some/pairs", "format": "hub", "limit": "7"}
    waits = client.post("/p/demo/import/look", data=sent)
    assert "They are shown here once they have arrived" in waits.text and "fetching=1" in str(waits.url)
    assert finish().status == "done"
    page = client.get(str(waits.url))
    assert f"some/pairs@{commit}:train" in page.text and "Import as preferences" in page.text
    assert "What is 0 and 0?" in page.text and 'value="7"' in page.text
    with reading() as session:
        assert not session.exec(select(PromptSet)).all()
    panel = client.get("/p/demo/runs/1/panel/peek_hub").text
    assert "Look at them" in panel and commit in panel
    online.add("datasets", "some/pairs", {"train.parquet": parquet(3)})  # what was looked at is what is imported
    start = {"path": f"some/pairs@{commit}:train", "format": "hub", "target": "pairs", "as": "pairs"}
    done = client.post("/p/demo/import/start", data=start, follow_redirects=False)
    assert done.status_code == 303, done.text
    run = finish()
    with reading() as session:
        assert get(session, PromptSet, made(run, "prompt_set")).n == 30
    failed = client.post("/p/demo/import/look", data={**sent, "path": "some/missing"})
    assert finish().status == "failed"
    assert "has no some/missing" in client.get(str(failed.url)).text
    assert "write owner/name" in client.post("/p/demo/import/look", data={**sent, "path": "a b"}).text
    assert "choose the format hub" in client.get("/p/demo/import/look?path=some/gated").text
    unseen = client.get("/p/demo/import/look?path=some/gated&format=hub").text
    assert "Fetch its first rows" in unseen and "Import as" not in unseen
    start = {"path": "some/gated", "format": "hub", "target": "pairs", "as": "pairs"}
    assert "has been fetched from the hub yet" in client.post("/p/demo/import/start", data=start).text


def test_what_was_fetched_is_listed_and_deleted_unless_a_live_run_uses_it(
    client: TestClient, project: Project, online: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    page = "/p/demo/import/fetched"
    assert "Nothing lies here" in client.get(page).text
    looked = do(project.id, "peek_hub", path="some/pairs")
    imported = do(project.id, "import_pairs", path="some/pairs", format="hub")
    (settings().data_path / "hub" / "left over.jsonl").write_text("{}")
    other = make_other_project(project)
    do(other, "peek_hub", path="some/configs/plain:test")  # of another project: not for this one's pages

    rows = {one["what"]: one for one in client.get("/api/v1/p/demo/import/fetched").json() if one["name"]}
    assert set(rows) == {"first rows", "whole copy"}
    assert {one["name"] for one in rows.values()} == {fetched_name(looked.id)}
    assert rows["first rows"]["runs"] == [looked.id, imported.id] and rows["whole copy"]["runs"] == [imported.id]
    shown = client.get(page).text
    assert shown.count(fetched_name(looked.id)) >= 2 and "known to no run" in shown and "some/configs" not in shown
    assert f"{page}" in client.get("/p/demo/settings").text and f"{page}" in client.get("/p/demo/prompts/import").text

    live = start(project.id, "import_prompts", path="some/pairs", format="hub")  # running, whatever it has read so far
    refused = client.post(f"{page}/{rows['first rows']['key']}/delete")
    assert refused.status_code == 409 and f"Run {live.id} uses some/pairs@" in refused.text
    assert client.post(f"/api/v1/p/demo/import/fetched/{rows['whole copy']['key']}/delete").status_code == 200
    assert client.post(f"{page}/{rows['whole copy']['key']}/delete").status_code == 404
    assert main(["hub", "list"]) == 0
    said = capsys.readouterr().out
    assert "first rows" in said and "whole copy" not in said and "some/configs/plain@" in said
    assert main(["hub", "delete", rows["first rows"]["key"]]) == 1
    assert f"Run {live.id} uses" in capsys.readouterr().err
    assert client.post(f"{page}/delete").status_code == 200  # the left over file alone: the other is in use
    assert [one["what"] for one in client.get("/api/v1/p/demo/import/fetched").json()] == ["first rows"]

    assert work(live.id, live.attempt) == "done"
    assert main(["hub", "delete", "--unused"]) == 0
    assert not list(settings().data_path.glob("hub/*")) and not list(settings().data_path.glob("runs/*/hub.jsonl"))
    assert "Fetch its first rows" in client.get(f"/p/demo/import/look?path={fetched_name(looked.id)}&format=hub").text


def make_other_project(project: Project) -> int:
    with transaction() as session:
        owner = session.exec(select(Membership.account_id).where(Membership.project_id == project.id)).first()
        return make_project(session, "other", "Other", get(session, Account, owner or 0)).id


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a tiny Llama with random weights, in several shards."""
    folder = tmp_path_factory.mktemp("model")
    _, tokenizer = tiny_model()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(model: dict[str, bytes]) -> dict[str, bytes]:
    """The same in one file."""
    shards = {name: data for name, data in model.items() if name.endswith(".safetensors")}
    rest = {name: data for name, data in model.items() if name not in shards and name != INDEX}
    tensors = {name: one for data in shards.values() for name, one in load(data).items()}
    return {**rest, "model.safetensors": save(tensors, {"format": "pt"})}


def test_a_model_comes_in_at_its_commit_without_code_and_pickles(
    demo: Project, online: Hub, model: dict[str, bytes]
) -> None:  # fmt: skip
    extra = {"modeling_x.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"x"}
    first = online.add("models", "some/model", {**whole(model), **extra})
    online.add("models", "some/model", model)
    online.asked.clear()
    newest = do(demo.id, "import_checkpoint", source="some/model")
    assert newest.status == "done", newest.error
    assert not set(extra) & set(online.asked) and newest.done == newest.total == sum(
        len(data) for name, data in model.items() if name.endswith(".safetensors")
    )
    old = do(demo.id, "import_checkpoint", source="some/model", revision=first)
    with reading() as session:
        rows = [get(session, Checkpoint, made(run, "checkpoint")) for run in (newest, old)]
        assert [row.revision for row in rows] == [online.repositories["models/some/model"].branches["main"], first]
        assert rows[0].name == "some/model" and rows[0].n_parameters == rows[1].n_parameters
        logits = [LocalModel(weights_of(session, row.id)) for row in rows]
    assert torch.equal(*(one.model.lm_head.weight for one in logits))


@pytest.mark.parametrize(("case", "said"), [
    ("pickle", "pickles only (pytorch_model.bin), which can run code"), ("code", "config.json: auto_map"),
    ("nothing", "holds no model.safetensors"), ("missing", "has no some/missing"), ("gated", "ask for access on"),
    ("revision", "no such revision"), ("shard", "some/shard lacks model-0000"),
])  # fmt: skip
def test_a_model_that_is_not_taken_says_why_before_its_weights_are_fetched(
    demo: Project, online: Hub, model: dict[str, bytes], case: str, said: str
) -> None:  # fmt: skip
    files = dict(model)
    if case in {"pickle", "nothing"}:
        files = {name: data for name, data in model.items() if "safetensors" not in name}
        files |= {"pytorch_model.bin": b"pickle"} if case == "pickle" else {}
    elif case == "code":
        config = {**json.loads(model["config.json"]), "auto_map": {"AutoModel": "x.X"}}
        files["config.json"] = json.dumps(config).encode()
    elif case == "shard":
        files.pop(max(name for name in model if name.endswith(".safetensors")))
    if case != "missing":
        online.add("models", f"some/{case}", files, gated=case == "gated")
    online.asked.clear()
    run = do(demo.id, "import_checkpoint", source=f"some/{case}", revision="v9" if case == "revision" else "")
    assert run.status == "failed" and said in str(run.error) and "Traceback" not in str(run.error)
    assert not any(name.endswith((".safetensors", ".bin")) for name in online.asked)


def test_a_fetch_that_was_killed_goes_on_with_what_has_arrived_and_then_works_offline(
    demo: Project, online: Hub, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    commit = online.add("models", "some/large", model)
    last = max(name for name in model if name.endswith(".safetensors"))
    online.held, online.let_go = {last}, threading.Event()
    online.asked.clear()
    run = start(demo.id, "import_checkpoint", source="some/large")
    child = spawn(run)
    place = Path(os.environ["HF_HOME"]) / "hub" / "models--some--large" / "snapshots" / commit
    rest = {name for name in model if name.endswith(".safetensors")} - {last}
    wait_for(lambda: last in online.asked and rest <= {path.name for path in place.glob("*")})
    wait_for(lambda: 0 < again(run.id).done < again(run.id).total)  # the bar shows what has arrived
    child.kill()
    child.wait()
    online.let_go.set()
    online.add("models", "some/large", {**model, "config.json": b"{}"})  # a later commit, which is not mixed in
    online.asked.clear()
    with transaction() as session:
        give_back(session, run.id, run.attempt, is_death=True, why="killed")
    with transaction() as session:
        second = claim(session, QUEUES, "test", None)
    assert second is not None and second.attempt == 2
    assert work(second.id, second.attempt) == "done"
    assert {name for name in online.asked if name.endswith(".safetensors")} == {last}
    with reading() as session:
        row = get(session, Checkpoint, made(run, "checkpoint"))
    assert row.revision == commit and row.facts["context"] == 64
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    online.asked.clear()
    away = do(demo.id, "import_checkpoint", source="some/large")
    with reading() as session:
        again_row = get(session, Checkpoint, made(away, "checkpoint"))
    assert again_row.revision == commit and not online.asked


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_command_line_api_and_experiment_files_take_hub_ids(
    client: TestClient, project: Project, online: Hub, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    commit = online.repositories["datasets/some/configs"].branches["main"]
    assert main(["import", "prompts", "some/configs/plain:test", "--project", "demo"]) == 1
    assert "--set format=hub" in capsys.readouterr().err
    assert main(["import", "prompts", "some/configs/plain:test", "--project", "demo", "--set", "format=hub"]) == 0
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
    assert run is not None and spawn(run).wait() == 0  # a process of its own, which reads HF_ENDPOINT
    assert again(run.id).status == "done", again(run.id).error
    sent = {"path": "some/configs/plain:test", "format": "hub"}
    assert client.post("/api/v1/p/demo/prompts/import", data=sent).status_code == 201
    assert finish().status == "done"
    with reading() as session:
        assert {row.source for row in session.exec(select(PromptSet))} == {f"some/configs/plain@{commit}:test"}
    text = "name: Hub\nsteps:\n" + "".join(
        f'  - {{name: s{n}, recipe: {{kind: import_prompts, path: "some/configs/plain{at}:test", format: hub}}}}\n'
        for n, at in enumerate(["", f"@{commit}"])
    )
    for times in (1, 2):
        with transaction() as session:
            started = start_experiment(session, project.id, text, variables={}).id
        advance_all()
        while again_claimed := claimed():
            work(again_claimed.id, again_claimed.attempt)
        advance_all()
        with reading() as session:
            steps = {step.name: step for step in session.exec(select(Step).where(Step.experiment_id == started))}
        assert {step.status for step in steps.values()} == {"done"}
        # What a branch holds may have changed since; what a commit holds has not.
        assert (steps["s0"].is_reused, steps["s1"].is_reused) == (False, times == 2)


def claimed() -> Run | None:
    with transaction() as session:
        return claim(session, QUEUES, "test", None)
