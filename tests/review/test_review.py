"""Review on both databases: drawing, claims, blind answers, overrides, agreement, pages and API."""

import threading
from collections import Counter

import pytest
import sqlalchemy as sa
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account
from app.accounts.models import Account
from app.db import db_now, get, reading, transaction
from app.errors import Conflict
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.projects.models import Project
from app.review.agreement import read_agreement
from app.review.answers import as_shown, change_answer, give_answer, in_pair_frame, withdraw
from app.review.models import Answer, Override, Queue
from app.review.queues import choose_pairs, claim_place, make_queue
from app.review.recipes import AuditRecipe
from tests.review.rows import do, make_pairs, make_person, make_run, make_verdicts

OUTCOMES: list[str | None] = ["a", "b", "a", "tie", None]


@pytest.fixture
def verdicts(project: Project) -> VerdictSet:
    """40 judged pairs: 16 a, 8 b, 8 tie, 8 unreadable."""
    with transaction() as session:
        return make_verdicts(session, project, make_pairs(session, project, 40), OUTCOMES)


@pytest.fixture
def queue(project: Project, verdicts: VerdictSet) -> Queue:
    """An audit of 12 pairs."""
    with transaction() as session:
        run = make_run(session, project, "audit")
        return make_queue(session, AuditRecipe(verdict_set=verdicts.id, n=12, seed=3), project.id, run.id)


def answer_as(queue: Queue, account_id: int, wanted: str, note: str = "") -> Answer:
    """Takes the next place and answers in the pair's frame: `agree`, `differ`, or a choice."""
    with transaction() as session:
        row = claim_place(session, queue, account_id)
        assert row is not None
        outcome = session.exec(
            select(Verdict.outcome).where(
                Verdict.verdict_set_id == queue.verdict_set_id, Verdict.pair_id == row.pair_id
            )
        ).one()
        framed = {"agree": outcome or "tie", "differ": "b" if outcome == "a" else "a"}.get(wanted, wanted)
        give_answer(session, row, queue, account_id, str(as_shown(framed, row.is_swapped)), note)
        return row


def owner_id() -> int:
    with reading() as session:
        return session.exec(select(Account.id).where(Account.name == "owner")).one()


def labels_version(queue: Queue) -> int:
    with reading() as session:
        return get(session, PairSet, get(session, VerdictSet, queue.verdict_set_id or 0).pair_set_id).labels_version


def test_audit_is_drawn_by_the_worker_and_seeded(project: Project, verdicts: VerdictSet) -> None:
    runs = [do(project, AuditRecipe(verdict_set=verdicts.id, n=10, seed=seed)) for seed in (1, 1, 2)]
    with reading() as session:
        queues = [session.exec(select(Queue).where(Queue.run_id == run.id)).one() for run in runs]
        drawn = [
            list(session.exec(select(Answer.pair_id).where(Answer.queue_id == q.id).order_by(col(Answer.position))))
            for q in queues
        ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert drawn[0] != sorted(drawn[0])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_audit_draws_every_pair_equally_often(project: Project, verdicts: VerdictSet) -> None:
    counts: Counter[int] = Counter()
    with reading() as session:
        for seed in range(2000):
            counts.update(choose_pairs(session, AuditRecipe(verdict_set=verdicts.id, n=10, seed=seed)))
    # 2,000 draws of 10 from 40: 500 each, standard deviation 19
    assert len(counts) == 40
    assert all(abs(n - 500) < 90 for n in counts.values())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_repair_queue_puts_need_first_and_leaves_out_what_is_mended(project: Project, verdicts: VerdictSet) -> None:
    recipe = AuditRecipe(verdict_set=verdicts.id, purpose="repair", n=10)
    with transaction() as session:
        first = choose_pairs(session, recipe)
        needs = [session.exec(select(Verdict.need).where(Verdict.pair_id == pair)).one() for pair in first]
        assert needs == sorted(needs, reverse=True) and needs[0] == 1.0
        session.add(Override(pair_id=first[0], choice="a", account_id=owner_id()))
        session.flush()
        assert first[0] not in choose_pairs(session, recipe)


def test_two_people_never_hold_the_same_place(project: Project, verdicts: VerdictSet) -> None:
    with transaction() as session:
        run = make_run(session, project, "audit")
        queue = make_queue(session, AuditRecipe(verdict_set=verdicts.id, n=40, overlap=2), project.id, run.id)
        people = [make_account(session, f"reviewer {i}").id for i in range(8)]
    held: list[tuple[int, int, int]] = []
    failures: list[BaseException] = []

    def review(account_id: int) -> None:
        try:
            while True:
                with transaction() as session:
                    row = claim_place(session, queue, account_id)
                    if row is None:
                        return
                    place = (row.id, row.pair_id, account_id)
                held.append(place)
                with transaction() as session:
                    give_answer(session, get(session, Answer, place[0]), queue, account_id, "left")
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=review, args=(account,)) for account in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(held) == len({place for place, _, _ in held}) == 80
    assert len({(pair, account) for _, pair, account in held}) == 80  # nobody sees a pair twice
    with reading() as session:
        assert session.exec(select(sa.func.count(col(Answer.first))).where(Answer.queue_id == queue.id)).one() == 80


