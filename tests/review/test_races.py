"""The same key pressed many times at once, and two people at the same pair at one moment: counted once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.db import get, reading, transaction
from app.errors import Conflict
from app.pairs.models import PairSet
from app.projects.models import Project
from app.review.answers import change_answer, give_answer, withdraw
from app.review.models import Answer, Mark, Override, Queue
from app.review.queues import claim_place, make_queue
from app.review.recipes import AuditRecipe
from tests.review.rows import make_pairs, make_person, make_run, make_verdicts
from tests.review.test_scoring import draw, make_ratings

ROOT = "/p/demo/review"


def test_an_undo_pressed_many_times_opens_a_skip_once(client: TestClient, project: Project) -> None:
    queue = draw(project, make_ratings(project), n=3)
    client.post(f"{ROOT}/{queue.id}/next")
    with reading() as session:
        mark = session.exec(select(Mark.id).where(col(Mark.account_id).is_not(None))).one()
    client.post(f"{ROOT}/marks/{mark}", data={"choice": "skip"})
    with ThreadPoolExecutor(12) as many:
        for sent in [many.submit(client.post, f"{ROOT}/marks/{mark}/back", follow_redirects=False) for _ in range(12)]:
            assert sent.result().status_code in (303, 409)
    with reading() as session:
        assert get(session, Queue, queue.id).n_answered == 0
        assert get(session, Mark, mark).answered_at is None


def test_a_double_click_takes_one_place(client: TestClient, project: Project) -> None:
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 12), ["a"])
        recipe = AuditRecipe(verdict_set=verdicts.id, n=12)
        queue = make_queue(session, recipe, project.id, make_run(session, project, "audit").id)
    with ThreadPoolExecutor(8) as many:
        for sent in [many.submit(client.post, f"{ROOT}/{queue.id}/next", follow_redirects=False) for _ in range(8)]:
            assert sent.result().status_code == 303
    with reading() as session:
        assert len(session.exec(select(Answer).where(col(Answer.account_id).is_not(None))).all()) == 1


def test_an_override_that_two_people_take_back_at_once_is_counted_once(project: Project) -> None:
    with transaction() as session:
        verdicts = make_verdicts(session, project, make_pairs(session, project, 1), ["a"])
        ann, bob = (make_person(session, project, name, "researcher")[0].id for name in ("ann", "bob"))
        recipe = AuditRecipe(verdict_set=verdicts.id, n=1)
        queue = make_queue(session, recipe, project.id, make_run(session, project, "audit").id)
        place = claim_place(session, queue, ann)
        assert place is not None
        give_answer(session, place, queue, ann, "left" if place.is_swapped else "right")  # b
        override = session.exec(select(Override)).one()
    said: list[object] = []

    def by_hand() -> None:
        try:
            with transaction() as session:
                withdraw(session, get(session, Override, override.id), bob)
            said.append("withdrawn")
        except Conflict as error:
            said.append(error)

    other = threading.Thread(target=by_hand)

    def let_the_other_in(session: Any, *_: object) -> None:
        """Between reading which override stands and withdrawing it."""
        if any(isinstance(one, Override) for one in session.dirty) and not said:
            other.start()
            other.join(0.5)

    with transaction() as session:
        sa.event.listen(session, "before_flush", let_the_other_in)
        answer = get(session, Answer, place.id)
        change_answer(session, answer, queue, ann, "right" if place.is_swapped else "left")  # a, as the judge says
    other.join()
    with reading() as session:
        assert get(session, PairSet, verdicts.pair_set_id).n_overridden == 0
    assert len(said) == 1 and isinstance(said[0], Conflict)
