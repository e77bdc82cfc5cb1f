"""What goes wrong at a desk: two tabs, a button pressed twice, ids that cannot be, a role that may not, odd text."""

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from sqlmodel import Session, col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE
from app.accounts.models import Account
from app.checkpoints.models import Endpoint
from app.constitutions.constitutions import freeze
from app.constitutions.models import Constitution
from app.db import get, now, reading, transaction
from app.judging.models import Judge, Rating, RatingSet, VerdictSet
from app.pairs.models import Completion
from app.projects.models import Project
from app.review.models import Answer, JudgeCard, Override, Queue
from app.review.queues import claim_place, make_queue
from app.review.recipes import AuditRecipe
from app.revising.models import Revision
from app.runs.models import Run
from tests.review.rows import make_pairs, make_person, make_run, make_verdicts
from tests.revising.rows import make_revisions

HUGE, BIG = 2**63 - 1, "9" * 30
ODD_TEXT = "\u202e\U0001f4a9 ’<script>alert(1)</script> =1+1 \r\n" + "ß" * 500


@dataclass
class Desk:
    """Rows of every slice, and who may only look or only review."""

    pairs: int
    verdicts: int
    judge: int
    queue: int
    place: int
    scoring: int
    ratings: int
    card: int
    revisions: int
    constitution: int
    viewer: str
    grader: str


@pytest.fixture
def desk(client: TestClient, project: Project) -> Desk:
    with transaction() as session:
        me = session.exec(select(Account.id)).one()
        pairs = make_pairs(session, project, 6)
        verdicts = make_verdicts(session, project, pairs, ["a", "b", "tie", None])
        queue = _queue(session, project, verdict_set=verdicts.id, n=4)
        place = claim_place(session, queue, me)
        endpoint = Endpoint(project_id=project.id, name="e", origin="http://127.0.0.1:9/v1", model="m")
        session.add(endpoint)
        session.flush()
        judge = Judge(project_id=project.id, name="asked", kind="endpoint", endpoint_id=endpoint.id)
        session.add(judge)
        session.flush()
        ratings = RatingSet(project_id=project.id, name="r", judge_id=judge.id, pair_set_id=pairs.id, n=1,
                            constitution_id=verdicts.constitution_id)  # fmt: skip
        card = JudgeCard(project_id=project.id, judge_id=judge.id, pair_set_id=pairs.id)
        session.add_all([ratings, card])
        session.flush()
        text = session.exec(select(Completion.id)).first()
        session.add(Rating(rating_set_id=ratings.id, completion_id=text or 0, judge_id=judge.id, reason="cut off"))
        session.flush()
        scoring = _queue(session, project, purpose="scoring", rating_set=ratings.id, n=1)
        people = [make_person(session, project, role, role)[1] for role in ("viewer", "grader")]
        revisions = make_revisions(session, project, 3)
        session.flush()
        assert place is not None
        return Desk(pairs.id, verdicts.id, judge.id, queue.id, place.id, scoring.id, ratings.id, card.id, revisions.id,
                    verdicts.constitution_id or 0, *people)  # fmt: skip


def _queue(session: Session, project: Project, **recipe: Any) -> Queue:
    return make_queue(session, AuditRecipe.model_validate(recipe), project.id, make_run(session, project, "audit").id)


PAGES = [
    "judge/{}", "judge/judges/{}", "judge/cards/{}", "judge/ratings/{}", "judge/1/pairs/{}", "review/{}",
    "review/answers/{}", "review/marks/{}", "review/pairs/{}", "revisions/{}", "revisions/1/{}", "constitutions/{}",
    "constitutions/{}/edit", "constitutions/1/diff/{}", "annotations/{}", "annotations/{}/items", "pairs/{}",
    "train/snapshots/{}/preferences.jsonl", "runs/{}", "runs/{}.json", "lineage/run/{}", "forecast/weights/{}",
    "review/{}/estimates", "review/{}.csv", "judge/{}.jsonl", "revisions/{}.csv",
]  # fmt: skip


