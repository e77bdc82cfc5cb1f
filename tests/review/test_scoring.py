"""Scoring of single completions: drawn from a judge's scores, blind, then beside them; skip, undo, comment."""

from typing import Any

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.models import Account
from app.constitutions.models import Constitution, Principle
from app.db import get, reading, transaction
from app.errors import Conflict, Invalid
from app.judging.models import Judge, Rating, RatingSet
from app.pairs.models import Completion
from app.projects.models import Project
from app.recipes import read_recipe
from app.review.leases import claim
from app.review.models import Mark, Queue
from app.review.recipes import AuditRecipe
from app.review.scoring import OVERALL, asked_of, give_scores, read_scores
from tests.review.rows import do, make_pairs

ROOT = "/p/demo/review"


def make_ratings(project: Project, *, has_constitution: bool = True, n: int = 8) -> RatingSet:
    """A judge's scores of n completions by two principles; the last could not be read."""
    with transaction() as session:
        pairs = make_pairs(session, project, n)
        judge = Judge(project_id=project.id, name="a strict judge", kind="rule")
        constitution = Constitution(project_id=project.id, name="Truth", version=1)
        session.add_all([judge, constitution])
        session.flush()
        for place, key in enumerate(("true", "brief")):
            session.add(Principle(constitution_id=constitution.id, key=key, body=f"Be {key}.", position=place))
        ratings = RatingSet(
            project_id=project.id, name="strict scores", judge_id=judge.id, pair_set_id=pairs.id, n=n, n_null=1,
            constitution_id=constitution.id if has_constitution else None,
        )  # fmt: skip
        session.add(ratings)
        session.flush()
        completions = session.exec(select(Completion.id).order_by(col(Completion.id)).limit(n)).all()
        for completion in completions:
            is_null = completion == completions[-1]
            for key in ("true", "brief") if has_constitution else (OVERALL,):
                session.add(Rating(
                    rating_set_id=ratings.id, completion_id=completion, judge_id=judge.id, principle=key,
                    value=None if is_null else 7.0, reason="unreadable" if is_null else "the judge’s secret score",
                ))  # fmt: skip
        return ratings


def draw(project: Project, ratings: RatingSet, **more: Any) -> Queue:
    run = do(project, AuditRecipe(purpose="scoring", rating_set=ratings.id, **more))
    with reading() as session:
        return session.exec(select(Queue).where(Queue.run_id == run.id)).one()


