"""The pages of scores, from the form to the queue in which people score the same completions."""

import json
import re

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.constitutions.constitutions import PrincipleText, add_version
from app.db import reading, transaction
from app.judging.models import RatingSet
from app.pairs.models import Pair
from app.projects.models import Project
from app.review.models import Mark, Queue
from tests.chat_server import ChatServer, Request, asked_nonce
from tests.judging.rows import claim_next, do, endpoint_judge, made, make_pairs, read
from worker.child import work

HOSTILE = "<script>alert(1)</script>"
TEXTS = [(f"question {i}", "x" * (1 + i), f"y {HOSTILE}", None) for i in range(6)]


def by_length(request: Request) -> str:
    """Scores by length; of one completion the second principle is missing."""
    found = re.search(r"completion begins>>>\n(.*?)\n<<<", request["messages"][-1]["content"], re.DOTALL)
    assert found is not None
    scores = {"long": min(len(found[1]), 10)} | ({} if found[1] == "xx" else {"kind": 4})
    return json.dumps({"reason": "because <b>so</b>", "scores": scores, "nonce": asked_nonce(request)})


@pytest.fixture
def pairs(project: Project) -> int:
    with transaction() as session:
        return make_pairs(session, project.id, TEXTS).id


def constitution_of(project: Project) -> int:
    with transaction() as session:
        rows = [PrincipleText("long", "It is long.", 1.0), PrincipleText("kind", "It is kind.", 1.0)]
        return add_version(session, project.id, "rubric", "", rows).id


def test_scores_are_asked_for_shown_filtered_downloaded_and_handed_to_people(
    client: TestClient, project: Project, pairs: int
) -> None:
    assert "No scores yet" in client.get("/p/demo/judge/ratings").text
    assert 'href="/p/demo/judge/ratings"' in client.get("/p/demo/judge").text
    with ChatServer(by_length) as server:
        fields = {"pair_set": pairs, "judge": endpoint_judge(project.id, server.origin),
                  "constitution": constitution_of(project)}  # fmt: skip
        form = client.get("/p/demo/new/rate", params={"pair_set": pairs})
        assert form.status_code == 200 and "Score completions" in form.text
        check_forecast(client, fields)
        started = client.post("/api/v1/p/demo/runs", json={"kind": "rate", "recipe": fields})
        started = client.post("/api/v1/p/demo/runs", json={"kind": "rate", **fields})
        assert started.status_code == 201, started.text
        run = claim_next()
        work(run.id, run.attempt)
    key = made(run, "rating_set")
    found = read(RatingSet, key)
    assert (found.n, found.n_null) == (12, 1)
    again = client.get("/p/demo/forecast/rate", params=fields).text
    assert "12 completions, 0 calls" in again and "12 answers are known already" in again
    assert "in 12 earlier answers" in again
    here = f"/p/demo/judge/ratings/{key}"
    assert here in client.get(f"/p/demo/runs/{run.id}").text
    assert here in client.get("/p/demo/judge/ratings").text
    page = client.get(here).text
    assert "no score for kind" in page and "(overall)" in page and "not yet" in page
    assert HOSTILE not in page and "<b>so</b>" not in page
    assert f'href="/p/demo/new/audit?purpose=scoring&amp;rating_set={key}"' in page

    check_downloads(client, here)
    check_people(client, project, here, key)


def check_forecast(client: TestClient, fields: dict[str, int]) -> None:
    """Calls and tokens from the real prompts; nothing while something is missing; no other project's rows."""
    url = "/p/demo/forecast/rate"
    assert url in client.get("/p/demo/new/rate").text
    whole = client.get(url, params={**fields, "budget_usd": "3"}).text
    assert "12 completions, 12 calls" in whole and "It stops at $3" in whole and "has no prices" in whole
    assert "5 completions, 5 calls" in client.get(url, params={**fields, "limit": "5"}).text
    assert "Choose completions" in client.get(url, params={"judge": fields["judge"]}).text
    assert client.get(url, params={**fields, "judge": 99}).status_code == 422


def check_downloads(client: TestClient, here: str) -> None:
    rows = client.get(f"{here}.json").json()["rows"]
    assert len(rows) == 36
    long = client.get(f"{here}.json", params={"principle": "long"}).json()["rows"]
    assert [row["score"] for row in long if "x" in row["completion"][:1]] == [1, 2, 3, 4, 5, 6]
    overall = client.get(f"{here}.json", params={"principle": "(overall)", "arm": "imported"}).json()["rows"]
    assert [row["score"] for row in overall].count(None) == 1 and len(overall) == 12
    assert overall[0]["score"] == (1 + 4) / 2
    assert client.get(f"{here}.json", params={"arm": "nobody"}).json()["rows"] == []
    assert "Nothing fits these filters" in client.get(here, params={"arm": "nobody"}).text
    by_score = client.get(f"{here}.json", params={"sort": "-score"}).json()["rows"]
    assert by_score[0]["score"] == 10 and by_score[-1]["score"] is None
    assert client.get(f"{here}.csv").text.count("\n") >= 37
    assert len(client.get(f"{here}.jsonl").text.splitlines()) == 36
    assert client.get("/p/demo/judge/ratings.json").json()["rows"][0]["n_null"] == 1
    assert client.get("/p/demo/judge/ratings/99").status_code == 404


def check_people(client: TestClient, project: Project, here: str, key: int) -> None:
    """The queue that is drawn from the scores takes people's, and shows the judge's only then."""
    form = client.get("/p/demo/new/audit", params={"purpose": "scoring", "rating_set": key})
    assert form.status_code == 200
    run = do(project.id, kind="audit", purpose="scoring", rating_set=key, n=12)
    assert run.status == "done", run.error
    with reading() as session:
        queue = session.exec(select(Queue).where(Queue.run_id == run.id)).one().id
        marks = {one.completion_id for one in session.exec(select(Mark).where(Mark.queue_id == queue))}
        sides = {one for pair in session.exec(select(Pair).order_by(col(Pair.id))) for one in (pair.a_id, pair.b_id)}
    assert marks == sides
    assert f'href="/p/demo/review/{queue}"' in client.get(here).text
    mark = client.post(f"/api/v1/p/demo/review/{queue}/next").json()
    assert [one["key"] for one in mark["principles"]] == ["long", "kind"] and "judge" not in mark
    scored = client.post(f"/api/v1/p/demo/review/marks/{mark['mark']}", json={"scores": {"long": 3, "kind": 4}}).json()
    assert {one["principle"] for one in scored["judge"]} == {"", "long", "kind"}
    assert client.get(f"/p/demo/review/{queue}").status_code == 200
