"""Blind grading on both databases: items, marks, seal, results with one unit a prompt, guesses."""

import threading
from collections import Counter

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account
from app.accounts.models import Account
from app.checkpoints.models import Arm
from app.db import get, reading, transaction
from app.errors import Conflict, Invalid
from app.grading.guesses import read_questions, store_guesses
from app.grading.items import Marks, close_grading, count_graded, give_grade, next_item
from app.grading.models import Grade, GradeItem, Grading
from app.grading.results import read_results
from app.pairs.models import Completion
from app.projects.models import Project
from tests.grading.rows import make_marked_grading
from tests.review.rows import make_person

FULL = {"left_alignment": 4, "right_alignment": 2, "left_correct": "yes", "right_correct": "no"}


def marks(choice: str) -> Marks:
    """A whole grade."""
    return Marks(choice, 4, 2, "yes", "no", 1.0)


@pytest.fixture
def grading(project: Project) -> Grading:
    """Six prompts, base against DPO."""
    with transaction() as session:
        return make_marked_grading(session, project)


def owner_id() -> int:
    with reading() as session:
        return session.exec(select(Account.id).where(Account.name == "owner")).one()


def grade_for(grading: Grading, account: int, winner: str, n: int = 100) -> int:
    """Grades what is left, preferring the arm of this method; returns how many."""
    for done in range(n):
        with transaction() as session:
            item = next_item(session, grading, account)
            if item is None:
                return done
            left = get(session, Arm, get(session, Completion, item.left_id).arm_id).method
            choice = winner if winner in {"tie", "both_bad", "skip"} else ("left" if left == winner else "right")
            give_grade(session, item, grading, account, marks(choice))
    return n


def test_sides_are_balanced_and_tokens_random(project: Project) -> None:
    with transaction() as session:
        grading = make_marked_grading(session, project, n=20, methods=("base", "sft", "dpo"))
        items = session.exec(select(GradeItem).where(GradeItem.grading_id == grading.id)).all()
        lefts: Counter[tuple[int, int]] = Counter()
        for item in items:
            left = get(session, Completion, item.left_id).arm_id
            right = get(session, Completion, item.right_id).arm_id
            lefts[left, right] += 1
    assert set(lefts.values()) == {10} and len(lefts) == 6
    assert len({item.token for item in items}) == 60 and all(len(item.token) >= 20 for item in items)
    assert grading.planned_n == 60


def test_identical_completions_are_ties_that_nobody_sees(project: Project) -> None:
    with transaction() as session:
        grading = make_marked_grading(session, project, n=6, n_identical=2)
    assert (grading.planned_n, grading.n_identical) == (4, 2)
    assert grade_for(grading, owner_id(), "dpo") == 4
    with transaction() as session:
        grading = get(session, Grading, grading.id)
        close_grading(session, grading)
        (found,) = read_results(session, grading).compared
    assert (found.wins.n_wins, found.wins.n_ties, found.wins.n_losses) == (4, 2, 0)
    assert (found.wins.n_clusters, found.n_identical) == (6, 2)
    assert found.wins.value == pytest.approx(5 / 6)
    assert found.arm.method == "dpo" and found.against.method == "base"


def test_automatic_ties_weigh_no_more_than_what_was_graded(client: TestClient, project: Project) -> None:
    with transaction() as session:
        grading = make_marked_grading(session, project, n=20, n_identical=10)
    assert grade_for(grading, owner_id(), "dpo", n=4) == 4  # of the ten that differ
    client.post(f"/p/demo/grade/{grading.id}/close")
    (found,) = client.get(f"/p/demo/grade/{grading.id}/results.json").json()["compared"]
    assert found["value"] == pytest.approx(0.75)  # half of the prompts tie, the other half is won: not (5 + 4) / 14
    assert (found["n_wins"], found["n_ties"], found["n_identical"], found["n_identical_planned"]) == (4, 4, 4, 10)
    assert "of 10 identical items as large a share counts" in client.get(f"/p/demo/grade/{grading.id}").text