KEYS = [0, -1, HUGE, HUGE + 1, BIG, "1e3", "²", "٣", "x" * 300, "%00", "%ED%A0%80"]


def test_numbers_that_are_no_row_are_refused(client: TestClient, desk: Desk) -> None:
    for key, page in product(KEYS, PAGES):
        answer = client.get(f"/p/demo/{page.format(key)}")
        assert answer.status_code in {404, 422}, (page, answer.status_code)


ODD_QUERIES = [
    "pairs/completions.csv?arm=" + BIG, "pairs/completions.jsonl?run=-" + BIG, "judge/cards.csv?judge_id=" + BIG,
    "judge/{verdicts}.jsonl?flip=maybe", "judge/{verdicts}?outcome=c", "judge/{verdicts}.csv?sort=pair_id;drop",
    "annotations/1?epsilon=NaN", "forecast/weights/{verdicts}?weight-true=0&after=%00",
    "forecast/weights/{verdicts}", "forecast/judge?judge={judge}&pair_set={pairs}&votes=many",
    "forecast/judge?judge={judge}&pair_set=-1",
]  # fmt: skip


def test_filters_and_settings_that_mean_nothing_are_refused_before_a_download_begins(
    client: TestClient, desk: Desk
) -> None:
    for path in ODD_QUERIES:
        answer = client.get("/p/demo/" + path.format(**vars(desk)))
        assert answer.status_code in {404, 422}, (path, answer.text[:300])


WRITES: list[tuple[str, dict[str, Any]]] = [
    ("review/answers/{place}/later", {"choice": "left"}), ("review/{queue}/close", {}), ("review/{queue}/reopen", {}),
    ("judge/{verdicts}/keep", {"weight-true": "0"}), ("judge/{verdicts}/again", {}), ("judge/judges/{judge}/test", {}),
    ("judge/judges/{judge}/try", {"pair_set": "1"}), ("constitutions/{constitution}/edit", {"principles": "a: b"}),
    ("constitutions/new", {"name": "x", "principles": "a: b"}), ("constitutions/shipped", {}),
    ("new/judge", {"pair_set": "1", "judge": "1"}), ("new/audit", {"verdict_set": "1"}), ("runs/1/cancel", {}),
    ("runs/1/resume", {}), ("review/overrides/1/withdraw", {}), ("revisions/{revisions}/in-context", {}),
]  # fmt: skip


def test_who_may_only_look_changes_nothing(client: TestClient, desk: Desk) -> None:
    for path, form in WRITES:
        client.cookies.set(COOKIE, desk.viewer)
        answer = client.post(f"/p/demo/{path.format(**vars(desk))}", data=form)
        assert answer.status_code in {403, 404}, (path, answer.text[:300])
        if not path.startswith("review/answers"):
            client.cookies.set(COOKIE, desk.grader)
            assert client.post(f"/p/demo/{path.format(**vars(desk))}", data=form).status_code in {403, 404}, path


def test_a_reviewer_reaches_no_page_that_names_a_model(client: TestClient, desk: Desk) -> None:
    client.cookies.set(COOKIE, desk.grader)
    for path in ("judge", "judge/{verdicts}", "judge/{verdicts}.csv", "judge/ratings/{ratings}", "judge/cards/{card}",
                 "review/{queue}.csv", "review/{queue}/estimates", "review/answers/{place}", "runs/1.json", "pairs",
                 "review/overrides", "revisions/{revisions}.csv", "train/snapshots/1/preferences.jsonl"):  # fmt: skip
        answer = client.get(f"/p/demo/{path.format(**vars(desk))}")
        assert answer.status_code in {403, 404}, path


# ---------------------------------------------------------------------------------------------------------- two tabs


