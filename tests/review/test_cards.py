"""Judge Cards in the pages: a form, its forecast, the card, the marks that link to it, the gate's form; and whose."""

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account
from app.constitutions.constitutions import ensure_shipped
from app.constitutions.models import Constitution
from app.db import get, reading, transaction
from app.judging.models import Judge, VerdictSet
from app.pairs.models import Pair
from app.projects.models import Project
from app.projects.projects import make_project
from app.review.cards import cards_of, deciding_card, read_people
from app.review.models import Answer, JudgeCard, Queue
from app.runs.models import Run
from tests.judging.rows import claim_next, do, made, make_pairs, read, start
from tests.review.rows import make_person
from worker.card import make_card
from worker.child import work
from worker.job import Job

FORMATTED = "Answer: it — Confidence: high — Reasoning: one. Two and three."
TEXTS = [(f"q {i}", FORMATTED, "No format. None.", None) for i in range(45)]
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def pairs(project: Project) -> int:
    with transaction() as session:
        return make_pairs(session, project.id, TEXTS).id


def rule(project: Project) -> int:
    return made(do(project.id, kind="new_judge", judge_kind="rule", answer_weight=0), "judge")


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_from_the_judges_page_to_the_card(client: TestClient, project: Project, pairs: int) -> None:
    judge = rule(project)
    mark = squeezed(client.get(f"/p/demo/judge/judges/{judge}/card").text)
    assert 'Judge Card: <span class="quiet">none.</span>' in mark and f"/p/demo/new/card?judge={judge}" in mark
    form = client.get(f"/p/demo/new/card?judge={judge}&pair_set={pairs}").text
    assert 'name="max_flip"' in form and "forecast/card" in form
    price = squeezed(client.get(f"/p/demo/forecast/card?judge={judge}&pair_set={pairs}&n=40&n_own=45").text)
    assert "45 own pairs, 45 readings, and up to 160 for the probes. It costs no money." in price
    assert "Choose a judge" in client.get("/p/demo/forecast/card").text
    sent = {"judge": judge, "pair_set": pairs, "n": 40, "n_own": 45, "max_longer": 1, "form_key": "k"}
    page = client.post("/p/demo/new/card", data=sent)
    assert page.status_code == 200 and "/p/demo/runs/" in str(page.url)
    run = claim_next()
    assert "being made of your own pairs" in client.get(f"/p/demo/runs/{run.id}/panel/card").text
    unfinished = client.get("/p/demo/judge/cards").text
    assert "No Judge Card yet" in unfinished
    work(run.id, run.attempt)
    card_id = made(read(Run, run.id), "judge_card")
    shown = client.get(f"/p/demo/runs/{run.id}").text
    assert f'href="/p/demo/judge/cards/{card_id}"' in shown and "panel/card" in shown
    panel = squeezed(client.get(f"/p/demo/runs/{run.id}/panel/card").text)
    assert "badge-passed" in panel and "Position flips" in panel and "hx-get" not in panel
    card = squeezed(client.get(f"/p/demo/judge/cards/{card_id}").text)
    for said in (
        "badge-passed", "Every limit is kept", "Position flips", "there is no order to be swayed by",
        "Identical sides tie", "no figure", "at least 0.9", "A completion with an attack text after it",
        "Audit a set of verdicts",
    ):  # fmt: skip
        assert said in card, said
    assert f"/p/demo/judge/{read(JudgeCard, card_id).protocol['verdict_set']}" in card
    assert "passed" in client.get("/p/demo/judge/cards?state=passed").text
    assert "Nothing fits these filters" in client.get("/p/demo/judge/cards?state=failed").text
    assert client.get("/p/demo/judge/cards.json").json()["rows"][0]["state"] == "passed"
    assert "twin" in client.get("/p/demo/judge/cards.csv").text
    api = client.get(f"/api/v1/p/demo/judge/cards/{card_id}").json()
    assert api["state"] == "passed" and len(api["lines"]) == 11
    mark = squeezed(client.get(f"/p/demo/judge/judges/{judge}/card?pair_set={pairs}").text)
    assert "badge-passed" in mark and f"judge/cards/{card_id}" in mark and f"pair_set={pairs}" in mark
    with transaction() as session:
        ensure_shipped(session, project.id)
        other = session.exec(select(Constitution)).first()
        assert other is not None
        session.add(JudgeCard(project_id=project.id, judge_id=judge, pair_set_id=pairs, constitution_id=other.id,
                              n=10, lines=[{"is_gated": False}]))  # fmt: skip
    mark = squeezed(client.get(f"/p/demo/judge/judges/{judge}/card").text)
    assert "badge-undecided" in mark and f"by {other.name}, version 1" in mark and "All 2 of this judge" in mark
    mark = squeezed(client.get(f"/p/demo/judge/judges/{judge}/card?pair_set={pairs}").text)
    assert "badge-passed" in mark  # by no constitution, as these verdicts are
    # the probes stay out of sight
    assert "probes" not in client.get("/p/demo/pairs").text and "probes" not in client.get("/p/demo/judge").text
    assert "always ready to help" not in client.get("/p/demo/pairs/completions?ended=imported").text
    counts = {one["id"] for one in client.get("/p/demo/pairs.json").json()["rows"]}
    assert counts == {pairs}


