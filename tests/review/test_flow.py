"""The reviewer's way through a queue: drafts, giving back, closing, progress; and a pair's whole history."""

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account
from app.accounts.models import Account
from app.db import db_now, get, reading, transaction
from app.judging.models import Verdict, VerdictSet
from app.projects.models import Project
from app.review.agreement import read_agreement
from app.review.answers import as_shown, give_answer
from app.review.cards import read_people
from app.review.leases import IDLE_S, LEASE_S, give_back
from app.review.models import Answer, Override, Queue
from app.review.queues import claim_place, make_queue, read_progress
from app.review.recipes import AuditRecipe
from tests.review.rows import do, make_pairs, make_person, make_run, make_verdicts

ROOT = "/p/demo/review"


@pytest.fixture
def queue(project: Project) -> Queue:
    """An audit of 6 pairs whose verdict is a, two people each."""
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 6), ["a"])
        recipe = AuditRecipe(verdict_set=verdicts.id, n=6, overlap=2)
        return make_queue(session, recipe, project.id, make_run(session, project, "audit").id)


def held(name: str = "owner") -> Answer:
    with reading() as session:
        mine = select(Answer).join(Account, col(Account.id) == col(Answer.account_id)).where(Account.name == name)
        return session.exec(mine.where(col(Answer.first).is_(None))).one()


def test_a_draft_survives_a_reload_and_never_reaches_somebody_else(client: TestClient, queue: Queue) -> None:
    client.post(f"{ROOT}/{queue.id}/next")
    place = held()
    assert client.post(f"{ROOT}/answers/{place.id}/draft", data={"note": "a thought <b>begun"}).status_code == 204
    page = client.get(f"{ROOT}/{queue.id}/next").text
    assert 'value="a thought &lt;b&gt;begun"' in page and f'hx-post="{ROOT}/answers/{place.id}/draft"' in page
    assert "with a comment begun" in client.get(f"{ROOT}/{queue.id}").text
    client.post(f"{ROOT}/{queue.id}/release")
    client.post(f"{ROOT}/{queue.id}/next")
    assert (held().id, held().note) == (place.id, "a thought <b>begun")  # whoever comes back first has it again
    client.post(f"{ROOT}/{queue.id}/release")
    with transaction() as session:
        ann = make_account(session, "ann").id
        taken = claim_place(session, queue, ann)
        assert taken is not None and (taken.id, taken.note) == (place.id, "")
    # a late draft of the one who lost the place changes nothing
    assert client.post(f"{ROOT}/answers/{place.id}/draft", data={"note": "late"}).status_code == 404
    assert held("ann").note == ""


def test_going_on_takes_the_next_pair_with_the_answer_and_gives_it_back_on_leaving(
    client: TestClient, queue: Queue
) -> None:
    client.post(f"{ROOT}/{queue.id}/next")
    first = held()
    page = client.post(f"{ROOT}/answers/{first.id}", data={"choice": "tie", "auto": "1"})
    second = held()
    assert second.id != first.id and f'action="{ROOT}/answers/{second.id}"' in page.text  # it is in the reply already
    with transaction() as session:
        ann = make_account(session, "ann").id
        other = claim_place(session, queue, ann)
        assert other is not None and other.id != second.id
        give_answer(session, other, queue, ann, "tie")
    client.post(f"{ROOT}/{queue.id}/release")
    with transaction() as session:
        other = claim_place(session, queue, ann)
        assert other is not None and other.id == second.id


def test_a_pause_is_counted_up_to_five_minutes(queue: Queue) -> None:
    with transaction() as session:
        ann = make_account(session, "ann").id
        row = claim_place(session, queue, ann)
        assert row is not None
        row.lease_until = db_now(session) + LEASE_S - 7
        session.flush()
        give_answer(session, row, queue, ann, "left")
        assert row.seconds == pytest.approx(7, abs=0.5)
        row = claim_place(session, queue, ann)
        assert row is not None
        row.lease_until = db_now(session) - 9_999
        session.flush()
        give_answer(session, row, queue, ann, "skip")
        assert row.seconds == IDLE_S
    with reading() as session:
        (progress,) = read_progress(session, queue)
    assert (progress.name, progress.n, progress.n_skipped) == ("ann", 2, 1)
    assert progress.seconds == pytest.approx((7 + IDLE_S) / 2, abs=0.5)


