"""The pages of checkpoints, endpoints and arms; an endpoint's key; arms found or made."""

from pathlib import Path

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.checkpoints.arms import find_or_make_arm, find_or_make_imported_arm, put_before
from app.checkpoints.endpoints import make_endpoint, read_key
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import get, reading, transaction
from app.errors import NotFound
from app.projects.models import Membership, Project
from tests.chat_server import ChatServer
from tests.prompts.rows import do, made

KEY = "sk-very-secret-0123456789"
FORM = {"name": "mine", "origin": "http://127.0.0.1:8000/v1/", "model": "m-1", "usd_per_million_in": "0.5"}


def stored() -> Endpoint:
    with reading() as session:
        return session.exec(select(Endpoint)).one()


def family(project: Project) -> list[int]:
    """base → sft → dpo, and a reward model beside the dpo."""
    with transaction() as session:
        ids: list[int] = []
        for name, method, role, parent in (
            ("base", "base", "policy", None), ("tuned", "sft", "policy", 0), ("preferred", "dpo", "policy", 1),
            ("scorer", "reward", "reward", 1),
        ):  # fmt: skip
            row = Checkpoint(
                project_id=project.id, name=name, method=method, role=role, step=len(ids),
                parent_id=None if parent is None else ids[parent], facts={"context": 512, "dev_accuracy": 0.75},
            )  # fmt: skip
            session.add(row)
            session.flush()
            ids.append(row.id)
        return ids


def test_lineage_goes_up_and_down(client: TestClient, project: Project) -> None:
    base, tuned, preferred, scorer = family(project)
    found = client.get(f"/p/demo/checkpoints/{tuned}.json").json()
    assert (found["ancestors"], found["descendants"]) == ([base], [preferred, scorer])
    assert client.get(f"/p/demo/checkpoints/{preferred}.json").json()["ancestors"] == [base, tuned]
    assert client.get(f"/p/demo/checkpoints/{base}.json").json()["descendants"] == [tuned, preferred, scorer]
    page = client.get(f"/p/demo/checkpoints/{base}").text
    assert "2 trainings on" in page and "512 tokens" in page and "arm-base" in page
    assert "0.75" in client.get(f"/p/demo/checkpoints/{scorer}").text
    rows = client.get("/p/demo/checkpoints.json?role=reward").json()["rows"]
    assert [(row["name"], row["parent"]) for row in rows] == [("scorer", "tuned")]


def test_an_imported_checkpoint_has_a_page_with_what_used_it(
    client: TestClient, project: Project, shared_data: Path
) -> None:
    run = do(project.id, "import_checkpoint", source=str(shared_data / "stories260k" / "hf"))
    key = made(run, "checkpoint")
    prompts = do(project.id, "import_prompts", shipped="demo")
    used = do(project.id, "generate", prompt_set=made(prompts, "prompt_set"), checkpoint=key, limit=2, samples=1,
              pairing="none", decoding={"max_new_tokens": 4})  # fmt: skip
    assert used.status == "done", used.error
    page = client.get(f"/p/demo/checkpoints/{key}").text
    assert "260,032" in page and "no chat template" in page and f"/p/demo/runs/{used.id}" in page
    arm = client.get(f"/p/demo/checkpoints/arms/{made(used, 'arm')}").text
    assert "stories260k/hf · T=1" in arm and f"/p/demo/checkpoints/{key}" in arm


def test_an_endpoints_key_is_encrypted_shown_by_its_end_and_bound_to_its_origin(client: TestClient) -> None:
    answer = client.post("/p/demo/checkpoints/endpoints/new", data={**FORM, "key": KEY}, follow_redirects=False)
    assert answer.status_code == 303
    row = stored()
    assert row.origin == "http://127.0.0.1:8000/v1" and read_key(row) == KEY
    assert row.key_ciphertext is not None and KEY not in row.key_ciphertext
    here = f"/p/demo/checkpoints/endpoints/{row.id}"
    pages = [client.get(path).text for path in (here, f"{here}/edit", "/p/demo/checkpoints/endpoints",
             "/p/demo/checkpoints/endpoints.json", "/p/demo/checkpoints/endpoints.csv")]  # fmt: skip
    assert all(KEY not in page and row.key_ciphertext not in page for page in pages)
    assert "6789" in pages[0] and "6789" in pages[2]
    client.post(f"{here}/edit", data={**FORM, "model": "m-2"})
    assert (stored().model, read_key(stored())) == ("m-2", KEY), "a form without a key keeps it"
    client.post(f"{here}/edit", data={**FORM, "origin": "http://127.0.0.1:9000/v1"})
    assert (stored().key_ciphertext, stored().key_last4) == (None, ""), "a key belongs to one origin"
    client.post(f"{here}/edit", data={**FORM, "origin": "http://127.0.0.1:9000/v1", "key": "another-key-abcd"})
    assert read_key(stored()) == "another-key-abcd"
    client.post(f"{here}/edit", data={**FORM, "origin": "http://127.0.0.1:9000/v1", "is_key_dropped": "true"})
    assert stored().key_ciphertext is None
    client.post(f"{here}/archive")
    assert "No endpoint yet" in client.get("/p/demo/checkpoints/endpoints").text