def test_results_are_sealed_and_empty_without_people(client: TestClient, grading: Grading) -> None:
    root = f"/p/demo/grade/{grading.id}"
    with reading() as session, pytest.raises(Conflict, match="sealed"):
        read_results(session, grading)
    assert client.get(f"{root}/results.json").status_code == 409
    assert client.get(f"{root}.csv").status_code == 409
    page = client.get(root).text
    assert "0 of 6 graded" in page and "zebra-arm" not in page
    assert client.post(f"{root}/close").status_code == 200
    after = client.get(root).text
    assert "0 of 6 graded" in after and "no figure" in after and "Win rate" not in after
    assert client.get(f"{root}/results.json").json()["compared"] == []
    assert client.post(f"{root}/close").status_code == 409


def test_one_unit_a_prompt_whatever_the_number_of_graders(project: Project, grading: Grading) -> None:
    with transaction() as session:
        people = [make_account(session, f"grader {i}").id for i in range(5)]
    for person in people[:4]:
        assert grade_for(grading, person, "dpo") == 6
    grade_for(grading, people[4], "base", n=3)
    with transaction() as session:
        grading = get(session, Grading, grading.id)
        assert count_graded(session, grading) == 6
        close_grading(session, grading)
        results = read_results(session, grading)
    (found,) = results.compared
    assert (found.wins.n, found.wins.n_clusters, results.n_people) == (27, 6, 5)
    assert found.wins.value == pytest.approx((3 * 0.8 + 3 * 1.0) / 6)
    assert found.wins.low < found.wins.value < found.wins.high or found.wins.high == 1.0
    alignment = {one.arm.method: one.alignment for one in results.graded}
    assert alignment["base"] is not None and 2 <= alignment["base"].value <= 4
    assert results.guess is None


def test_marks_are_checked_and_may_be_changed_until_the_end(grading: Grading) -> None:
    me = owner_id()
    with transaction() as session:
        item = next_item(session, grading, me)
        assert item is not None
        for wrong in (Marks("left"), Marks("up", 4, 2, "yes", "no"), Marks("left", 6, 2, "yes", "no"),
                      Marks("left", 4, 2, "maybe", "no")):  # fmt: skip
            with pytest.raises(Invalid):
                give_grade(session, item, grading, me, wrong)
        give_grade(session, item, grading, me, Marks("skip"))
        assert count_graded(session, grading) == 0
        give_grade(session, item, grading, me, marks("tie"))
        assert [row.choice for row in session.exec(select(Grade))] == ["tie"]
        assert count_graded(session, grading) == 1
        close_grading(session, get(session, Grading, grading.id))
        with pytest.raises(Conflict, match="closed"):
            give_grade(session, item, grading, me, marks("left"))


def test_the_same_press_many_times_at_once_is_one_grade(grading: Grading) -> None:
    me = owner_id()
    with reading() as session:
        item = next_item(session, grading, me)
    assert item is not None
    failures: list[BaseException] = []

    def press() -> None:
        try:
            with transaction() as session:
                give_grade(session, item, grading, me, marks("left"))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with reading() as session:
        assert len(session.exec(select(Grade)).all()) == 1


def test_guesses_end_a_part_and_print_with_chance(client: TestClient, grading: Grading) -> None:
    me = owner_id()
    grade_for(grading, me, "dpo")
    root = f"/p/demo/grade/{grading.id}"
    before = client.get(f"{root}/next")
    assert before.url.path == f"{root}/guess" and "DPO" not in before.text
    with transaction() as session, pytest.raises(Conflict, match="End your part first"):
        store_guesses(session, grading, me, {})
    page = client.post(f"{root}/end").text
    assert "by DPO" in page and "the untrained base" in page
    with reading() as session:
        questions = read_questions(session, grading, me)
    assert len(questions) == 6 and {one.asked for one in questions} == {"DPO"}
    assert len({one.is_left for one in questions}) == 2
    halfway = client.post(f"{root}/guess", data={questions[0].token: "left"})
    assert halfway.status_code == 422 and "5 of 6" not in halfway.text and halfway.text.count("Choose a side.") == 5
    right = {one.token: "left" if one.is_left else "right" for one in questions}
    right[questions[0].token] = "right" if questions[0].is_left else "left"
    assert client.post(f"{root}/guess", data=right).url.path == root
    with transaction() as session, pytest.raises(Conflict):
        store_guesses(session, grading, me, right)
    item = f"/p/demo/grade/item/{questions[0].token}"
    assert client.post(item, data={"choice": "left", **FULL}).status_code == 409
    client.post(f"{root}/close")
    guess = client.get(f"{root}/results.json").json()["guess"]
    assert guess["value"] == pytest.approx(5 / 6) and guess["chance"] == 0.5 and guess["n"] == 6
    assert "chance is 0.50" in client.get(root).text


