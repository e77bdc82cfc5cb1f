"""The forecast of a generation: from the form's own fields, with what the call ledger holds already."""

from typing import Any

from starlette.testclient import TestClient

from app.checkpoints.endpoints import make_endpoint
from app.db import transaction
from app.projects.models import Project
from tests.benchmarks.rows import demo_prompts, tiny_checkpoint
from tests.chat_server import ChatServer
from tests.prompts.rows import do


def test_a_generation_is_priced_before_it_starts(client: TestClient, project: Project) -> None:
    assert "/p/demo/forecast/generate" in client.get("/p/demo/new/generate").text
    assert "Choose prompts" in client.get("/p/demo/forecast/generate").text
    with ChatServer(lambda _: "an answer") as server:
        with transaction() as session:
            endpoint = make_endpoint(session, project.id, origin=server.origin, model="m", usd_per_million_out=1e6).id
            prompts = demo_prompts(session, project, 6, "train").id
        fields: dict[str, Any] = {"prompt_set": prompts, "endpoint": endpoint, "samples": 2, "pairing": "none"}
        said = client.get("/p/demo/forecast/generate", params={**fields, "budget_usd": 3}).text
        assert "At most $1536.00" in said and "12 completions, 12 calls" in said and "stops at $3" in said
        assert do(project.id, "generate", **fields).status == "done"
    assert "12 completions, 0 calls" in client.get("/p/demo/forecast/generate", params=fields).text
    other = client.get("/p/demo/forecast/generate", params={**fields, "seed": 99}).text
    assert "12 completions, 12 calls" in other and "known already" not in other
    local: dict[str, Any] = {**fields, "endpoint": "", "checkpoint": tiny_checkpoint(project)}
    assert "It costs no money" in client.get("/p/demo/forecast/generate", params=local).text
