"""The loop on real material, small: skipped visibly where the real data is absent."""

from pathlib import Path

import pytest
from sqlmodel import select

from app.accounts.logins import make_account
from app.benchmarks.models import Score
from app.db import get, reading, transaction
from app.experiments.advance import advance_all
from app.experiments.board import experiment_as_json
from app.experiments.files import read_shipped
from app.experiments.models import Experiment
from app.experiments.start import start_experiment
from app.judging.models import Judge, VerdictSet
from app.projects.projects import make_project
from tests.experiments.test_advance import work_off


@pytest.mark.slow
def test_the_loop_holds_on_real_material(sqlite_database: str, shared_data: Path) -> None:
    with transaction() as session:
        project = make_project(session, "lab", "Lab", make_account(session, "owner"))
        experiment = start_experiment(
            session, project.id, read_shipped("real_small"), scale="small", variables={"shared_data": str(shared_data)}
        )
    for _ in range(40):
        advance_all()
        work_off()
        with reading() as session:
            shown = experiment_as_json(session, get(session, Experiment, experiment.id))
        if shown["status"] != "running":
            break
    assert {step["name"]: step["error"] for step in shown["steps"] if step["status"] != "done"} == {}
    assert shown["status"] == "done" and "http_verdicts" not in {step["name"] for step in shown["steps"]}
    with reading() as session:
        judges = {judge.name for judge in session.exec(select(Judge))}
        assert {"PKU-SafeRLHF safer", "PKU-SafeRLHF better", "hh-rlhf harmless"} <= judges
        for verdicts in session.exec(select(VerdictSet)):
            assert verdicts.n > 0 and verdicts.n_null <= verdicts.n / 2
        metrics = {score.metric for score in session.exec(select(Score))}
        assert {"acc", "mc1", "mc2"} <= metrics