BAD = [
    ({**FORM, "origin": "ftp://x.example/v1"}, "begins with http"),
    ({**FORM, "origin": "http://169.254.169.254/v1"}, "link-local"),
    ({**FORM, "model": ""}, "is needed"),
    ({**FORM, "usd_per_million_in": "-1"}, "must be at least 0"),
]


@pytest.mark.parametrize(("form", "said"), BAD)
def test_a_refused_endpoint_keeps_what_was_typed_but_not_the_key(
    client: TestClient, form: dict[str, str], said: str
) -> None:
    page = client.post("/p/demo/checkpoints/endpoints/new", data={**form, "key": KEY})
    assert page.status_code == 422 and said in page.text and 'value="mine"' in page.text and KEY not in page.text
    answer = client.post("/api/v1/p/demo/endpoints", json={k: v for k, v in form.items() if v} | {"key": KEY})
    assert answer.status_code == 422 and KEY not in answer.text


def test_the_api_adds_an_endpoint_and_never_sends_its_key_back(client: TestClient) -> None:
    answer = client.post("/api/v1/p/demo/endpoints", json={**FORM, "key": KEY})
    assert answer.status_code == 201 and answer.json()["key_last4"] == "6789"
    assert KEY not in answer.text and "key_ciphertext" not in answer.json()
    again = client.post("/api/v1/p/demo/endpoints", json=FORM)
    assert again.status_code == 422 and "already an endpoint" in again.text
    assert client.post("/api/v1/p/demo/endpoints", json={**FORM, "surprise": 1}).status_code == 422


def test_the_connection_is_tested_and_what_was_found_is_kept(client: TestClient, project: Project) -> None:
    with ChatServer(lambda request: "red") as server:
        with transaction() as session:
            make_endpoint(session, project.id, origin=server.origin, model="m")
        page = client.post(f"/p/demo/checkpoints/endpoints/{stored().id}/test")
        assert page.status_code == 200 and len(server.requests) > 3
    assert stored().mode.get("token_field") == "max_tokens"


def test_the_same_arm_is_found_again(project: Project) -> None:
    base, tuned, *_ = family(project)
    with transaction() as session:
        arm = find_or_make_arm(session, project.id, checkpoint=base, decoding={"temperature": 1, "max_new_tokens": 8})
        same = find_or_make_arm(
            session, project.id, checkpoint=base, decoding={"max_new_tokens": 8, "temperature": 1.0}
        )
        assert (same.id, arm.method, arm.name) == (arm.id, "base", "base · T=1")
        greedy = find_or_make_arm(session, project.id, checkpoint=base, decoding={"temperature": 0, "top_p": 0.5})
        assert (greedy.name, greedy.decoding["top_p"]) == ("base · greedy", 1.0)
        told = find_or_make_arm(session, project.id, checkpoint=base, system="Be brief.", decoding={"temperature": 1})
        assert (told.method, told.name) == ("in_context", "base · system message · T=1")
        shown = find_or_make_arm(
            session, project.id, checkpoint=tuned, decoding={}, name="mine",
            few_shot=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        )  # fmt: skip
        assert (shown.method, shown.name, len(shown.preamble)) == ("sft", "mine", 2)
        brought = find_or_make_imported_arm(session, project.id, "file")
        assert find_or_make_imported_arm(session, project.id, "file").id == brought.id
        assert len({arm.id, greedy.id, told.id, shown.id, brought.id}) == 5
        with pytest.raises(NotFound):
            find_or_make_arm(session, project.id + 1, checkpoint=base, decoding={})
    with reading() as session:
        assert get(session, Arm, arm.id).decoding == {"temperature": 1.0, "max_new_tokens": 8}


def test_two_system_messages_become_one() -> None:
    ask, told = {"role": "user", "content": "q"}, {"role": "system", "content": "two"}
    before = [{"role": "system", "content": "one"}]
    assert put_before(before, [told, ask]) == [{"role": "system", "content": "one\n\ntwo"}, ask]
    assert put_before(before, [ask]) == [*before, ask]
    assert put_before([], [told, ask]) == [told, ask]


def test_rows_of_another_project_are_not_there(client: TestClient, project: Project) -> None:
    base, *_ = family(project)
    with transaction() as session:
        arm = find_or_make_arm(session, project.id, checkpoint=base, decoding={}).id
        endpoint = make_endpoint(session, project.id, origin="http://127.0.0.1:1/v1", model="m").id
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        owner = session.exec(select(Membership)).first()
        assert owner is not None
        session.add(Membership(project_id=other.id, account_id=owner.account_id, role="owner"))
    for path in (str(base), f"{base}.json", f"arms/{arm}", f"endpoints/{endpoint}", f"endpoints/{endpoint}/edit"):
        assert client.get(f"/p/demo/checkpoints/{path}").status_code == 200, path
        assert client.get(f"/p/other/checkpoints/{path}").status_code == 404, path
    assert client.post(f"/p/other/checkpoints/endpoints/{endpoint}/edit", data=FORM).status_code == 404