def test_a_lease_that_is_over_goes_to_somebody_else(queue: Queue) -> None:
    with transaction() as session:
        ann, ben = make_account(session, "ann").id, make_account(session, "ben").id
        row = claim_place(session, queue, ann)
        assert row is not None
        again = claim_place(session, queue, ann)
        assert again is not None and again.id == row.id  # a reload shows the same pair
    with transaction() as session:
        stale = get(session, Answer, row.id)
        stale.lease_until = db_now(session) - 1
    with transaction() as session:
        taken = claim_place(session, queue, ben)
        assert taken is not None and taken.id == row.id
    with transaction() as session, pytest.raises(Conflict, match="do not hold"):
        give_answer(session, get(session, Answer, row.id), queue, ann, "left")


def test_side_is_stored_and_random_by_person_and_pair(queue: Queue) -> None:
    swapped = Counter(answer_as(queue, owner_id(), "agree").is_swapped for _ in range(12))
    assert 0 < swapped[True] < 12
    for is_swapped in (False, True):
        for choice in ("left", "right", "tie", "both_bad", "skip"):
            assert as_shown(in_pair_frame(choice, is_swapped), is_swapped) == choice
    assert in_pair_frame("left", True) == "b" and in_pair_frame("left", False) == "a"


def test_first_answer_is_immutable_and_undo_moves_only_the_override(queue: Queue) -> None:
    me = owner_id()
    row = answer_as(queue, me, "differ", note="b is wrong")
    with transaction() as session:
        given = get(session, Answer, row.id)
        override = session.exec(select(Override)).one()
        assert (override.choice, override.answer_id, override.why) == (given.first, row.id, "b is wrong")
        other = "left" if as_shown(given.first, given.is_swapped) == "right" else "right"
        with pytest.raises(Conflict, match="first answer stands"):
            give_answer(session, given, queue, me, other)
    assert labels_version(queue) == 1
    with reading() as session:
        before = read_agreement(session, queue)
    with transaction() as session:  # the same key pressed twice is one answer
        again = get(session, Answer, row.id)
        give_answer(session, again, queue, me, str(as_shown(again.first, again.is_swapped)))
    with transaction() as session:
        row = get(session, Answer, row.id)
        verdict = session.exec(select(Verdict).where(Verdict.pair_id == row.pair_id)).one()
        first = row.first
        change_answer(session, row, queue, me, str(as_shown(verdict.outcome or "skip", row.is_swapped)))
    with reading() as session:
        row = get(session, Answer, row.id)
        assert row.first == first and row.later == (verdict.outcome or "skip")
        assert session.exec(select(Override).where(col(Override.withdrawn_at).is_(None))).all() == []
        assert len(session.exec(select(Override)).all()) == 1  # withdrawn, not deleted
        after = read_agreement(session, queue)
        assert after.lines is not None and before.lines is not None
        assert after.lines.all_items.value == before.lines.all_items.value == 0
    assert labels_version(queue) == 2


def test_a_newer_comment_with_the_same_answer_wins_and_the_history_keeps_the_older(queue: Queue) -> None:
    me = owner_id()
    row = answer_as(queue, me, "differ", note="b is wrong")

    def again(note: str) -> str:
        with transaction() as session:
            given = get(session, Answer, row.id)
            give_answer(session, given, queue, me, str(as_shown(given.first, given.is_swapped)), note)
            return given.note

    both = "it names no source\nSaid before: b is wrong"
    assert [again(""), again("b is wrong")] == ["b is wrong"] * 2  # a second press alone changes nothing
    assert [again(" it names no source"), again("it names no source"), again("")] == [both] * 3
    with reading() as session:
        old, new = session.exec(select(Override).order_by(col(Override.id))).all()
        assert (old.why, new.why, new.choice, new.answer_id) == ("b is wrong", both, old.choice, row.id)
        assert old.withdrawn_at is not None and new.withdrawn_at is None
        assert get(session, PairSet, get(session, Pair, row.pair_id).pair_set_id).n_overridden == 1
    assert labels_version(queue) == 1  # no label moved
    with transaction() as session:  # after the reveal the comment is edited in its own field
        given = get(session, Answer, row.id)
        change_answer(session, given, queue, me, str(as_shown(given.first, given.is_swapped)), "it cites nothing")
    with reading() as session:
        whys = [one.why for one in session.exec(select(Override).order_by(col(Override.id)))]
        assert whys == ["b is wrong", both, "it cites nothing"] and labels_version(queue) == 1
    assert len(again("x" * 20_000)) == 10_000


