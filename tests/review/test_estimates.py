"""An audit in detail and its estimates, and the scores of a scoring queue: real answers, figures worked out again."""

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.checkpoints.models import Arm
from app.db import get, reading, transaction
from app.judging.deciding import decide
from app.judging.models import Judge, Opinion, Rating, RatingSet, Verdict, VerdictSet
from app.judging.protocol import Protocol, Seat
from app.judging.verdicts import OpinionValue
from app.pairs.models import Completion, Pair
from app.projects.models import Project
from app.prompts.models import Prompt
from app.review.agreement import read_agreement
from app.review.agreement_details import read_details, read_score_lines
from app.review.estimates import read_estimates
from app.review.models import Answer, Mark, Queue
from app.stats.agreement import krippendorff_alpha
from app.stats.ppi import estimate_rate
from tests.review.rows import make_pairs, make_person, make_run, make_verdicts

N, AUDITED = 120, 60


@pytest.fixture
def audit(project: Project) -> Queue:
    """120 pairs of two arms; the verdicts go a, b, a, a; 60 audited by two people, who differ on each tenth pair."""
    with transaction() as session:
        pairs = make_pairs(session, project, N)
        verdicts = make_verdicts(session, project, pairs, ["a", "b", "a", "a"])
        people = [make_person(session, project, name, "grader")[0] for name in ("ann", "bob")]
        other = Arm(project_id=project.id, name="OTHER", kind="imported", sha256="1" * 64)
        session.add(other)
        session.flush()
        queue = Queue(
            project_id=project.id, name="an audit", verdict_set_id=verdicts.id, kind="audit", n=AUDITED, overlap=2,
            run_id=make_run(session, project, "audit").id,
        )  # fmt: skip
        session.add(queue)
        session.flush()
        in_order = session.exec(select(Pair).where(Pair.pair_set_id == pairs.id).order_by(col(Pair.position))).all()
        for i, pair in enumerate(in_order):
            b = get(session, Completion, pair.b_id)
            b.arm_id, b.text = other.id, b.text + ("!" if i % 3 else "")
            get(session, Prompt, pair.prompt_id).category = "even" if i % 2 == 0 else "odd"
            if i < AUDITED:
                own = session.exec(select(Verdict.outcome).where(Verdict.pair_id == pair.id)).one()
                for place, person in enumerate(people):
                    said = "both_bad" if i % 10 == place == 0 else own
                    session.add(Answer(queue_id=queue.id, pair_id=pair.id, place=place, position=i,
                                       account_id=person.id, first=said))  # fmt: skip
        return queue


def test_details_are_what_the_rows_say(audit: Queue) -> None:
    with reading() as session:
        found = read_details(session, audit)
    assert found is not None
    assert found.between_people and (found.between_people.value, found.between_people.n) == (0.9, 60)
    assert found.kappa_all and found.kappa_all.n == 120 and 0.8 < found.kappa_all.value < 1
    assert found.decided and found.decided.value == 1.0 and found.decided.n == 114
    assert [name for name, _ in found.by_category] == ["even", "odd"]
    assert found.by_category[0][1].all_items.value == pytest.approx(54 / 60)
    assert found.by_principle == [] and found.by_judge == []
    assert found.judge_prefers_longer and found.judge_prefers_longer.n == 40, "a third of the pairs are equally long"
    assert found.judge_prefers_longer.value == pytest.approx(1 / 4, abs=0.03)


def test_principles_and_judges_of_a_panel_have_their_own_lines(audit: Queue, project: Project) -> None:
    with transaction() as session:
        verdicts = session.exec(select(Verdict).where(Verdict.verdict_set_id == audit.verdict_set_id)).all()
        judge = Judge(project_id=project.id, name="a second rule", kind="rule")
        session.add(judge)
        session.flush()
        first = session.exec(select(Judge.id).where(Judge.name == "a rule")).one()
        seats = (Seat(first, "rule"), Seat(judge.id, "endpoint", n_votes=5))
        panel = Protocol(seats, "majority")
        for verdict in verdicts:
            verdict.by_principle = {"true": verdict.outcome or "tie", "short": "tie"}
            votes = [OpinionValue(False, said, sample=n, judge_id=judge.id) for n, said in enumerate("bbabb")]
            own = OpinionValue(False, verdict.outcome, reason="unread", judge_id=first)
            verdict.votes = decide(panel, [own, *votes]).votes  # one vote against four is no tie
    with reading() as session:
        found = read_details(session, audit)
    assert found is not None
    by_principle = {name: lines.all_items.value for name, lines in found.by_principle}
    assert by_principle == {"short": pytest.approx(6 / 120), "true": pytest.approx(114 / 120)}
    by_judge = {name: lines.all_items.value for name, lines in found.by_judge}
    assert by_judge["a rule"] == pytest.approx(114 / 120) and by_judge["a second rule"] == pytest.approx(30 / 120)