def test_a_closed_queue_takes_no_answer_and_loses_none(client: TestClient, queue: Queue) -> None:
    client.post(f"{ROOT}/{queue.id}/next")
    place = held()
    assert "Reopen" in client.post(f"{ROOT}/{queue.id}/close").text
    assert client.post(f"{ROOT}/answers/{place.id}", data={"choice": "left"}).status_code == 409
    assert client.post(f"{ROOT}/{queue.id}/next").status_code == 409
    assert client.get(f"{ROOT}.json?state=closed").json()["rows"][0]["id"] == queue.id
    client.post(f"{ROOT}/{queue.id}/reopen")
    assert client.post(f"{ROOT}/answers/{place.id}", data={"choice": "left"}).status_code == 200
    with transaction() as session:
        _, cookie = make_person(session, get(session, Project, queue.project_id), "grace", "grader")
    client.cookies.set(COOKIE, cookie)
    assert client.post(f"{ROOT}/{queue.id}/close").status_code == 403
    page = client.get(f"{ROOT}/{queue.id}").text
    assert "Close this queue" not in page and "owner" not in page  # nor who else answered
    assert client.get(f"{ROOT}/pairs/{place.pair_id}").status_code == 403


def answer_all(queue: Queue, account_id: int, choices: list[str]) -> list[int]:
    pairs = []
    for choice in choices:
        with transaction() as session:
            row = claim_place(session, queue, account_id)
            assert row is not None
            give_answer(session, row, queue, account_id, str(as_shown(choice, row.is_swapped)), f"I say {choice}")
            pairs.append(row.pair_id)
    return pairs


def test_an_adjudication_holds_the_split_pairs_alone_and_its_word_stands(
    client: TestClient, project: Project, queue: Queue
) -> None:
    with transaction() as session:
        ann, ben = make_account(session, "xaver").id, make_account(session, "ben").id
    pairs = answer_all(queue, ann, ["a"] * 6)
    assert answer_all(queue, ben, ["a", "b", "a", "b", "skip", "a"]) == pairs
    assert queue.verdict_set_id is not None
    recipe = AuditRecipe(verdict_set=queue.verdict_set_id, purpose="adjudication", n=50)
    run = do(project, recipe)
    with reading() as session:
        made = session.exec(select(Queue).where(Queue.run_id == run.id)).one()
        drawn = session.exec(select(Answer.pair_id).where(Answer.queue_id == made.id)).all()
    assert set(drawn) == {pairs[1], pairs[3]} and (made.kind, made.n) == ("adjudication", 2)
    page = client.post(f"{ROOT}/{made.id}/next").text
    assert "I say a" in page and "I say b" in page and "xaver" not in page and "secret reason" not in page
    place = held()
    shown = as_shown("b", place.is_swapped)
    assert "What the judge said" in client.post(f"{ROOT}/answers/{place.id}", data={"choice": str(shown)}).text
    with reading() as session:
        override = session.exec(select(Override)).one()
    assert (override.pair_id, override.choice) == (place.pair_id, "b")
    history = client.get(f"{ROOT}/pairs/{place.pair_id}")
    assert history.status_code == 200 and "adjudication" in history.text and "I say b" in history.text
    after = client.post(f"{ROOT}/overrides/{override.id}/withdraw").text
    assert "taken back by hand" in after and "the verdict is the label" in after
    # filters of the list, by state and by who
    assert [one["state"] for one in client.get(f"{ROOT}/overrides.json?state=withdrawn").json()["rows"]] == [
        "withdrawn"
    ]
    assert client.get(f"{ROOT}/overrides.json?state=standing").json()["rows"] == []
    assert len(client.get(f"{ROOT}/overrides.json?who=owner").json()["rows"]) == 1
    assert "No override matches" in client.get(f"{ROOT}/overrides?who=xaver").text