def owner_id() -> int:
    with reading() as session:
        return session.exec(select(Account.id).where(Account.name == "owner")).one()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"purpose": "scoring"}, "rating_set"),
        ({"purpose": "scoring", "rating_set": 1, "verdict_set": 1}, "no verdicts"),
        ({}, "verdict_set"),
        ({"verdict_set": 1, "rating_set": 1}, "no scores"),
        ({"purpose": "adjudication", "verdict_set": 1, "overlap": 2}, "one adjudicator"),
    ],
)
def test_a_recipe_names_its_source(values: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        read_recipe({"kind": "audit", **values})


def test_recipes_of_before_stay_readable() -> None:
    old = {"kind": "audit", "name": "", "seed": 1, "verdict_set": 5, "purpose": "repair", "n": 20, "overlap": 1}
    read = read_recipe(old)
    assert isinstance(read, AuditRecipe) and read.references() == [("verdict_set", 5)]


def test_the_list_leads_to_the_scores_a_queue_is_drawn_from(client: TestClient, project: Project) -> None:
    ratings = make_ratings(project)
    draw(project, ratings, n=2)
    assert f'<a href="/p/demo/judge/ratings/{ratings.id}">strict scores</a>' in client.get(ROOT).text


def test_scores_are_whole_numbers_on_the_scale(project: Project) -> None:
    queue = draw(project, make_ratings(project), n=2)
    with reading() as session:
        asked = asked_of(session, queue)
    assert [one.key for one in asked] == ["true", "brief"]
    assert read_scores(asked, {"true": "10", "brief": 1}) == {"true": 10.0, "brief": 1.0}
    for given in ({"true": "5"}, {"true": "0", "brief": "5"}, {"true": "11", "brief": "5"}, {"true": "x", "brief": "5"},
                  {"true": "5", "brief": "4.5"}, {"true": "5", "brief": "00107"},
                  {"true": "1", "brief": "1", "other": "1"}):  # fmt: skip
        with pytest.raises(Invalid, match="1 to 10"):
            read_scores(asked, given)


def test_a_random_sample_of_what_was_scored_unreadable_included(project: Project) -> None:
    ratings = make_ratings(project)
    drawn = []
    for seed in (1, 1, 2):
        queue = draw(project, ratings, n=4, seed=seed)
        with reading() as session:
            rows = select(Mark.completion_id).where(Mark.queue_id == queue.id).order_by(col(Mark.position))
            drawn.append(list(session.exec(rows)))
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 4
    assert draw(project, ratings, n=100, overlap=2).n == 8


def test_a_page_scores_blind_then_shows_the_judge(client: TestClient, project: Project) -> None:
    queue = draw(project, make_ratings(project), n=3)
    page = client.post(f"{ROOT}/{queue.id}/next").text
    assert "secret score" not in page and "a strict judge" not in page and "unreadable" not in page
    assert "Be true." in page and "Be brief." in page and page.count('type="radio"') == 20
    with reading() as session:
        mark = session.exec(select(Mark).where(col(Mark.account_id).is_not(None))).one()
    here = f"{ROOT}/marks/{mark.id}"
    assert client.get(here).url.path == f"{ROOT}/{queue.id}/next"  # nothing is shown before the answer
    assert client.post(here, data={"score_0": "8"}).status_code == 422
    assert client.post(f"{here}/draft", data={"note": "half a thou"}).status_code == 204
    assert "half a thou" in client.get(f"{ROOT}/{queue.id}/next").text
    shown = client.post(here, data={"score_0": "8", "score_1": "3", "note": "<i>long</i>"})
    assert shown.status_code == 200 and "&lt;i&gt;long&lt;/i&gt;" in shown.text
    assert "secret score" in shown.text or "unreadable" in shown.text
    assert client.post(here, data={"score_0": "8", "score_1": "3"}).status_code == 200  # sent twice is once
    newer = client.post(here, data={"score_0": "8", "score_1": "3", "note": "too long"}).text
    assert "too long" in newer and "Said before: &lt;i&gt;long" in newer
    assert client.post(here, data={"score_0": "9", "score_1": "3"}).status_code == 409
    assert "taken back" in client.post(f"{here}/back").text
    with reading() as session:
        stored = get(session, Mark, mark.id)
        assert stored.scores == {"true": 8.0, "brief": 3.0} and stored.is_skipped
        assert stored.seconds is not None and 0 <= stored.seconds < 60
        assert get(session, Queue, queue.id).n_answered == 1
    for fmt in ("csv", "jsonl", "json"):
        assert client.get(f"{ROOT}/{queue.id}.{fmt}").status_code == 200
    assert "1 of 3" in client.get(f"{ROOT}/{queue.id}").text


def test_a_skip_goes_on_and_is_undone(client: TestClient, project: Project) -> None:
    queue = draw(project, make_ratings(project), n=3)
    client.post(f"{ROOT}/{queue.id}/next")
    with reading() as session:
        mark = session.exec(select(Mark).where(col(Mark.account_id).is_not(None))).one()
    after = client.post(f"{ROOT}/marks/{mark.id}", data={"choice": "skip"})
    assert after.url.path == f"{ROOT}/{queue.id}/next" and f"{ROOT}/marks/{mark.id}" in after.text
    page = client.get(f"{ROOT}/marks/{mark.id}").text
    assert "secret score" not in page and "Score it after all" in page
    assert client.post(f"{ROOT}/marks/{mark.id}/back").url.path == f"{ROOT}/{queue.id}/next"
    with reading() as session:
        assert get(session, Mark, mark.id).answered_at is None
        assert get(session, Queue, queue.id).n_answered == 0


def test_nobody_scores_a_completion_twice_nor_anothers(project: Project) -> None:
    queue = draw(project, make_ratings(project, has_constitution=False), n=2, overlap=2)
    with reading() as session:
        assert [one.key for one in asked_of(session, queue)] == [OVERALL]
    me = owner_id()
    seen = []
    for _ in range(2):
        with transaction() as session:
            mark = claim(session, Mark, queue, me)
            assert mark is not None
            seen.append(mark.completion_id)
            with pytest.raises(Conflict, match="do not hold"):
                give_scores(session, mark, queue, me + 1, {OVERALL: 1.0})
            give_scores(session, mark, queue, me, {OVERALL: 5.0})
    assert len(set(seen)) == 2
    with transaction() as session:
        assert claim(session, Mark, queue, me) is None  # the other places are for somebody else


def test_the_api_scores_too(client: TestClient, project: Project) -> None:
    queue = draw(project, make_ratings(project), n=2)
    place = client.post(f"/api/v1/p/demo/review/{queue.id}/next").json()
    assert "judge" not in place and [one["key"] for one in place["principles"]] == ["true", "brief"]
    url = f"/api/v1/p/demo/review/marks/{place['mark']}"
    assert client.post(url, json={"scores": {"true": 3}}).status_code == 422
    found = client.post(url, json={"scores": {"true": 3, "brief": 4}, "note": "n"}).json()
    assert found["scores"] == {"true": 3.0, "brief": 4.0} and len(found["judge"]) == 2
