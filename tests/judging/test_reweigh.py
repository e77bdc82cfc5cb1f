"""Other weights over the same opinions: what would flip, keeping it, judging some pairs again; flags before judging."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app import db
from app.constitutions.constitutions import PrincipleText, add_version, read_principles
from app.constitutions.models import Constitution
from app.judging.flags import flag_candidates
from app.judging.models import Verdict, VerdictSet
from app.judging.reweigh import keep_weights, weights_of, what_if
from app.projects.models import Project
from tests.chat_server import ChatServer
from tests.judging.rows import by_principle, do, endpoint_judge, made, make_pairs, read, set_of

TEXTS = [(f"question {i}", "x" * (1 + i % 4), "y" * 3, None) for i in range(60)]  # lengths 1 to 4 against 3


@pytest.fixture
def pairs(project: Project) -> int:
    with db.transaction() as session:
        return make_pairs(session, project.id, TEXTS).id


@pytest.fixture
def constitution(project: Project) -> int:
    principles = [PrincipleText("long", "It is long.", 2.0), PrincipleText("short", "It is short.", 1.0)]
    with db.transaction() as session:
        return add_version(session, project.id, "two", "", principles).id


def outcomes(set_id: int) -> dict[int, str | None]:
    with db.reading() as session:
        rows = session.exec(select(Verdict).where(Verdict.verdict_set_id == set_id)).all()
    return {row.pair_id: row.outcome for row in rows}


@pytest.mark.parametrize("calls", ["joint", "separate"])
def test_what_a_principle_less_would_flip_is_counted_kept_and_judged_again(
    client: TestClient, project: Project, pairs: int, constitution: int, calls: str
):
    with ChatServer(by_principle) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        settings = {"pair_set": pairs, "judge": judge_id, "timeout_s": 3, "principle_calls": calls}
        run = do(project.id, kind="judge", constitution=constitution, overall="weighted", **settings)
        assert run.status == "done", run.error
        found, n = set_of(run), len(server.requests)
        page = client.get(f"/p/demo/judge/{found.id}").text
        assert 'name="weight-long"' in page and "What if" in page
        shown = client.get(f"/p/demo/forecast/weights/{found.id}", params={"weight-long": "0"}).text
        assert "Without long, " in shown and "45 of 60 labels flip" in shown
        assert shown.count("?pair=") == 10
        same = client.get(f"/p/demo/forecast/weights/{found.id}", params={"weight-long": "5"}).text
        assert "0 of 60 labels flip" in same
        kept_page = client.post(f"/p/demo/judge/{found.id}/keep", data={"weight-long": "0", "weight-short": "1"})
        assert "Re-aggregated, not re-judged" in kept_page.text
        kept_id = int(str(kept_page.url).rpartition("/")[2])
        assert len(server.requests) == n, "nothing was asked"
        kept: VerdictSet = read(VerdictSet, kept_id)
        assert (kept.parent_id, kept.weights, kept.run_id) == (found.id, {"long": 0.0, "short": 1.0}, None)
        assert (kept.n_a, kept.n_b, kept.n_tie) == (found.n_b, found.n_a, found.n_tie)
        form = client.post(f"/p/demo/judge/{kept_id}/again", follow_redirects=False)
        values = dict(one.split("=") for one in form.headers["location"].partition("?")[2].split("&"))
        assert client.get(form.headers["location"]).status_code == 200
        newer: Constitution = read(Constitution, int(values["constitution"]))
        assert newer.version == 2
        with db.reading() as session:
            assert [one.key for one in read_principles(session, newer.id)] == ["short"]
        sent = {name: values[name] for name in values if name in {"limit", "draw", "seed", "compare_with", "overall"}}
        assert (sent["limit"], sent["draw"]) == ("50", "random")
        again = do(project.id, kind="judge", constitution=newer.id, **{**settings, **sent})
        assert again.status == "done", again.error
        compared = client.get(f"/p/demo/judge/{kept_id}").text
        assert 'class="interval">1.00' in compared and "n = 50" in compared
        opened = client.get(f"/p/demo/judge/{kept_id}/pairs/{next(iter(outcomes(kept_id)))}").text
        assert "What was asked" in opened, "a kept set shows the opinions it rests on"


def test_the_same_weights_flip_nothing_and_keeping_is_kept_apart(
    client: TestClient, project: Project, pairs: int, constitution: int
):
    with ChatServer(by_principle) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = do(project.id, kind="judge", pair_set=pairs, judge=judge_id, constitution=constitution, timeout_s=3)
    found = set_of(run)
    with db.transaction() as session:
        row = db.get(session, VerdictSet, found.id)
        assert weights_of(session, row) == {"long": 2.0, "short": 1.0}
        holistic = what_if(session, row, weights_of(session, row))
        assert holistic.n_changed == 45, "the whole flipped everywhere; by the weights longer ones win"
        kept = keep_weights(session, row, {"long": 2.0, "short": 1.0})
        assert what_if(session, kept, kept.weights).n_changed == 0
        assert what_if(session, kept, {"long": 0.0, "short": 1.0}).n_to_other_side == 45
    assert outcomes(found.id) != outcomes(kept.id)
    for wrong in ("x", "-1", "nan", "1e9"):
        assert client.get(f"/p/demo/forecast/weights/{found.id}", params={"weight-long": wrong}).status_code == 422
    nothing = {"weight-long": "0", "weight-short": "0"}
    assert client.get(f"/p/demo/forecast/weights/{found.id}", params=nothing).status_code == 422
    url = f"/api/v1/p/demo/verdict-sets/{found.id}/reweigh"
    assert client.post(url, json={"weights": {"unknown": 1}}).status_code == 422
    made_by_api = client.post(url, json={"weights": {"long": 0}}).json()
    assert (made_by_api["parent_id"], made_by_api["n_a"]) == (found.id, 30)


def test_a_rules_weights_are_its_own(client: TestClient, project: Project):
    strict = "Answer: Paris — Confidence: high — Reasoning: it is known."
    with db.transaction() as session:
        pair_set = make_pairs(session, project.id, [("q", strict.replace("Paris", "Rome"), "Paris", "Paris")]).id
    judge_id = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
    found = set_of(do(project.id, kind="judge", pair_set=pair_set, judge=judge_id))
    page = client.get(f"/p/demo/judge/{found.id}").text
    assert 'name="weight-format"' in page
    shown = client.get(f"/p/demo/forecast/weights/{found.id}", params={"weight-format": "0"}).text
    assert "of 1 labels flip" in shown


def test_candidates_that_stand_out_are_flagged_on_the_form_and_the_trial(client: TestClient, project: Project):
    refusal = "I cannot help with that."
    texts = [("q1", "", "x", None), ("q2", " \n", "y", None), ("q3", "same", "same", None)]
    texts += [(f"q{i}", refusal, f"answer {i}", None) for i in range(4, 9)]
    with db.transaction() as session:
        pair_set = make_pairs(session, project.id, texts).id
        clean = make_pairs(session, project.id, TEXTS[:2]).id
    with db.reading() as session:
        flags = flag_candidates(session, pair_set)
        assert flag_candidates(session, clean).is_clean
    assert (flags.n, flags.n_empty, flags.n_identical, flags.n_constant) == (8, 2, 1, 5)
    assert flags.constants == [(refusal, 5)]
    judge_id = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
    form = client.get("/p/demo/forecast/judge", params={"judge": judge_id, "pair_set": pair_set}).text
    tried = client.post(f"/p/demo/judge/judges/{judge_id}/try", data={"pair_set": str(pair_set)}).text
    for page in (form, tried):
        assert "2 with an empty side, 1 with identical sides, 5 with a text" in page
    assert "Look at these first" not in client.get(
        "/p/demo/forecast/judge", params={"judge": judge_id, "pair_set": clean}
    ).text  # fmt: skip


def test_every_protocol_is_tried_and_priced(client: TestClient, project: Project, pairs: int, constitution: int):
    with ChatServer(by_principle) as server:
        judge_id = endpoint_judge(project.id, server.origin, usd_per_million_in=10.0)
        rule = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
        panel = made(do(project.id, kind="new_judge", judge_kind="panel", members=[judge_id, rule]), "judge")
        asked = {"pair_set": pairs, "constitution": constitution}
        price = client.get("/p/demo/forecast/judge", params={**asked, "judge": judge_id}).text
        assert "one joint question" in price and "a question each" in price
        for n in (120, 240, 360):
            assert f'<td class="num">{n}</td>' in price
        votes = client.get("/p/demo/forecast/judge", params={**asked, "judge": judge_id, "votes": 3, "temperature": 1})
        assert "at most 360 calls" in votes.text
        url = "/p/demo/judge/judges/{}/try"
        tried = client.post(url.format(judge_id), data={**asked, "votes": "3", "temperature": "1"}).text
        assert "vote 2" in tried and "vote 3" not in tried, "two of three agree"
        separate = {**asked, "principle_calls": "separate", "overall": "weighted"}
        assert "by long" in client.post(url.format(judge_id), data=separate).text
        by_panel = client.post(url.format(panel), data=asked).text
        assert "rule: format and answer, as given" in by_panel and "0 of 10 unreadable" in by_panel
        assert "a panel of judges" in client.get(f"/p/demo/judge/judges/{panel}").text
        refused = client.post(url.format(judge_id), data={**asked, "label": "log_probs"})
        assert refused.status_code == 422 and "never tested" in refused.text
        run = do(project.id, kind="judge", judge=panel, timeout_s=3, **asked)
    assert run.status == "done", run.error
    found = set_of(run)
    opened = client.get(f"/p/demo/judge/{found.id}/pairs/{next(iter(outcomes(found.id)))}").text
    assert "By judge" in opened and "rule: format and answer" in opened


def test_a_set_too_large_to_decide_within_a_request_says_so_before_it_is_asked(
    client: TestClient, project: Project, pairs: int, constitution: int, monkeypatch: pytest.MonkeyPatch
):
    with ChatServer(by_principle) as server:
        settings = {"pair_set": pairs, "judge": endpoint_judge(project.id, server.origin), "timeout_s": 3, "limit": 5}
        found = set_of(do(project.id, kind="judge", constitution=constitution, overall="weighted", **settings))
    monkeypatch.setattr("app.judging.reweigh.AT_MOST", 4)
    page = client.get(f"/p/demo/judge/{found.id}").text
    assert "This set has 5 verdicts, and at most 4 are decided anew at once. Judge fewer of the pairs" in page
    assert 'name="weight-long"' not in page
    asked = {"weight-long": "0"}
    for answer in (
        client.get(f"/p/demo/forecast/weights/{found.id}", params=asked),
        client.post(f"/p/demo/judge/{found.id}/keep", data=asked),
        client.post(f"/api/v1/p/demo/verdict-sets/{found.id}/reweigh", json={"weights": {"long": 0}}),
    ):
        assert answer.status_code == 422 and "at most 4 are decided anew" in answer.text
    with db.reading() as session:
        assert len(session.exec(select(VerdictSet)).all()) == 1, "nothing is left of what was refused"


def test_the_same_weights_sent_many_times_at_once_are_one_set(client: TestClient, project: Project, pairs: int):
    new = do(project.id, kind="new_judge", judge_kind="rule", format_weight=1, answer_weight=1)
    run = do(project.id, kind="judge", pair_set=pairs, judge=made(new, "judge"))
    assert run.status == "done", run.error
    there = f"/p/demo/judge/{set_of(run).id}/keep"
    with ThreadPoolExecutor(8) as many:
        sent = [many.submit(client.post, there, data={"weight-format": "2"}, follow_redirects=False) for _ in range(8)]
        places = {one.result().headers["location"] for one in sent}
    other = client.post(there, data={"weight-format": "3"}, follow_redirects=False).headers["location"]
    assert len(places) == 1 and other not in places
    with db.reading() as session:
        assert len(session.exec(select(VerdictSet)).all()) == 3