def test_an_override_always_says_why(client: TestClient, queue: Queue) -> None:
    client.post(f"{ROOT}/{queue.id}/next")
    place = held()
    choice = str(as_shown("a", place.is_swapped))
    page = client.post(f"{ROOT}/answers/{place.id}", data={"choice": choice}).text
    assert 'value="Decided after the verdict was shown."' in page
    client.post(f"{ROOT}/answers/{place.id}/later", data={"choice": "tie"})
    with reading() as session:
        assert session.exec(select(Override.why)).one() == "Decided after the verdict was shown."
    client.post(f"{ROOT}/{queue.id}/next")
    place = held()
    client.post(f"{ROOT}/answers/{place.id}", data={"choice": str(as_shown("b", place.is_swapped))})
    with reading() as session:
        whys = session.exec(select(Override.why).order_by(col(Override.id))).all()
    assert whys[1] == "A blind answer in an audit contradicts the verdict."


def test_what_was_given_back_and_answered_yet_has_no_time(queue: Queue) -> None:
    with transaction() as session:
        ann = make_account(session, "ann").id
        row = claim_place(session, queue, ann)
        assert row is not None
        give_back(session, Answer, queue, ann)
        session.refresh(row)
        give_answer(session, row, queue, ann, "tie")
        assert row.first == "tie" and row.seconds is None


def test_other_weights_show_the_reasons_they_were_added_up_from(client: TestClient, queue: Queue) -> None:
    with transaction() as session:
        judged = get(session, VerdictSet, queue.verdict_set_id or 0)
        kept = VerdictSet(project_id=judged.project_id, name="other weights", pair_set_id=judged.pair_set_id,
                          judge_id=judged.judge_id, parent_id=judged.id, weights={"true": 1.0})  # fmt: skip
        session.add(kept)
        session.flush()
        for pair in session.exec(select(Verdict.pair_id).where(Verdict.verdict_set_id == judged.id)).all():
            session.add(Verdict(verdict_set_id=kept.id, pair_id=pair, outcome="a"))
        get(session, Queue, queue.id).verdict_set_id = kept.id
    client.post(f"{ROOT}/{queue.id}/next")
    page = client.post(f"{ROOT}/answers/{held().id}", data={"choice": "tie"}).text
    assert "the judge’s secret reason" in page


def test_a_verdict_that_is_asked_for_again_counts_as_unreadable(client: TestClient, queue: Queue) -> None:
    """A judging taken up again forgets the verdicts whose calls had failed; people may have answered those pairs."""
    client.post(f"{ROOT}/{queue.id}/next")
    place = held()
    client.post(f"{ROOT}/answers/{place.id}", data={"choice": "tie", "auto": "1"})
    with transaction() as session:
        session.delete(session.exec(select(Verdict).where(Verdict.pair_id == place.pair_id)).one())
    assert "there is no verdict just now" in client.get(f"{ROOT}/answers/{place.id}").text
    assert "the verdict was unreadable" in client.get(f"{ROOT}/{queue.id}/next?auto=1").text
    assert client.get(f"{ROOT}/{queue.id}/estimates").status_code == 200
    with reading() as session:
        found = read_agreement(session, get(session, Queue, queue.id))
    assert found.n_audited == 1 and found.lines is not None
    assert (found.lines.all_items.value, found.lines.n_unreadable) == (0.0, 1)


def test_who_meets_a_pair_in_two_audits_is_one_person(queue: Queue, project: Project) -> None:
    with transaction() as session:
        recipe = AuditRecipe(verdict_set=queue.verdict_set_id, n=6, overlap=2)
        second = make_queue(session, recipe, project.id, make_run(session, project, "audit").id)
        ann, bob, eve = (make_account(session, name).id for name in ("ann", "bob", "eve"))
        pair = session.exec(select(Answer.pair_id).where(Answer.queue_id == queue.id)).first() or 0
        told = [(queue, 0, ann, "a"), (second, 0, ann, "a"), (queue, 1, bob, "b"), (second, 1, eve, "b")]
        for where, place, who, said in told:
            mine = select(Answer).where(Answer.queue_id == where.id, Answer.pair_id == pair, Answer.place == place)
            row = session.exec(mine).one()
            row.account_id, row.first = who, said
    with reading() as session:
        assert read_people(session, get(session, VerdictSet, queue.verdict_set_id or 0).pair_set_id).labels == {
            pair: "b"
        }