def test_two_tabs_on_one_constitution_lose_no_text(client: TestClient, desk: Desk) -> None:
    here = f"/p/demo/constitutions/{desk.constitution}/edit"
    seen = client.get(here).text.split('name="seen" value="')[1].split('"')[0]
    first = {"principles": "true: Mine.", "preface": "one\r\ntwo", "seen": seen}
    assert client.post(here, data=first).url.path == here.removesuffix("/edit")
    assert client.post(here, data=first).status_code == 200  # pressed twice: it says that already
    second = client.post(here, data={"principles": "true: Theirs.", "seen": seen})
    assert second.status_code == 409 and "Theirs." in second.text and "Somebody has saved another text" in second.text
    assert "Mine." in client.get(here).text
    again = second.text.split('name="seen" value="')[1].split('"')[0]
    assert client.post(here, data={"principles": "true: Theirs.", "seen": again}).status_code == 200
    assert "Theirs." in client.get(here).text


def test_saving_twice_makes_one_version_and_saving_unchanged_none(client: TestClient, desk: Desk) -> None:
    api = f"/api/v1/p/demo/constitutions/{desk.constitution}"
    body = {"preface": "one\ntwo", "principles": [{"key": "true", "body": "Be\n true."}]}
    assert client.post(api, json=body).status_code == 200
    with transaction() as session:
        freeze(session, desk.constitution)
    here = f"/p/demo/constitutions/{desk.constitution}/edit"
    unchanged = {"preface": "one\r\ntwo", "principles": "true: Be true."}
    assert client.post(here, data=unchanged).url.path.endswith(f"/{desk.constitution}")
    paths = {client.post(here, data={"principles": "true: New."}).url.path for _ in range(2)}
    with reading() as session:
        assert len(session.exec(select(Constitution).where(Constitution.name == "Truth")).all()) == 2
    assert len(paths) == 1
    new = {"name": "fresh", "principles": "kind: Be kind."}
    assert len({client.post("/p/demo/constitutions/new", data=new).url.path for _ in range(2)}) == 1
    taken = client.post("/p/demo/constitutions/new", data={**new, "principles": "kind: Otherwise."})
    assert taken.status_code == 409 and "Otherwise." in taken.text and "choose another name" in taken.text


def test_a_revision_decided_twice_keeps_the_newer_comment(client: TestClient, desk: Desk) -> None:
    with reading() as session:
        one = session.exec(select(Revision.id).where(Revision.set_id == desk.revisions)).first()
    here = f"/p/demo/revisions/{desk.revisions}/{one}"
    for note in ("dull", "", "still rude"):
        assert client.post(here, data={"state": "rejected", "note": note}).status_code == 200
    assert client.post(here, data={"state": "accepted", "note": "no"}).status_code == 409
    with reading() as session:
        assert get(session, Revision, one or 0).note == "still rude\nSaid before: dull"


def test_one_place_answered_in_two_tabs_is_one_answer(client: TestClient, desk: Desk) -> None:
    here = f"/p/demo/review/answers/{desk.place}"
    assert client.post(here, data={"choice": "left", "note": ODD_TEXT}).status_code == 200
    assert client.post(here, data={"choice": "right"}).status_code == 409
    assert client.post(here, data={"choice": "both"}).status_code == 422
    assert client.post(f"{here}/later", data={"choice": "0"}).status_code == 422
    page = client.get(here).text
    assert "<script>alert(1)" not in page and "ßß" in page
    with reading() as session:
        assert get(session, Queue, desk.queue).n_answered == 1
        assert get(session, Answer, desk.place).note == ODD_TEXT.strip()
    for fmt in ("csv", "jsonl"):
        assert "alert(1)" in client.get(f"/p/demo/review/{desk.queue}.{fmt}").text


def test_a_closed_queue_takes_no_answer_and_opens_again(client: TestClient, desk: Desk) -> None:
    root, here = f"/p/demo/review/{desk.queue}", f"/p/demo/review/answers/{desk.place}"
    for _ in range(2):
        assert client.post(f"{root}/close").status_code == 200
    assert client.post(here, data={"choice": "left"}).status_code == 409
    assert client.post(f"{root}/reopen").status_code == 200
    assert client.post(here, data={"choice": "left"}).status_code == 200


def test_an_override_is_taken_back_once(client: TestClient, desk: Desk) -> None:
    with transaction() as session:
        answer = get(session, Answer, desk.place)
        session.add(Override(pair_id=answer.pair_id, choice="both_bad", account_id=answer.account_id or 0))
    with reading() as session:
        key = session.exec(select(Override.id)).one()
    codes = [client.post(f"/api/v1/p/demo/overrides/{key}/withdraw").status_code for _ in range(2)]
    assert codes == [200, 409]