def test_overrides_only_contradictions(queue: Queue) -> None:
    me = owner_id()
    for _ in range(12):
        answer_as(queue, me, "agree")
    with reading() as session:
        made = session.exec(select(Override)).all()
        unreadable = session.exec(select(Verdict.pair_id).join(
            Answer, col(Answer.pair_id) == col(Verdict.pair_id)
        ).where(Answer.queue_id == queue.id, col(Verdict.outcome).is_(None))).all()  # fmt: skip
    assert {one.pair_id for one in made} == set(unreadable)  # what could not be read now has a label
    assert labels_version(queue) == len(made)


def test_majority_decides_and_an_even_split_leaves_the_verdict(project: Project, verdicts: VerdictSet) -> None:
    with transaction() as session:
        pair = session.exec(select(Verdict.pair_id).where(Verdict.outcome == "a").limit(1)).one()
        queue = Queue(project_id=project.id, name="three", verdict_set_id=verdicts.id, kind="audit", n=1, overlap=3)
        session.add(queue)
        session.flush()
        session.add_all([Answer(queue_id=queue.id, pair_id=pair, place=k) for k in range(3)])
        people = [make_account(session, name).id for name in ("ann", "ben", "cay")]
    standing = select(Override.choice).where(col(Override.withdrawn_at).is_(None))
    found = []
    for account, choice in zip(people, ("b", "a", "b"), strict=True):
        answer_as(queue, account, choice)
        with reading() as session:
            found.append(session.exec(standing).first())
    assert found == ["b", None, "b"]
    with reading() as session:
        agreement = read_agreement(session, queue)
        assert agreement.lines is not None
        assert (agreement.n_audited, agreement.n_people, agreement.lines.all_items.n) == (1, 3, 3)


def test_withdrawing_by_hand_restores_the_verdict_for_good(queue: Queue) -> None:
    me = owner_id()
    row = answer_as(queue, me, "differ")
    with transaction() as session:
        override = session.exec(select(Override)).one()
        withdraw(session, override, me)
        assert override.withdrawn_by_id == me
        with pytest.raises(Conflict):
            withdraw(session, override, me)
    with transaction() as session:  # the same word again does not bring it back
        row = get(session, Answer, row.id)
        change_answer(session, row, queue, me, str(as_shown(row.first, row.is_swapped)))
        assert session.exec(select(Override).where(col(Override.withdrawn_at).is_(None))).first() is None


def test_agreement_has_two_lines_with_n(queue: Queue) -> None:
    with reading() as session:
        assert read_agreement(session, queue).lines is None
    me = owner_id()
    wanted = ["agree"] * 6 + ["differ"] * 3 + ["skip"] * 3
    for one in wanted:
        answer_as(queue, me, one)
    with reading() as session:
        found = read_agreement(session, queue)
        rows = session.execute(
            sa.select(col(Answer.first), col(Verdict.outcome))
            .join(Verdict, col(Verdict.pair_id) == col(Answer.pair_id))
            .where(col(Answer.queue_id) == queue.id, col(Answer.first) != "skip")
        ).all()
    assert found.lines is not None and found.lines.readable_only is not None
    n_equal = sum(first == outcome for first, outcome in rows)
    n_readable = sum(outcome is not None for _, outcome in rows)
    assert (found.n_audited, found.n_skipped, found.n_pairs) == (9, 3, 12)
    assert (found.lines.all_items.n, found.lines.readable_only.n) == (9, n_readable)
    assert found.lines.all_items.value == pytest.approx(n_equal / 9)
    assert found.lines.readable_only.value == pytest.approx(n_equal / n_readable)
    assert not found.is_simulated
    assert sum(map(sum, found.confusion)) == 9


def test_simulated_people_are_marked(project: Project, queue: Queue) -> None:
    with transaction() as session:
        robot, _ = make_person(session, project, "robot", "grader", is_simulated=True)
    answer_as(queue, robot.id, "agree")
    with reading() as session:
        assert read_agreement(session, queue).is_simulated


