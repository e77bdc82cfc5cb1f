"""Each protocol done by the real worker: votes, separate questions, weighted labels, log-probabilities, panels."""

import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from sqlmodel import select

from app import db
from app.checkpoints.models import Endpoint
from app.constitutions.constitutions import PrincipleText, add_version
from app.errors import Invalid
from app.judging.models import Call, Opinion, Verdict, VerdictSet
from app.judging.recipes import JudgeRecipe
from app.projects.models import Project
from app.runs.models import Run
from tests.chat_server import ChatServer, Request, asked_nonce, candidates, prefer_first, prefer_longer, verdict
from tests.judging.rows import (
    by_principle,
    do,
    endpoint_judge,
    error_of,
    judge_row,
    made,
    make_pairs,
    read,
    set_of,
    start,
)
from worker.job import Job
from worker.judge import judge_set

TEXTS = [(f"question {i}", "x" * (1 + i % 4), "y" * 3, None) for i in range(12)]  # lengths 1 to 4 against 3
# One database for what only the protocol decides; both where the rows matter.
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def pairs(project: Project) -> int:
    with db.transaction() as session:
        return make_pairs(session, project.id, TEXTS).id


@pytest.fixture
def constitution(project: Project) -> int:
    principles = [PrincipleText("long", "It is long.", 2.0), PrincipleText("short", "It is short.", 1.0)]
    with db.transaction() as session:
        return add_version(session, project.id, "two", "", principles).id


def judge(project: Project, pair_set: int, judge_id: int, **more) -> Run:
    settings = {"timeout_s": 3, "concurrency": 4, "max_null": 1.0, **more}
    run = do(project.id, kind="judge", pair_set=pair_set, judge=judge_id, **settings)
    assert run.status == "done", run.error
    return run


def rows(kind, **where):
    with db.reading() as session:
        query = select(kind)
        for name, value in where.items():
            query = query.where(getattr(kind, name) == value)
        return session.exec(query.order_by(kind.id)).all()


def outcomes(run: Run) -> dict[int, str | None]:
    return {one.pair_id: one.outcome for one in rows(Verdict, verdict_set_id=set_of(run).id)}


def wavering(request: Request) -> str:
    """Prefers the longer one, and one time in ten says the opposite; never the same draw for two requests."""
    a, b = candidates(request)
    letter = "A" if len(a) >= len(b) else "B"
    if int(hashlib.sha256(asked_nonce(request).encode()).hexdigest(), 16) % 10 == 0:
        letter = "B" if letter == "A" else "A"
    return verdict(request, letter)


def test_votes_stop_when_the_majority_is_fixed_and_are_kept_for_the_next_run(project: Project, pairs: int):
    with ChatServer(wavering) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = judge(project, pairs, judge_id, votes=5, temperature=0.7)
        n_first = len(server.requests)
        again = judge(project, pairs, judge_id, votes=5, temperature=0.7)
        assert len(server.requests) == n_first, "the same votes are known"
        fewer = judge(project, pairs, judge_id, votes=3, temperature=0.7)
        assert len(server.requests) == n_first, "three votes are among the five"
    assert 12 * 2 * 3 <= n_first < 12 * 2 * 5
    assert outcomes(run) == outcomes(again) and set_of(fewer).n == 12
    opinions = rows(Opinion, verdict_set_id=set_of(run).id)
    assert len(opinions) == n_first == len(rows(Call))
    assert {one.sample for one in opinions} <= set(range(5))
    for one in rows(Verdict, verdict_set_id=set_of(run).id):
        mine = Counter(said.choice for said in opinions if said.pair_id == one.pair_id)
        assert {label: n for label, n in one.votes.items() if n} == mine


def test_votes_at_temperature_nought_are_refused_by_the_field():
    with pytest.raises(ValueError, match="every vote is the same"):
        JudgeRecipe(pair_set=1, judge=1, votes=3)
    assert JudgeRecipe(pair_set=1, judge=1, votes=3, temperature=0.5).votes == 3