# ------------------------------------------------------------------------------------------ the API, and what is gone

BODIES: list[Any] = [
    None, [], "text", 7, {}, {"answer": BIG, "choice": "left"}, {"answer": -1, "choice": "left"},
    {"answer": "1", "choice": ["left"]}, {"answer": True, "choice": None}, {"answer": 1.5, "choice": "left"},
    {"weights": {"true": "NaN"}}, {"weights": {"stranger": 1}}, {"weights": []}, {"kind": "judge", "pair_set": -1},
    {"kind": "judge", "pair_set": 1, "judge": 1, "votes": 10**30}, {"kind": 7}, {"kind": "audit", "n": 0},
    {"kind": "card", "judge": 1, "pair_set": 1, "max_flip": 2}, {"name": "x" * 200, "principles": []},
    {"name": "n", "principles": [{"key": "K\u0000", "body": "b"}]}, {"name": "n", "principles": [{"key": "k"}] * 999},
    {"name": "n", "principles": [{"key": "k", "body": "b", "weight": 1e308}]}, {"scores": {"true": 11}},
    {"scores": {"": 5}}, {"scores": 5},
]  # fmt: skip


def test_bodies_that_mean_nothing_are_refused_by_name(client: TestClient, desk: Desk) -> None:
    with reading() as session:
        n = len(session.exec(select(Run.id)).all())
    paths = ("runs", "review/{queue}/answers", "review/marks/1", "verdict-sets/{verdicts}/reweigh", "constitutions",
             "constitutions/{constitution}")  # fmt: skip
    for path, body in product(paths, BODIES):
        content = json.dumps(body)
        answer = client.post(f"/api/v1/p/demo/{path.format(**vars(desk))}", content=content,
                             headers={"content-type": "application/json"})  # fmt: skip
        assert answer.status_code in {403, 404, 409, 422}, (path, body, answer.text[:200])
        assert answer.json()["error"]
    with reading() as session:
        assert len(session.exec(select(Run.id)).all()) == n


def test_what_was_put_away_is_drawn_from_and_judged_by_no_more(client: TestClient, desk: Desk) -> None:
    with transaction() as session:
        get(session, VerdictSet, desk.verdicts).archived_at = now()
        get(session, Endpoint, get(session, Judge, desk.judge).endpoint_id or 0).archived_at = now()
        get(session, RatingSet, desk.ratings).archived_at = now()
    asked = {
        "audit of verdicts": {"kind": "audit", "verdict_set": desk.verdicts},
        "scoring": {"kind": "audit", "purpose": "scoring", "rating_set": desk.ratings},
        "judging": {"kind": "judge", "judge": desk.judge, "pair_set": desk.pairs, "constitution": desk.constitution},
        "snapshot": {"kind": "snapshot", "verdict_set": desk.verdicts},
    }
    for what, recipe in asked.items():
        answer = client.post("/api/v1/p/demo/runs", json=recipe)
        assert answer.status_code == 422, (what, answer.text[:300])
        assert "put away" in answer.text or "archived" in answer.text, (what, answer.text)
    for path in ("judge/{verdicts}", "review/{queue}", "judge/judges/{judge}", "judge/ratings/{ratings}"):
        assert client.get(f"/p/demo/{path.format(**vars(desk))}").status_code == 200, path


def test_weights_are_not_kept_while_the_judging_goes_on(client: TestClient, desk: Desk) -> None:
    with transaction() as session:
        get(session, Run, get(session, VerdictSet, desk.verdicts).run_id or 0).status = "running"
    answer = client.post(f"/p/demo/judge/{desk.verdicts}/keep", data={"weight-true": "2"})
    assert answer.status_code == 409 and "still being judged" in answer.text
    with reading() as session:
        assert session.exec(select(VerdictSet).where(col(VerdictSet.parent_id).is_not(None))).first() is None
