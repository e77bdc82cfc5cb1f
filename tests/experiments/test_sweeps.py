"""Sweeps: equal trials, selection on dev alone, from the form to the report."""

import csv
import hashlib
import io

import numpy as np
import pytest
import yaml
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.db import get, reading, transaction
from app.errors import Invalid
from app.experiments.files import read_experiment
from app.experiments.frontier import Point, compare_paths
from app.experiments.models import Experiment
from app.experiments.start import start_experiment
from app.experiments.sweep_routes import read_values
from app.experiments.sweeps import SweepPlan, Trial, read_sweep, select_best, write_sweep
from app.projects.models import Project
from app.prompts.demo_corpus import list_prompts
from app.prompts.models import Prompt, PromptSet
from app.report.report import read_report
from app.runs.models import Run, RunIo, Sampled
from app.runs.queue import claim
from app.training.measured import Measured
from tests.worker.test_training_runs import OFFLINE, TINY_BASE, made, run, write_snapshot
from worker.child import work

DPO = {"kind": "dpo", "start": 1, "reference": 1, "snapshot": 1, **OFFLINE, "max_steps": 2, "sample_every": 99}
SFT = {"kind": "sft", "start": 1, "snapshot": 1, **OFFLINE, "max_steps": 2, "sample_every": 99}

ONE_DATABASE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # nothing here depends on which


def plan(*methods: tuple[int, dict[str, list[object]]], **more: object) -> SweepPlan:
    given = [{"run": key, "values": values} for key, values in methods]
    return SweepPlan.model_validate({"methods": given, "prompt_set": 1, "quality": "rule", **more})


@pytest.fixture
def templates(client: TestClient) -> TestClient:
    """Run 1 is an SFT's, run 2 a DPO's, run 3 a DPO's from another start."""
    with transaction() as session:
        project = session.exec(select(Project)).one()
        for recipe in (SFT, DPO, {**DPO, "start": 2, "reference": 2}):
            session.add(Run(project_id=project.id, kind=str(recipe["kind"]), queue="gpu", recipe=recipe,
                            recipe_sha256="0", status="done"))  # fmt: skip
    return client


@ONE_DATABASE
def test_every_combination_is_a_trial_with_its_measurement_on_dev(templates: TestClient) -> None:
    with reading() as session:
        text = write_sweep(session, 1, plan((1, {"lr": [1e-3, 1e-4]}), (2, {"beta": [0.1, 0.2]}), seeds=[1, 2]))
    read, steps = read_experiment(text)
    assert [(step.name, step.arm) for step in steps[:4]] == [
        ("sft_1_1", "sft: lr 0.001"), ("sft_1_1_dev", ""), ("sft_1_2", "sft: lr 0.0001"), ("sft_1_2_dev", ""),
    ]  # fmt: skip
    assert read.seeds == [1, 2] and len(steps) == 8
    by_name = {step.name: step for step in steps}
    assert by_name["dpo_2_2"].recipe["beta"] == 0.2 and by_name["dpo_2_2"].recipe["lr"] == OFFLINE["lr"]
    measuring = by_name["dpo_2_2_dev"].recipe
    assert (measuring["checkpoint"], measuring["reference"], measuring["kind"]) == ("@dpo_2_2", 1, "measure")


@ONE_DATABASE
@pytest.mark.parametrize(
    ("wrong", "said", "field"),
    [
        (plan((1, {"lr": [1e-3, 1e-4]}), (2, {"beta": [0.1]})), "equally many trials: sft 2, dpo 1", "values_1"),
        (plan((1, {"beta": [0.1]})), "no field “beta”", "values_0"),
        (plan((1, {"start": [1, 2]})), "no field “start”", "values_0"),
        (plan((2, {"lr": [1], "beta": [1], "epochs": [1], "loss": ["ipo"]})), "one to 3 fields", "values_0"),
        (plan((2, {"beta": [-1]})), "beta", "values_0"),
        (plan((2, {"beta": [0.1, 0.1]})), "each once", "values_0"),
        (plan((1, {"lr": [1]}), (3, {"lr": [1]})), "start from different checkpoints", "run_0"),
        (
            plan((2, {name: list(range(1, 3001)) for name in ("lr", "beta", "epochs")})),
            "27,000,000,000 trials",
            "values_0",
        ),
        (plan((99, {"lr": [1]})), "Run 99 is no training run", "run_0"),
        (plan((2, {"beta": [0.1]}), quality="reward"), "held-out reward model", "reward"),
    ],
)
def test_what_would_not_be_fair_is_refused(templates: TestClient, wrong: SweepPlan, said: str, field: str) -> None:
    with reading() as session, pytest.raises(Invalid, match=said) as refused:
        write_sweep(session, 1, wrong)
    assert field in refused.value.fields


