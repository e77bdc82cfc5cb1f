"""Several people on one pair: the majority decides, an even split waits for an adjudicator and is not trained on."""

import pytest
from sqlmodel import col, select

from app.accounts.logins import make_account
from app.accounts.models import Account
from app.db import get, reading, transaction
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.review.adjudication import Word, decide, is_split, unsettled_pairs
from app.review.answers import as_shown, give_answer, standing_override, withdraw
from app.review.models import Answer, Queue
from app.review.queues import claim_place
from tests.review.rows import make_pairs, make_verdicts


def word(choice: str, who: int, *, is_adjudicator: bool = False) -> Word:
    return Word(1, who, choice, is_adjudicator, "")


@pytest.mark.parametrize(
    ("said", "decision"),
    [
        ([], None),
        (["a"], "a"),
        (["a", "b"], None),
        (["a", "b", "b"], "b"),
        (["a", "b", "tie"], None),
        (["a", "tie", "both_bad"], "both_bad"),  # both ask for no preference: two against one
        (["tie", "both_bad", "tie"], "tie"),
        (["a", "a", "tie", "both_bad"], None),
    ],
)
def test_the_majority_decides_and_tie_and_both_bad_are_one_label(said: list[str], decision: str | None) -> None:
    words = [word(choice, who) for who, choice in enumerate(said)]
    assert decide(words) == decision
    assert is_split(words) == (decision is None and bool(said))


def test_an_adjudicator_decides_alone() -> None:
    people = [word("a", 1), word("a", 2), word("b", 3)]
    assert decide([*people, word("b", 1, is_adjudicator=True)]) == "b"
    assert decide([*people, word("b", 1, is_adjudicator=True), word("tie", 2, is_adjudicator=True)]) is None


def test_somebody_who_met_a_pair_in_two_queues_counts_once() -> None:
    assert decide([word("a", 1), word("b", 1)]) == "b"
    assert decide([word("a", 1), word("b", 2), word("b", 1)]) == "b"
    assert decide([word("a", 1), word("a", 2), word("b", 1)]) is None


@pytest.fixture
def split(project: Project) -> Queue:
    """An audit with two people a pair over three pairs whose verdict is a; ann says a everywhere."""
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 3), ["a"])
        queue = Queue(project_id=project.id, name="two", verdict_set_id=verdicts.id, kind="audit", n=3, overlap=2)
        session.add(queue)
        session.flush()
        pairs = session.exec(select(Verdict.pair_id).order_by(col(Verdict.id))).all()
        session.add_all(
            [
                Answer(queue_id=queue.id, pair_id=pair, place=k, position=i)
                for k in (0, 1)
                for i, pair in enumerate(pairs)
            ]
        )
        for name in ("ann", "ben", "cay"):
            make_account(session, name)
        return queue


def say(queue: Queue, account_id: int, choice: str) -> int:
    """The next place answered in the pair's frame; gives the pair."""
    with transaction() as session:
        row = claim_place(session, queue, account_id)
        assert row is not None
        give_answer(session, row, queue, account_id, str(as_shown(choice, row.is_swapped)))
        return row.pair_id


def people_of(*names: str) -> list[int]:
    with reading() as session:
        return [session.exec(select(Account.id).where(Account.name == name)).one() for name in names]


def state(queue: Queue) -> tuple[set[int], int]:
    """(unsettled pairs, the labels' version)."""
    with reading() as session:
        pair_set = get(session, PairSet, get(session, VerdictSet, queue.verdict_set_id or 0).pair_set_id)
        return unsettled_pairs(session, pair_set.id), pair_set.labels_version


def test_an_even_split_is_unsettled_until_an_adjudicator_speaks(split: Queue) -> None:
    ann, ben, cay = people_of("ann", "ben", "cay")
    first = [say(split, ann, "a") for _ in range(3)]
    assert state(split) == (set(), 0)
    assert [say(split, ben, choice) for choice in ("b", "a", "skip")] == first
    assert state(split) == ({first[0]}, 1)  # no override, yet what may be trained on has changed
    with transaction() as session:
        queue = Queue(project_id=split.project_id, name="to settle", verdict_set_id=split.verdict_set_id,
                      kind="adjudication", n=1)  # fmt: skip
        session.add(queue)
        session.flush()
        session.add(Answer(queue_id=queue.id, pair_id=first[0]))
    say(queue, cay, "b")
    assert state(split) == (set(), 2)
    with transaction() as session:
        override = standing_override(session, first[0])
        assert override is not None and (override.choice, override.account_id) == ("b", cay)
        assert "split evenly" in override.why
        withdraw(session, override, ann)
    assert state(split) == (set(), 3)  # taken back by hand: the verdict speaks again


def test_an_adjudicator_who_sides_with_the_verdict_needs_no_override(split: Queue) -> None:
    ann, ben, cay = people_of("ann", "ben", "cay")
    pair, _, _ = (say(split, ann, "a") for _ in range(3))
    assert say(split, ben, "b") == pair
    with transaction() as session:
        queue = Queue(project_id=split.project_id, name="to settle", verdict_set_id=split.verdict_set_id,
                      kind="adjudication", n=1)  # fmt: skip
        session.add(queue)
        session.flush()
        session.add(Answer(queue_id=queue.id, pair_id=pair))
    assert state(split) == ({pair}, 1)
    say(queue, cay, "a")
    assert state(split) == (set(), 2)
    with reading() as session:
        assert standing_override(session, pair) is None