@pytest.mark.parametrize(
    ("settings", "n_calls", "first"),
    [
        ({}, 24, "tie"),  # the whole flips
        ({"overall": "weighted"}, 24, "b"),  # long weighs more
        ({"principle_calls": "separate", "overall": "weighted"}, 48, "b"),
        ({"principle_calls": "separate"}, 72, "tie"),
    ],
    ids=["joint", "joint weighted", "separate weighted", "separate and the whole"],
)
@SQLITE
def test_principles_jointly_or_one_by_one(project, pairs, constitution, settings, n_calls, first):
    with ChatServer(by_principle) as server:
        run = judge(project, pairs, endpoint_judge(project.id, server.origin), constitution=constitution, **settings)
    assert len(server.requests) == n_calls
    one = rows(Verdict, verdict_set_id=set_of(run).id)[0]
    assert one.outcome == first
    assert one.by_principle == {"long": "b", "short": "a"}
    keys = {said.principle for said in rows(Opinion)}
    separate = {"long", "short"} if settings.get("overall") else {"long", "short", ""}
    assert keys == (separate if "principle_calls" in settings else {""})


@SQLITE
def test_what_cannot_be_asked_is_refused_before_the_start(project: Project, pairs: int, constitution: int):
    rule = made(do(project.id, kind="new_judge", judge_kind="rule"), "judge")
    with ChatServer() as server:
        judge_id = endpoint_judge(project.id, server.origin)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"judge": rule, "overall": "weighted", "constitution": constitution}, "overall"),
        ({"judge": rule, "label": "log_probs"}, "label"),
        ({"judge": rule, "votes": 3, "temperature": 1}, "votes"),
        ({"judge": judge_id, "principle_calls": "separate"}, "principle_calls"),
        ({"judge": judge_id, "overall": "weighted"}, "overall"),
        ({"judge": judge_id, "label": "log_probs"}, "label"),
    ]
    for values, field in cases:
        with pytest.raises(Invalid) as refused:
            start(project.id, kind="judge", pair_set=pairs, **values)
        assert list(refused.value.fields) == [field], values


@SQLITE
def test_a_soft_label_comes_from_the_letters_log_probabilities(project: Project, pairs: int):
    with SoftServer() as server:
        judge_id = endpoint_judge(project.id, server.origin)
        with db.transaction() as session:
            endpoint = db.get(session, Endpoint, judge_row(judge_id).endpoint_id or 0)
            endpoint.mode = {"logprobs": True}
            session.add(endpoint)
        run = judge(project, pairs, judge_id, label="log_probs", with_reason=False)
        n = len(server.requests)
        again = judge(project, pairs, judge_id, label="log_probs", with_reason=False)
        assert len(server.requests) == n, "the letter's probabilities are kept with the answer"
    for done in (run, again):
        found = rows(Verdict, verdict_set_id=set_of(done).id)
        assert {round(one.p_a, 3) for one in found if one.outcome == "a"} == {0.8}
        assert {round(one.p_a, 3) for one in found if one.outcome == "b"} == {0.2}
        assert {round(one.p_a, 3) for one in found if one.outcome == "tie"} == {0.5}
    assert server.requests[0]["top_logprobs"] == 5


class SoftServer(ChatServer):
    """The longer one is A or B with probability 0.8; of equal ones it cannot tell, and says tie."""

    def _completion(self, asked, text):
        found = super()._completion(asked, text)
        said = json.loads(text)["verdict"]
        shares = {"A": -0.2231435513, "B": -1.6094379124} if said == "A" else {"B": -0.2231435513, "A": -1.6094379124}
        if said == "tie":
            shares = {"tie": -0.5, "A": -2.0, "B": -2.0}
        tops = [{"token": token, "logprob": value} for token, value in shares.items()]
        before, after = text.split(f'"verdict": "{said}')
        parts = [(before + '"verdict": "', []), (said, tops), (after, [])]
        content = [{"token": token, "logprob": 0, "top_logprobs": top} for token, top in parts]
        found["choices"][0]["logprobs"] = {"content": content}
        return found