RUN = Run(project_id=1, kind="measure", queue="gpu", recipe={"quality": "reward"}, recipe_sha256="0")


def trial(step: str, method: str, *qualities: float, n_seeds: int = 1) -> Trial:
    measured = [
        Measured(RUN, np.ones(2), np.ones(2), np.array([one, one + 0.2]), np.array([0, 1])) for one in qualities
    ]
    seeds = list(range(1, len(measured) + 1))
    return Trial(step, method, "dpo", step, [1], ["done"], measured, n_seeds, run_seeds=[1], seeds=seeds)


@ONE_DATABASE
def test_the_file_of_a_sweep_written_by_hand_has_a_line_a_seed_and_no_formula(client: TestClient) -> None:
    text = """\
name: by hand
seeds: [1, 2]
steps:
  - {name: base, shared: true, recipe: {kind: demo_base}}
  - {name: a, shared: true, arm: "=dpo: lr 1", recipe: {kind: demo_base, seed: 8}}
  - {name: b, arm: "=dpo: lr 2", recipe: {kind: demo_base, seed: 9}}
  - {name: a_dev, recipe: {kind: measure, checkpoint: "@a", reference: "@base", prompt_set: 1, quality: rule}}
  - {name: b_dev, recipe: {kind: measure, checkpoint: "@b", reference: "@base", prompt_set: 1, quality: rule}}
"""
    with transaction() as session:
        key = start_experiment(session, session.exec(select(Project.id)).one(), text).id
    answer = client.get(f"/p/demo/experiments/{key}/trials.csv")
    assert answer.status_code == 200 and answer.headers["content-disposition"].endswith(f'"trials-{key}.csv"')
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["trial"], row["seed"], row["method"]) for row in rows] == [
        ("lr 1", "0", "'=dpo"), ("lr 2", "1", "'=dpo"), ("lr 2", "2", "'=dpo"),
    ]  # fmt: skip
    assert client.get(f"/p/demo/experiments/{key}/trials").status_code == 200


def test_the_best_by_dev_is_selected_once_a_method_and_only_among_whole_trials() -> None:
    trials = select_best([
        trial("a", "dpo", -0.5), trial("b", "dpo", -0.1), trial("c", "dpo", -0.1),
        trial("d", "ppo", 0.9, n_seeds=2), trial("e", "ppo", 0.1, 0.3, n_seeds=2), trial("f", "sft"),
    ])  # fmt: skip
    assert [one.step for one in trials if one.is_selected] == ["b", "e"]
    assert trials[4].quality == pytest.approx(0.3)  # means 0.2 and 0.4


def test_lines_of_the_form_become_values() -> None:
    found = read_values("lr = 1e-5, 1\n is_soft=true\nloss = ipo, hinge", "values_0")
    assert found == {"lr": [1e-5, 1], "is_soft": [True], "loss": ["ipo", "hinge"]}
    for wrong in ("lr", "lr = 1\nlr = 2"):
        with pytest.raises(Invalid):
            read_values(wrong, "values_0")


def test_paths_at_matched_kl_and_without_overlap() -> None:
    def point(path: str, kl: float, quality: float) -> Point:
        measured = Measured(RUN, np.full(2, kl), np.full(2, kl),
                            np.array([quality, quality + 0.2]), np.array([0, 1]))  # fmt: skip
        return Point(path, path, path, measured)

    found = compare_paths([point("dpo", 1, 0.2), point("dpo", 3, 0.6), point("ppo", 2, 0.1), point("sft", 9, 0.0)])
    matched = {(one.a, one.b): one.found for one in found}
    assert matched["dpo", "ppo"].kl == 2.0
    assert matched["dpo", "ppo"].difference is not None
    assert matched["dpo", "ppo"].difference.value == pytest.approx(0.3)  # 0.4 on the line, less 0.1
    assert matched["dpo", "sft"].kl is None and matched["ppo", "sft"].kl is None


def make_ground(project: Project) -> None:
    """A tiny base (checkpoint 1), prompts of every split (set 1), preferences (snapshot 1) and a DPO run."""
    base = made(run(project, TINY_BASE))
    with transaction() as session:
        prompts = PromptSet(project_id=project.id, name="demo", state="ready")
        session.add(prompts)
        session.flush()
        for place, row in enumerate(list_prompts()):
            digest = hashlib.sha256(str(row).encode()).hexdigest()
            given = {k: row[k] for k in ("messages", "reference", "split")}
            session.add(Prompt(set_id=prompts.id, position=place, grp=row["group"], sha256=digest, **given))
        snapshot = write_snapshot(session, project, prompts.id)
        session.flush()
        assert (base.id, prompts.id, snapshot.id) == (1, 1, 1)
        session.add(Run(project_id=project.id, kind="dpo", queue="gpu", recipe=DPO, recipe_sha256="0", status="done"))