def test_the_page_hides_the_verdict_until_the_answer(client: TestClient, queue: Queue) -> None:
    root = "/p/demo/review"
    assert f"0 of {queue.n}" in client.get(root).text and "audited" in client.get(root).text
    taken = client.post(f"{root}/{queue.id}/next")
    assert taken.status_code == 200 and taken.url.path == f"{root}/{queue.id}/next"
    with reading() as session:
        row = session.exec(select(Answer).where(col(Answer.account_id).is_not(None))).one()
    for word in ("secret reason", "no verdict in the answer", "unreadable", "verdict was"):
        assert word not in taken.text
    assert f'action="{root}/answers/{row.id}"' in taken.text
    # asking for the answer's page before answering leads back
    assert client.get(f"{root}/answers/{row.id}").url.path == f"{root}/{queue.id}/next"
    shown = client.post(f"{root}/answers/{row.id}", data={"choice": "tie", "note": "<b>hm</b>"})
    assert shown.status_code == 200 and shown.url.path == f"{root}/answers/{row.id}"
    assert "What the judge said" in shown.text and "&lt;b&gt;hm&lt;/b&gt;" in shown.text
    assert "secret reason" in shown.text or "no verdict in the answer" in shown.text
    assert "first answer stays" in shown.text
    assert client.post(f"{root}/answers/{row.id}", data={"choice": "left"}).status_code == 409
    assert client.post(f"{root}/answers/{row.id}/later", data={"choice": "left"}).status_code == 200
    assert client.post(f"{root}/answers/{row.id}", data={"choice": "sideways"}).status_code == 422
    for path in (f"{root}/overrides", f"{root}/{queue.id}", root):
        assert client.get(path).status_code == 200
        for fmt in ("json", "csv", "jsonl"):
            assert client.get(f"{path}.{fmt}").status_code == 200
    rows = client.get(f"{root}/{queue.id}.json").json()["rows"]
    assert [one["first"] for one in rows] == ["tie"]
    standing = client.get(f"{root}/overrides.json").json()["rows"]
    if standing:
        assert client.post(f"{root}/overrides/{standing[0]['id']}/withdraw").status_code == 200
        assert client.get(f"{root}/overrides.json").json()["rows"][0]["withdrawn_by"] == "owner"


def test_going_on_by_itself_shows_the_next_pair(client: TestClient, queue: Queue) -> None:
    root = "/p/demo/review"
    client.post(f"{root}/{queue.id}/next")
    with reading() as session:
        row = session.exec(select(Answer).where(col(Answer.account_id).is_not(None))).one()
    after = client.post(f"{root}/answers/{row.id}", data={"choice": "left", "auto": "1"})
    assert after.url.path == f"{root}/{queue.id}/next"
    assert "the verdict was" in after.text and f"{root}/answers/{row.id}" in after.text
    assert 'name="choice"' in after.text


def test_api_takes_answers_and_reveals(client: TestClient, queue: Queue) -> None:
    root = "/api/v1/p/demo/review"
    place = client.post(f"{root}/{queue.id}/next").json()
    assert "verdict" not in place and {"left", "right", "messages"} <= place.keys()
    body = {"answer": place["answer"], "choice": "left", "note": "n"}
    found = client.post(f"{root}/{queue.id}/answers", json=body).json()
    assert "verdict" in found and found["first"] == "left" and found["seconds"] >= 0
    later = client.post(f"{root}/answers/{place['answer']}/later", json={"choice": "both_bad"}).json()
    assert (later["first"], later["later"], later["override"]) == ("left", "both_bad", "both_bad") or later[
        "verdict"
    ] == "tie"


def test_graders_see_neither_others_answers_nor_whose_labels_these_are(
    client: TestClient, project: Project, queue: Queue
) -> None:
    row = answer_as(queue, owner_id(), "agree")
    with transaction() as session:
        _, cookie = make_person(session, project, "grace", "grader")
    client.cookies.set(COOKIE, cookie)
    assert client.get(f"/p/demo/review/answers/{row.id}").status_code == 404
    for path in ("/p/demo/review", f"/p/demo/review/{queue.id}"):
        page = client.get(path)
        assert page.status_code == 200 and "verdicts by rule" not in page.text
    assert client.get(f"/p/demo/review/{queue.id}.csv").status_code == 403
    assert client.get("/p/demo/review/overrides").status_code == 403
    assert client.post(f"/p/demo/review/{queue.id}/next").status_code == 200


def test_rows_of_another_project_are_not_found(client: TestClient, queue: Queue) -> None:
    with transaction() as session:
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        get(session, Queue, queue.id).project_id = other.id
    assert client.get(f"/p/demo/review/{queue.id}").status_code == 404
    assert client.post(f"/p/demo/review/{queue.id}/next").status_code == 404
