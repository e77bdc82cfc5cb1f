"""Judging in the browser's terms: lists, a set's page, test connection, try on 10 pairs, forecast, panel."""

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app import db
from app.accounts.models import Account
from app.constitutions.constitutions import ensure_shipped, find_version
from app.judging.models import Judge, VerdictSet
from app.projects.models import Project
from app.projects.projects import make_project
from app.recipes import read_recipe
from app.runs.models import Run
from app.runs.queue import launch
from tests.chat_server import ChatServer, Fault, prefer_first, verdict
from tests.judging.rows import claim_next, do, endpoint_judge, made, make_pairs, read, set_of
from worker.child import work

HOSTILE = "<script>alert(1)</script>"
TEXTS = [(f"question {i} {HOSTILE}", "x" * (1 + i % 4), "yyy", None) for i in range(30)]


@pytest.fixture
def pairs(project: Project) -> int:
    with db.transaction() as session:
        ensure_shipped(session, project.id)
        return make_pairs(session, project.id, TEXTS).id


def test_an_empty_project_says_what_to_do(client: TestClient, project: Project):
    assert "No pairs to judge yet" in client.get("/p/demo/judge").text
    with db.transaction() as session:
        make_pairs(session, project.id, TEXTS[:1])
    assert "Add a judge" in client.get("/p/demo/judge").text
    do(project.id, kind="new_judge", judge_kind="rule")
    assert "No verdicts yet" in client.get("/p/demo/judge").text
    assert client.get("/p/demo/judge/judges").status_code == 200


def test_a_set_shows_counters_reasons_filters_and_each_pair(client: TestClient, project: Project, pairs: int):
    with db.reading() as session:
        constitution = find_version(session, project.id, "helpful-honest-harmless").id

    def answer(request):
        if "question 3 " in request["messages"][-1]["content"]:
            return "I cannot decide."
        return verdict(request, "A", "because <b>A</b>") if "question 4 " in str(request) else prefer(request)

    prefer = ChatServer().answer
    with ChatServer(answer) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge_id, constitution=constitution)
    assert run.status == "done", run.error
    found = set_of(run)
    page = client.get(f"/p/demo/judge/{found.id}").text
    assert "no verdict with this call&#39;s nonce" in page
    assert HOSTILE not in page
    only = client.get(f"/p/demo/judge/{found.id}.json", params={"outcome": "unreadable"}).json()["rows"]
    assert [row["position"] for row in only] == [3]
    assert only[0]["b"] == "yyy"
    flips = client.get(f"/p/demo/judge/{found.id}.json", params={"flip": "yes"}).json()["rows"]
    assert [row["position"] for row in flips] == [4]
    assert len(client.get(f"/p/demo/judge/{found.id}.jsonl").text.splitlines()) == 30
    assert client.get(f"/p/demo/judge/{found.id}.csv").text.count("\n") >= 31
    by_need = client.get(f"/p/demo/judge/{found.id}", params={"sort": "-need"}).text
    assert by_need.index("question 3") < by_need.index("question 4") < by_need.index("question 0")
    opened = client.get(f"/p/demo/judge/{found.id}/pairs/{flips[0]['pair_id']}").text
    assert "the orders disagree" in opened
    assert "because &lt;b&gt;A&lt;/b&gt;" in opened
    assert "helpful" in opened
    assert "Raw answer" in opened
    panel = client.get(f"/p/demo/runs/{run.id}/panel/judge").text
    assert "hx-trigger" not in panel, "the final fragment rests"
    assert f"/p/demo/judge/{found.id}" in panel
    assert client.get("/p/demo/judge.json").json()["rows"][0]["n_null"] == 1
    assert client.get(f"/p/demo/judge/judges/{judge_id}").status_code == 200


def test_a_live_panel_asks_for_itself_again(client: TestClient, project: Project, pairs: int):
    with db.transaction() as session:
        judge = Judge(project_id=project.id, name="r", kind="rule", settings={})
        session.add(judge)
        session.flush()
        run = launch(
            session, read_recipe({"kind": "judge", "pair_set": pairs, "judge": judge.id}), project_id=project.id
        )
    assert "every 2s" in client.get(f"/p/demo/runs/{run.id}/panel/judge").text