def test_a_sweep_from_the_form_to_the_report_and_test_is_never_read(client: TestClient) -> None:
    from app.experiments.advance import advance_all

    with reading() as session:
        project = session.exec(select(Project)).one()
    make_ground(project)
    assert "Recipe of the run" in client.get("/p/demo/experiments/sweep?run=2").text
    form = {"name": "Which beta", "run_0": "2", "values_0": "lr = 1e-4, 2e-3", "seeds": "1", "prompt_set": "1",
            "quality": "rule", "n_prompts": "6", "samples": "1", "max_new_tokens": "8", "form_key": "k"}  # fmt: skip
    refused = client.post("/p/demo/experiments/sweep", data=form | {"values_0": "lr"})
    assert refused.status_code == 422 and "one field a line" in refused.text and "Which beta" in refused.text
    sent = [client.post("/p/demo/experiments/sweep", data=form, follow_redirects=False) for _ in range(2)]
    assert {one.status_code for one in sent} == {303} and len({one.headers["location"] for one in sent}) == 1
    page = sent[0].headers["location"]
    assert "none of 2 trials has been measured yet" in client.get(page).text
    for _ in range(20):
        advance_all()
        with transaction() as session:
            claimed = claim(session, ["gpu", "cpu", "io"], "test", None)
        if claimed is not None:
            assert work(claimed.id, claimed.attempt) == "done"
    with reading() as session:
        experiment = session.exec(select(Experiment)).one()
        assert experiment.status == "done"
        sweep = read_sweep(session, experiment)
        assert sweep is not None and sweep.is_equal and len(sweep.trials) == 2
        best = max(sweep.trials, key=lambda one: one.quality or 0)
        assert sweep.selected("dpo") == best or best.quality == sweep.trials[0].quality
        measured = [one.run.id for trial in sweep.trials for one in trial.measured]
        rows = session.exec(select(Sampled).where(col(Sampled.run_id).in_(measured))).all()
        assert {get(session, Prompt, int(row.detail["prompt"])).split for row in rows} == {"dev"}
        read = session.exec(select(RunIo.noun).where(col(RunIo.run_id).in_(measured), ~col(RunIo.is_output))).all()
        assert set(read) == {"checkpoint", "prompt_set"}  # no benchmark, no score
        report = read_report(session, experiment)
        assert len(report.fronts.frontiers[0].points) == 2 and not report.fronts.unmeasured
    done = client.get(page)
    assert "is the best of 2 trials by dev" in done.text and "badge-selected" in done.text
    assert client.get(page + "/table").status_code == 200
    lines = list(csv.DictReader(io.StringIO(client.get(page + ".csv").text)))
    assert [line["trial"] for line in lines] == ["lr 0.0001", "lr 0.002"]
    assert sorted(line["selected"] for line in lines) == ["False", "True"] and all(line["kl"] for line in lines)
    shown = client.get(page.replace("/trials", ""))
    assert page in shown.text
    printed = client.get("/p/demo/report/1")
    assert printed.status_code == 200 and "is the best of 2 trials by dev" in printed.text
    assert len(client.get("/p/demo/report/1.json").json()["frontiers"][0]["points"]) == 2
    assert client.get("/p/demo/train/checkpoints/2/budget").text.count("<tr>") > 3
    body = {"methods": [{"run": 2, "values": {"beta": [0.1, 0.3]}}], "prompt_set": 1, "quality": "rule"}
    made_here = client.post("/api/v1/p/demo/sweeps", json=body)
    assert made_here.status_code == 201 and made_here.json()["n_steps"] == 4
    assert client.get("/p/demo/experiments/1/trials.json").json()["is_equal"] is True
    advance_all()
    assert client.post("/p/demo/experiments/2/cancel").status_code == 200
    over = client.get("/p/demo/experiments/2/trials").text
    assert "dpo: none of 2 trials has been measured yet (2 cancelled)" in over and "badge-failed" not in over
    board = client.get("/p/demo/experiments/2").text
    assert "The experiment was cancelled before this step began." in board and "Go on with the rest" in board
    limits = client.get("/p/demo/report/2.json").json()["limits"]
    assert [line.partition(",")[0] for line in limits[:2]] == ["These steps were cancelled", "These steps were skipped"]
    assert yaml.safe_load(experiment.file)["name"] == "Which beta"
