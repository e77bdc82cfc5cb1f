"""The run that adds an endpoint: its pace and extra fields are those of the endpoint's own form."""

import pytest
from starlette.testclient import TestClient

from app.checkpoints.models import Endpoint
from app.errors import Invalid
from app.projects.models import Project
from app.recipes import read_recipe
from tests.judging.rows import claim_next, made, read
from worker.child import work

HERE = {"kind": "new_endpoint", "origin": "http://127.0.0.1:1/v1", "model": "m"}


def test_the_form_that_adds_an_endpoint_sets_its_pace_and_extra_fields(client: TestClient, project: Project) -> None:
    page = client.get("/p/demo/new/new_endpoint").text
    assert 'name="requests_per_minute"' in page and 'name="extra_body"' in page
    fields = {**HERE, "requests_per_minute": "60", "tokens_per_minute": "", "extra_body": '{"top_k": 3}'}
    wrong = client.post("/p/demo/new/new_endpoint", data={**fields, "extra_body": '{"model": "x"}'})
    assert wrong.status_code == 422 and "“model” is set by each call" in wrong.text
    assert "{&#34;model&#34;: &#34;x&#34;}" in wrong.text, "what was typed is still there"
    assert client.post("/p/demo/new/new_endpoint", data=fields, follow_redirects=False).status_code == 303
    run = claim_next()
    assert work(run.id, run.attempt) == "done"
    found: Endpoint = read(Endpoint, made(run, "endpoint"))
    assert (found.requests_per_minute, found.tokens_per_minute, found.extra_body) == (60, None, {"top_k": 3})
    like = client.get("/p/demo/new/new_endpoint", params={"like": run.id}).text
    assert "{&#34;top_k&#34;: 3}" in like


@pytest.mark.parametrize(
    ("field", "given"),
    [("extra_body", [1]), ("extra_body", {"n": 2}), ("extra_body", "{"), ("requests_per_minute", 0),
     ("tokens_per_minute", "many")],
)  # fmt: skip
def test_what_no_endpoint_can_have_is_refused_at_its_field(field: str, given: object) -> None:
    with pytest.raises(Invalid) as error:
        read_recipe({**HERE, field: given})
    assert list(error.value.fields) == [field]