def test_a_good_connection_is_found_good(client: TestClient, project: Project):
    words = iter(f"word{i}" for i in range(99))

    def answer(request):
        if "response_format" in request:
            return '{"colour": "red", "mark": 1}'
        return "always" if request.get("temperature") == 0 else next(words)

    with ChatServer(answer) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        found = client.post(f"/api/v1/p/demo/judges/{judge_id}/test").json()
    assert found["is_good"], found
    assert found["mode"]["structured"] == "json_schema"
    assert found["mode"]["token_field"] == "max_tokens"
    assert (found["mode"]["logprobs"], found["mode"]["n"], found["mode"]["temperature"]) == (True, True, "works")
    page = client.get(f"/p/demo/judge/judges/{judge_id}").text
    assert "structured output" in page


def test_an_ignored_field_is_an_error_and_stops_a_judge_that_needs_it(client: TestClient, project: Project, pairs: int):
    with ChatServer(lambda _: "the same " * 20, honours=(), ignores=("max_tokens",)) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        page = client.post(f"/p/demo/judge/judges/{judge_id}/test").text
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge_id)
    for field in ("token_field", "response_format: json_schema", "logprobs", "n", "temperature"):
        assert field in page
    assert page.count('<span class="bad">ignored</span>') == 5
    assert run.status == "failed"
    assert "ignores temperature and token_field" in (run.error or "")


def test_refused_fields_are_left_out(client: TestClient, project: Project, pairs: int):
    refuses = ("max_tokens", "response_format", "logprobs", "n", "temperature")
    with ChatServer(refuses=refuses) as server:
        server.answer = lambda r: "fine" if "Write" in str(r) or "Count" in str(r) else prefer_first(r)
        judge_id = endpoint_judge(project.id, server.origin)
        found = client.post(f"/api/v1/p/demo/judges/{judge_id}/test").json()
        assert found["mode"]["token_field"] == "max_completion_tokens"
        assert found["mode"]["structured"] == "none"
        assert found["mode"]["temperature"] == "refused"
        refused = do(project.id, kind="judge", pair_set=pairs, judge=judge_id)
        assert "takes no temperature" in (refused.error or "")
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge_id, temperature=1)
    assert run.status == "done", run.error
    assert not set(refuses) & set(server.requests[-1])


def test_a_dead_connection_says_why(client: TestClient, project: Project):
    with ChatServer(faults=[Fault(401)] * 20) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        page = client.post(f"/p/demo/judge/judges/{judge_id}/test").text
    assert "HTTP 401" in page
    assert "no answer a judge could use" in page


def test_a_slow_endpoint_blocks_nobodys_writes(client: TestClient, project: Project):
    def answer(_):
        with db.transaction() as session:  # would wait for the page's own lock
            session.add(Judge(project_id=project.id, name=f"j{len(server.requests)}", kind="rule"))
        return "fine"

    with ChatServer(answer) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        page = client.post(f"/p/demo/judge/judges/{judge_id}/test").text
    assert "fine" in page


def test_ten_pairs_are_tried_with_prompt_answer_verdict_and_price(client: TestClient, project: Project, pairs: int):
    with ChatServer() as server:
        judge_id = endpoint_judge(project.id, server.origin, usd_per_million_in=1.0, usd_per_million_out=1.0)
        page = client.post(f"/p/demo/judge/judges/{judge_id}/try", data={"pair_set": str(pairs)}).text
        assert len(server.requests) == 20
    assert "0 of 10 unreadable" in page
    assert "This trial cost $0.00" in page
    assert "All 30 pairs: 60 calls, about" in page
    assert "Rendered prompt" in page
    assert "&#34;nonce&#34;" in page
    assert HOSTILE not in page
    with db.reading() as session:
        assert session.exec(select(VerdictSet)).all() == []


