"""The shipped experiment of critique and revision: every step refers to what the one before it made."""

from sqlmodel import select

from app.accounts.logins import make_account
from app.db import get, reading, transaction
from app.experiments.advance import advance_all
from app.experiments.board import experiment_as_json
from app.experiments.files import read_shipped
from app.experiments.models import Experiment
from app.experiments.start import start_experiment
from app.judging.models import Judge
from app.projects.projects import make_project
from app.revising.models import RevisionSet
from tests.experiments.test_advance import work_off


def test_red_team_revise_hand_over_and_best_of_in_one_file(sqlite_database: str) -> None:
    with transaction() as session:
        project = make_project(session, "lab", "Lab", make_account(session, "owner"))
        experiment = start_experiment(session, project.id, read_shipped("critique"), scale="small")
    for _ in range(40):
        advance_all()
        work_off()
        with reading() as session:
            shown = experiment_as_json(session, get(session, Experiment, experiment.id))
        if shown["status"] != "running":
            break
    assert {step["name"]: step["error"] for step in shown["steps"] if step["status"] != "done"} == {}
    with reading() as session:
        revisions = session.exec(select(RevisionSet)).one()
        assert revisions.n == 16 and revisions.pair_set_id is not None
        assert {judge.kind for judge in session.exec(select(Judge))} == {"imported", "reward"}
