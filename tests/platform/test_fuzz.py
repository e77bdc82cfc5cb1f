"""Every route gets what nobody would send on purpose, from a seed: whatever it answers, it is no crash."""

import json
import random
import re
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute
from sqlmodel import select
from starlette.testclient import TestClient

from app.db import transaction
from app.experiments.start import start_experiment
from app.grading.models import GradeItem
from app.projects.models import Project
from app.prompts.recipes import ImportPromptsRecipe
from app.recipes import RECIPES
from app.runs.queue import launch
from tests.grading.rows import FIRST_ID, make_marked_grading

TRIES = 2  # a route
ODD_IDS = ["0", "-1", str(2**63 - 1), str(2**63), str(2**70), "9" * 400, "²", "1.5", "%ed%a0%80", "a%0ab"]
WORDS = ["", "0", "-1", "1", "2", "abc", "NaN", "1e999", str(2**63), "9" * 5000, "٣", "\x00", "\u202e", "=1+1", "[]",
         "{}", "@x", "../../etc/passwd", "http://[", "1-999999999", "{a}", "\r\nX: y", "left", "a", "tie", "name: x",
         "\n"]  # fmt: skip
VALUES: list[Any] = [None, True, 0, -1, 1, 2**63, 2**70, 1.5, float("nan"), float("inf"), "", "a", "\x00", "\ud800",
                     "x" * 5000, [], [[]], [None], {}, {"a": 1}, [1], ["a"], [2**70], "@x"]  # fmt: skip
BODIES = [b"", b"{", b"\xff", b"null", b"[]", b'"x"', b"[" * 5000]


def fill(random_: random.Random, path: str, token: str) -> str:
    """The path with an id, a name or nonsense for each of its parameters."""

    def one(found: re.Match[str]) -> str:
        if found[1] == "project":
            return "demo"
        if random_.random() < 0.2:
            return random_.choice(ODD_IDS)
        if found[1] == "kind":
            return random_.choice([*RECIPES, "nope"])
        return token if found[1] == "token" else random_.choice(["1", "1", "2", "3", str(FIRST_ID)])

    return quote(re.sub(r"\{(\w+)(?::\w+)?\}", one, path), safe="/%")


def what_to_send(random_: random.Random, route: APIRoute, names: list[str]) -> dict[str, Any]:
    """Query and body of one request."""
    asked = [field.alias for field in route.dependant.query_params] + ["after", "sort", "status"]
    query = {name: random_.choice(WORDS) for name in asked if random_.random() < 0.5}
    if "GET" in (route.methods or ()):
        return {"params": query}
    if not route.path.startswith("/api/"):
        return {"params": query, "data": {name: random_.choice(WORDS) for name in names if random_.random() < 0.6}}
    given = {name: random_.choice(VALUES) for name in names if random_.random() < 0.7}
    body = random_.choice(BODIES) if random_.random() < 0.2 else json.dumps(given).encode()
    return {"params": query, "content": body, "headers": {"content-type": "application/json"}}


def names_of(route: APIRoute) -> list[str]:
    """What the body of a route holds, as far as it says."""
    held = route.body_field.field_info.annotation if route.body_field else None
    return [*getattr(held, "model_fields", {}), "text", "name", "form_key", "seeds", "scale", "choice", "checkpoints"]


@pytest.mark.parametrize(
    "database", ["sqlite"], indirect=True
)  # the two drivers' own limits: tests/runs/test_hostile.py
def test_nothing_that_can_be_sent_is_a_crash(client: TestClient, project: Project) -> None:
    with transaction() as session:
        grading = make_marked_grading(session, project)
        token = session.exec(select(GradeItem.token).where(GradeItem.grading_id == grading.id)).first() or ""
        launch(session, ImportPromptsRecipe(shipped="demo"), project_id=project.id)
        start_experiment(session, project.id, "name: x\nsteps: [{name: a, recipe: {kind: demo_base}}]")
    random_ = random.Random(5)
    routes = [route for route in client.app.router.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    assert len(routes) > 300
    for route in routes:
        if route.path in {"/logout", "/login", "/account/sessions/revoke"}:  # they end the session, or take their time
            continue
        for method in sorted(route.methods or ()):
            for _ in range(TRIES):
                sent = what_to_send(random_, route, names_of(route))
                url = fill(random_, route.path, token)
                try:
                    answer = client.request(method, url, follow_redirects=False, **sent)
                except Exception as error:
                    raise AssertionError(f"{method} {url} {sent}") from error
                assert answer.status_code < 500, f"{method} {url} {sent}: {answer.status_code}"