def test_verdicts_that_came_later_change_what_an_audit_says(audit: Queue) -> None:
    """A judging that failed, then was taken up again: nobody has answered meanwhile."""
    with reading() as session:
        before = read_estimates(session, audit).lines[0].estimate, read_agreement(session, audit).confusion
    with transaction() as session:
        verdicts = session.exec(select(Verdict).order_by(col(Verdict.pair_id))).all()
        verdicts[0].outcome, verdicts[-1].outcome = "tie", "tie"
        made = get(session, VerdictSet, verdicts[0].verdict_set_id)
        made.n_a, made.n_tie = made.n_a - 2, made.n_tie + 2
    with reading() as session:
        after = read_estimates(session, audit).lines[0].estimate, read_agreement(session, audit).confusion
    assert before[0].judge == 0 and after[0].judge == pytest.approx(2 / N)
    assert before[1][2][2] == 0 and after[1][2][2] == 1


def test_estimates_are_the_plain_functions(audit: Queue) -> None:
    with reading() as session:
        found = read_estimates(session, audit)
    assert found.n_audited == AUDITED
    tie, win = found.lines
    assert tie.name == "tie" and tie.estimate.people.value == pytest.approx(3 / 60)
    assert win.name == "win rate of ARM-OF-PAIRS over OTHER"
    verdict = [{0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0}[i % 4] for i in range(N)]
    people = [(0.5 + verdict[i]) / 2 if i % 10 == 0 else verdict[i] for i in range(AUDITED)]
    wanted = estimate_rate(people, verdict[:AUDITED], range(AUDITED), verdict[AUDITED:], range(AUDITED, N))
    assert win.estimate == wanted and win.estimate.is_combined and win.estimate.n_others == 60
    assert win.estimate.n_saved > 20


def test_the_page_tells_them(client: TestClient, audit: Queue, project: Project) -> None:
    url = f"/p/{project.slug}/review/{audit.id}"
    assert f'hx-get="{url}/estimates"' in client.get(url).text
    page = client.get(f"{url}/estimates")
    for words in (
        "your judge saved you",
        "win rate of ARM-OF-PAIRS over OTHER",
        "Two people on one pair",
        "By category",
    ):
        assert words in page.text, words
    assert "<html" not in client.get(f"{url}/estimates", headers={"HX-Request": "true"}).text
    with transaction() as session:
        get(session, Queue, audit.id).kind = "repair"
    assert client.get(f"{url}/estimates").status_code == 404


def test_few_answers_estimate_nothing(client: TestClient, audit: Queue, project: Project) -> None:
    with transaction() as session:
        for answer in session.exec(select(Answer).where(col(Answer.position) >= 5)):
            session.delete(answer)
    assert "5 of at least 10 pairs are audited" in client.get(f"/p/{project.slug}/review/{audit.id}/estimates").text


def test_scores_of_people_and_judge(client: TestClient, audit: Queue, project: Project) -> None:
    with transaction() as session:
        completions = session.exec(select(Completion).order_by(col(Completion.id)).limit(12)).all()
        judge_id = session.exec(select(Opinion.judge_id)).first() or 0
        ratings = RatingSet(project_id=project.id, name="ratings", judge_id=judge_id)
        session.add(ratings)
        session.flush()
        queue = Queue(project_id=project.id, name="scores", rating_set_id=ratings.id, kind="scoring", n=12)
        session.add(queue)
        session.flush()
        account = session.exec(select(Answer.account_id)).first()
        for i, completion in enumerate(completions):
            session.add(Rating(rating_set_id=ratings.id, completion_id=completion.id, judge_id=judge_id,
                               value=float(1 + i % 10) if i else None, reason="" if i else "no number"))  # fmt: skip
            session.add(Mark(queue_id=queue.id, completion_id=completion.id, position=i, account_id=account,
                             scores={"": float(min(10, 2 + i % 10))}, answered_at=audit.created_at))  # fmt: skip
    with reading() as session:
        (line,) = read_score_lines(session, queue)
    assert line.principle == "" and line.n_unreadable == 1 and line.agreement.n == 11
    assert line.agreement.mae and line.agreement.mae.value == pytest.approx(10 / 11)
    assert line.agreement.pearson and line.agreement.pearson.value > 0.98 and line.alpha is not None
    assert line.people_alpha is None, "nobody scored what another did"
    with transaction() as session:
        second = make_person(session, project, "eve", "grader")[0].id
        for i, completion in enumerate(completions[:5]):
            session.add(Mark(queue_id=queue.id, completion_id=completion.id, place=1, position=i, account_id=second,
                             scores={"": 3.0}, answered_at=audit.created_at))  # fmt: skip
    with reading() as session:
        (line,) = read_score_lines(session, queue)
    wanted = krippendorff_alpha([[2, 3, 4, 5, 6], [3] * 5], "interval")
    assert line.people_alpha and line.people_alpha.n == 5 and line.people_alpha.value == pytest.approx(wanted)
    assert "overall" in client.get(f"/p/{project.slug}/review/{queue.id}/estimates").text