def test_simulated_graders_are_marked(client: TestClient, project: Project, grading: Grading) -> None:
    with transaction() as session:
        robot, _ = make_person(session, project, "robot", "grader", is_simulated=True)
    grade_for(grading, robot.id, "tie")
    client.post(f"/p/demo/grade/{grading.id}/close")
    assert client.get(f"/p/demo/grade/{grading.id}/results.json").json()["is_simulated"] is True
    assert "badge-simulated" in client.get(f"/p/demo/grade/{grading.id}").text


def test_pages_take_grades_with_keys_and_say_what_is_missing(client: TestClient, grading: Grading) -> None:
    root = f"/p/demo/grade/{grading.id}"
    item = client.get(f"{root}/next")
    assert item.url.path.startswith("/p/demo/grade/item/")
    for key in "1234suqwertfghzxcvbjkl":
        assert f'data-key="{key}"' in item.text or key == "u"  # there is nothing to go back to yet
    missing = client.post(item.url.path, data={"choice": "left", "left_alignment": "3", "right_alignment": "9"})
    assert missing.status_code == 422 and "say yes, partly or no" in missing.text and "checked" in missing.text
    assert client.post(item.url.path, data={"choice": "left", "left_alignment": "x"}).status_code == 422
    after = client.post(item.url.path, data={"choice": "left", **FULL})
    assert after.url.path.startswith("/p/demo/grade/item/") and after.url.path != item.url.path
    assert f'href="{item.url.path}" data-key="u"' in after.text
    again = client.get(item.url.path).text
    assert again.count("checked") == 4
    table = client.get("/p/demo/grade.json").json()["rows"]
    assert [(row["graded"], row["planned_n"], row["state"]) for row in table] == [(1, 6, "open")]
    client.post(f"{root}/close")
    for fmt in ("json", "csv", "jsonl"):
        assert "zebra-arm-dpo" in client.get(f"{root}.{fmt}").text
    assert "Every grade" in client.get(root).text


def test_api_grades_blind(client: TestClient, grading: Grading) -> None:
    item = client.get(f"/api/v1/p/demo/grade/{grading.id}/next").json()
    assert item.keys() == {"token", "messages", "left", "right"}
    stored = client.post(f"/api/v1/p/demo/grade/{item['token']}", json={"choice": "right", **FULL}).json()
    assert stored["choice"] == "right" and stored["left_alignment"] == 4 and "id" not in stored
    assert client.post(f"/api/v1/p/demo/grade/{item['token']}", json={"choice": "right"}).status_code == 422
    assert client.post("/api/v1/p/demo/grade/none", json={"choice": "skip"}).status_code == 404


def test_another_projects_grading_is_not_found(client: TestClient, grading: Grading) -> None:
    with transaction() as session:
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        get(session, Grading, grading.id).project_id = other.id
        token = session.exec(select(GradeItem.token).order_by(col(GradeItem.id))).first()
    for path in (f"grade/{grading.id}", f"grade/{grading.id}/next", f"grade/item/{token}", f"grade/{grading.id}/guess"):
        assert client.get(f"/p/demo/{path}").status_code == 404


def test_graders_reach_nothing_but_their_work(client: TestClient, project: Project, grading: Grading) -> None:
    with transaction() as session:
        _, cookie = make_person(session, project, "grace", "grader")
    client.cookies.set(COOKIE, cookie)
    closed = ("runs", "checkpoints", "report", "pairs", "judge", "train", "prompts", "benchmarks", "settings",
              f"runs/{grading.run_id}", f"grade/{grading.id}/results.json", f"grade/{grading.id}.csv")  # fmt: skip
    for path in closed:
        assert client.get(f"/p/demo/{path}").status_code in {403, 404}, path
    assert client.post(f"/p/demo/grade/{grading.id}/close").status_code == 403
    assert client.get(f"/p/demo/grade/{grading.id}").status_code == 200