def test_a_rule_is_tried_at_once_and_a_local_judge_as_a_run(client: TestClient, project: Project, pairs: int):
    rule = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
    assert "0 of 10 unreadable" in client.post(f"/p/demo/judge/judges/{rule}/try", data={"pair_set": str(pairs)}).text
    with db.transaction() as session:
        local = Judge(project_id=project.id, name="local", kind="checkpoint")
        session.add(local)
        session.flush()
    answer = client.post(f"/p/demo/judge/judges/{local.id}/try", data={"pair_set": str(pairs)}, follow_redirects=False)
    assert answer.status_code == 303
    run: Run = read(Run, int(answer.headers["location"].rpartition("/")[2]))
    assert (run.recipe["limit"], run.queue) == (10, "gpu")
    assert client.post(f"/p/demo/judge/judges/{rule}/try", data={}).status_code == 422


def test_the_forecast_uses_the_real_prompts_and_what_is_known(client: TestClient, project: Project, pairs: int):
    url = "/p/demo/forecast/judge"
    assert "Choose pairs and a judge" in client.get(url).text
    with ChatServer() as server:
        judge_id = endpoint_judge(project.id, server.origin, usd_per_million_in=10.0)
        asked: dict[str, str | int] = {"judge": judge_id, "pair_set": pairs, "form_key": "x"}
        before = client.get(url, params=asked).text
        assert "30 pairs, 60 calls" in before
        assert "four characters a token" in before
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge_id, limit=10)
        after = client.get(url, params=asked).text
    assert "30 pairs, 40 calls" in after
    assert "20 answers are known already" in after
    assert "in its last 20 answers" in after
    paid = run.cost["usd"]
    said = float(after.partition("About $")[2].partition("<")[0])
    assert said == pytest.approx(2 * paid, rel=0.1)
    one_order = client.get(url, params={**asked, "is_both_orders": "false", "limit": 5}).text
    assert "5 pairs, 0 calls" in one_order


def test_rows_of_another_project_do_not_exist(client: TestClient, project: Project):
    with db.transaction() as session:
        other = make_project(session, "other", "Other", db.get(session, Account, 1))
        theirs = make_pairs(session, other.id, TEXTS[:2]).id
        judge = Judge(project_id=other.id, name="r", kind="rule", settings={"format_weight": 1, "answer_weight": 0})
        session.add(judge)
        session.flush()
        mine = Judge(project_id=project.id, name="r", kind="rule", settings=judge.settings)
        session.add(mine)
    assert client.get(f"/p/demo/judge/judges/{judge.id}").status_code == 404
    assert client.post(f"/p/demo/judge/judges/{mine.id}/try", data={"pair_set": str(theirs)}).status_code == 422
    assert client.get("/p/demo/forecast/judge", params={"judge": mine.id, "pair_set": theirs}).status_code == 422


def test_labels_of_a_file_are_offered_as_no_judge(client: TestClient, project: Project, pairs: int):
    with db.transaction() as session:
        labels = Judge(project_id=project.id, name="house: imported labels", kind="imported")
        session.add(labels)
        session.flush()
        key = labels.id
    for kind in ("judge", "card", "new_judge", "rate", "ppo", "grpo"):
        assert "house: imported labels" not in client.get(f"/p/demo/new/{kind}").text, kind
    sent = client.post("/p/demo/new/judge", data={"judge": str(key), "pair_set": str(pairs)}, follow_redirects=False)
    assert sent.status_code == 422
    assert "it judges nothing" in sent.text


def test_a_run_from_the_form_is_judged(client: TestClient, project: Project, pairs: int):
    rule = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
    page = client.get(f"/p/demo/new/judge?judge={rule}&pair_set={pairs}").text
    assert "/p/demo/forecast/judge" in page
    sent = client.post("/p/demo/new/judge", data={"judge": str(rule), "pair_set": str(pairs)}, follow_redirects=False)
    assert sent.status_code == 303, sent.text
    run = claim_next()
    assert work(run.id, run.attempt) == "done"
    assert set_of(run).n_tie == 30
    assert 50 < read(Run, run.id).cost["peak_memory_mib"] < 10_000
    assert "Peak memory MiB" in client.get(f"/p/demo/runs/{run.id}").text