@SQLITE
def test_a_run_s_page_counts_the_probes_while_they_are_judged(client: TestClient, project: Project, pairs: int) -> None:
    judge = rule(project)
    run = start(project.id, kind="card", judge=judge, pair_set=pairs, n=40, n_own=45)
    panels: list[str] = []

    class Watched(Job):
        def progress(self, done: int, total: int, note: str = "") -> None:
            super().progress(done, total, note)
            panels.append(squeezed(client.get(f"/p/demo/runs/{run.id}/panel/card").text))

    make_card(Watched(run.id, run.attempt))
    first, *_, last = [panel for panel in panels if "Probes so far" in panel]
    for panel in (first, last):
        assert "hx-get" in panel and "Your own pairs, as they are" in panel and "Persuaded by an injected text" in panel
    assert "45 of 45" in last and '40 <span class="quiet small">ties</span>' in last
    assert '0 <span class="quiet small">flips</span>' in last
    assert "no figure" in client.get(f"/p/demo/runs/{run.id}/panel/card").text  # the lines, once all are judged


@SQLITE
def test_a_failed_card_says_so_wherever_its_labels_are_used(client: TestClient, project: Project, pairs: int) -> None:
    judge = rule(project)
    verdicts = made(do(project.id, kind="judge", judge=judge, pair_set=pairs), "verdict_set")
    run = do(project.id, kind="card", judge=judge, pair_set=pairs, n=40, n_own=45)  # longer by its format: 1.0
    card_id = made(run, "judge_card")
    card = squeezed(client.get(f"/p/demo/judge/cards/{card_id}").text)
    assert "badge-failed" in card and "It broke a limit: prefers the longer side, beyond people 0.50" in card
    mark = squeezed(client.get(f"/p/demo/judge/judges/{judge}/card").text)
    assert "badge-failed" in mark and "prefers the longer side" in mark
    refused = client.post("/p/demo/new/snapshot", data={"verdict_set": verdicts, "waiver": "no"})
    assert refused.status_code == 422 and f"failed its card {card_id}: say why" in refused.text
    assert 'aria-invalid="true"' in refused.text and "no</textarea>" in refused.text  # what was typed is kept
    sent = client.post("/p/demo/new/snapshot", data={"verdict_set": verdicts, "waiver": "A study of length."})
    assert sent.status_code == 200 and "/runs/" in str(sent.url)
    freezing = claim_next()
    work(freezing.id, freezing.attempt)
    snapshot = made(read(Run, freezing.id), "snapshot")
    page = client.get(f"/p/demo/train/snapshots/{snapshot}").text
    assert "A study of length." in page and "Judge Card" in page
    again = client.post("/api/v1/p/demo/runs", json={"kind": "snapshot", "verdict_set": verdicts})
    assert again.status_code == 422 and list(again.json()["fields"]) == ["waiver"]
    probes = read(JudgeCard, card_id).protocol["verdict_set"]
    hidden = client.post("/api/v1/p/demo/runs", json={"kind": "snapshot", "verdict_set": probes})
    assert hidden.status_code == 422 and "put away" in hidden.json()["error"]