@SQLITE
def test_a_panel_of_an_endpoint_and_a_rule_keeps_each_members_opinions(project: Project, pairs: int):
    with ChatServer(prefer_longer) as server, ChatServer(prefer_first) as other:
        first, second = (endpoint_judge(project.id, one.origin) for one in (server, other))
        rule = made(do(project.id, kind="new_judge", judge_kind="rule", answer_weight=0), "judge")
        panel = do(project.id, kind="new_judge", judge_kind="panel", members=[first, second, rule],
                   rule="weighted", weights=[f"{first}: 3"])  # fmt: skip
        assert panel.status == "done", panel.error
        panel_id = made(panel, "judge")
        run = judge(project, pairs, panel_id)
    assert run.queue == "io"
    found = set_of(run)
    assert (found.n_a, found.n_b, found.n_tie, found.n_null) == (3, 6, 3, 0), "the heavier member decides"
    assert Counter(one.judge_id for one in rows(Opinion)) == {first: 24, second: 24, rule: 12}
    verdicts = rows(Verdict)
    told = verdicts[0].votes["by_judge"]
    assert {key: one["outcome"] for key, one in told.items()} == {str(first): "b", str(second): "tie", str(rule): "tie"}
    assert (told[str(first)]["weight"], told[str(second)]["is_flip"]) == (3.0, True)
    assert verdicts[0].is_flip and found.n_flip == 12
    assert read(type(judge_row(first)), first).frozen_at is not None
    refused = do(project.id, kind="new_judge", judge_kind="panel", members=[panel_id, rule])
    assert "is a panel itself" in error_of(refused)


@SQLITE
def test_identical_texts_may_be_ties_unasked_and_pairs_drawn_at_random(project: Project):
    texts = [
        ("q1", "same", "same", None),
        ("q2", "x", "yy", None),
        ("q3", "same", "same", None),
        ("q4", "xxx", "y", None),
    ]
    with db.transaction() as session:
        pair_set = make_pairs(session, project.id, texts).id
    with ChatServer() as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = judge(project, pair_set, judge_id, identical="tie")
        assert len(server.requests) == 4
        drawn = judge(project, pair_set, judge_id, limit=2, draw="random", seed=5)
        same = judge(project, pair_set, judge_id, limit=2, draw="random", seed=5)
    found = rows(Verdict, verdict_set_id=set_of(run).id)
    assert Counter(one.reason for one in found)["a and b are the same text: not asked"] == 2
    assert (set_of(run).n_tie, set_of(run).n) == (2, 4)
    assert outcomes(drawn).keys() == outcomes(same).keys() and len(outcomes(drawn)) == 2


@SQLITE
def test_several_sets_are_judged_in_one_run_and_found_again(project: Project, pairs: int):
    with db.transaction() as session:
        second = make_pairs(session, project.id, TEXTS[:4]).id
    with ChatServer() as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = start(project.id, kind="judge", pair_set=pairs, judge=judge_id, timeout_s=3)
        job = Job(run.id, run.attempt)
        recipe = job.recipe.model_copy(update={"pair_set": second})
        visible = judge_set(job, job.recipe)
        hidden = judge_set(job, recipe, name="probes", is_hidden=True)
        n = len(server.requests)
        assert judge_set(job, recipe, name="probes", is_hidden=True) == hidden
        assert len(server.requests) == n
    assert {one.id: one.n for one in rows(VerdictSet)} == {visible: 12, hidden: 4}
    row: VerdictSet = read(VerdictSet, hidden)
    assert row.archived_at is not None and row.name == "probes"
    assert read(Run, run.id).cost["labels"] == 12


def test_a_stopped_run_of_votes_goes_on_where_it_was(project: Project, pairs: int):
    with ChatServer(wavering) as server:
        judge_id = endpoint_judge(project.id, server.origin, usd_per_million_in=1e4)
        settings = {"votes": 5, "temperature": 0.7, "concurrency": 2, "timeout_s": 3}
        stopped = do(project.id, kind="judge", pair_set=pairs, judge=judge_id, budget_usd=60.0, **settings)
        assert "budget of $60 is spent" in error_of(stopped)
        n = len(server.requests)
        run = judge(project, pairs, judge_id, **settings)
        assert set_of(run).n == 12
        mine = rows(Opinion, verdict_set_id=set_of(run).id)
        assert len(server.requests) == len(mine) == len(rows(Call)) > n, "nothing was paid for twice"
    keys = [(one.pair_id, one.is_swapped, one.sample) for one in mine]
    assert len(keys) == len(set(keys))