@SQLITE
def test_cards_stay_in_their_project(client: TestClient, project: Project, pairs: int) -> None:
    with transaction() as session:
        stranger = make_project(session, "other", "Other", make_account(session, "stranger", "correct horse"))
        judge = Judge(project_id=stranger.id, name="theirs", kind="rule")
        session.add(judge)
        session.flush()
        card = JudgeCard(project_id=stranger.id, judge_id=judge.id, pair_set_id=pairs)
        session.add(card)
        session.flush()
        theirs, their_judge = card.id, judge.id
        _, cookie = make_person(session, get(session, Project, project.id), "grader", "grader")
    for url in (f"/p/demo/judge/cards/{theirs}", f"/api/v1/p/demo/judge/cards/{theirs}", "/p/demo/judge/cards/99",
                f"/p/demo/judge/judges/{their_judge}/card"):  # fmt: skip
        assert client.get(url).status_code == 404, url
    foreign = client.get(f"/p/demo/forecast/card?judge={their_judge}&pair_set={pairs}")
    assert foreign.status_code == 422
    client.cookies.set(COOKIE, cookie)
    assert client.get("/p/demo/judge/cards").status_code == 403  # a grader sees no page that names a model


@SQLITE
def test_an_audit_of_other_pairs_is_refused(client: TestClient, project: Project, pairs: int) -> None:
    judge = rule(project)
    with transaction() as session:
        other = make_pairs(session, project.id, TEXTS[:2]).id
    verdicts = made(do(project.id, kind="judge", judge=judge, pair_set=other), "verdict_set")
    queue = made(do(project.id, kind="audit", verdict_set=verdicts, n=2), "queue")
    sent = client.post("/p/demo/new/card", data={"judge": judge, "pair_set": pairs, "audit": queue})
    assert sent.status_code == 422 and "not of the chosen pairs" in sent.text


def test_people_of_several_audits_are_heard_and_an_even_split_is_not(project: Project, pairs: int) -> None:
    verdicts = made(do(project.id, kind="judge", judge=rule(project), pair_set=pairs), "verdict_set")
    with transaction() as session:
        found = session.exec(select(Pair.id).where(Pair.pair_set_id == pairs).order_by(Pair.position)).all()  # type: ignore[arg-type]
        people = [make_account(session, f"person {i}", is_simulated=i == 2).id for i in range(3)]
        for queue_kind, said in (
            ("audit", {0: ["a", "a", "b"], 1: ["a", "b"], 2: ["both_bad", "tie"], 3: ["skip"]}),
            ("repair", {4: ["a"]}),
            ("audit", {5: ["b"]}),
        ):
            queue = Queue(project_id=project.id, name="q", kind=queue_kind, verdict_set_id=verdicts)
            session.add(queue)
            session.flush()
            for position, choices in said.items():
                for place, choice in enumerate(choices):
                    session.add(Answer(queue_id=queue.id, pair_id=found[position], place=place, first=choice,
                                       account_id=people[place]))  # fmt: skip
        first = session.exec(select(Queue.id)).first()
    with reading() as session:
        everyone = read_people(session, pairs)
        assert everyone.labels == {found[0]: "a", found[2]: "tie", found[5]: "b"} and everyone.is_simulated
        assert read_people(session, pairs, first).labels == {found[0]: "a", found[2]: "tie"}


@SQLITE
def test_the_newest_card_that_decided_decides(project: Project, pairs: int) -> None:
    judge = rule(project)
    with transaction() as session:
        for n, is_passed in ((10, False), (10, True), (10, None), (0, None)):
            session.add(JudgeCard(project_id=project.id, judge_id=judge, pair_set_id=pairs, n=n, is_passed=is_passed,
                                  lines=[{}] if n else []))  # fmt: skip
            session.flush()
    with reading() as session:
        assert [card.is_passed for card in cards_of(session, judge, None)] == [None, True, False]
        found = deciding_card(session, judge, None)
        assert found is not None and found.is_passed is True
        assert deciding_card(session, judge, 1) is None
    assert read(VerdictSet, made(do(project.id, kind="judge", judge=judge, pair_set=pairs), "verdict_set")).n == 45
