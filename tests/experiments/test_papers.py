"""Studies as files: each runs whole at the scale tiny, offline, with the steps and arms of the full one."""

import html
import re
from typing import Any
from urllib.parse import parse_qs

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account, make_login
from app.accounts.models import Account
from app.checkpoints.models import Arm, Checkpoint
from app.db import get, reading, transaction
from app.errors import Invalid
from app.experiments.advance import advance_all
from app.experiments.board import experiment_as_json
from app.experiments.files import read_experiment, read_shipped
from app.experiments.models import Experiment
from app.experiments.start import start_experiment
from app.grading.models import Grading
from app.main import create_app
from app.projects.projects import make_project
from app.report.report import read_report
from app.report.teachers import lacks_teacher, read_teacher_lines
from app.runs.models import Run
from app.stats.teacher_critic import SAID
from tests.experiments.sawyer import check_sawyer
from tests.experiments.test_advance import work_off

GIVEN = {
    "ppo_vs_dpo": {"prompts": "p.jsonl", "scenarios": "s.jsonl", "endpoint": "judge"},
    "rounds": {"prompts": "p.jsonl", "endpoint": "judge"},
    "grid": {"prompts": "p.jsonl", "weak": "small", "strong": "large"},
    "sawyer": {"prompts": "dolly.jsonl", "endpoint": "judge"},
}

# Of each study: the reference's checkpoint, and how many arms stand on the frontier of KL to it. Then the arms whose
# samples were scored along training; nothing held out watches at this scale.
POINTS = {"ppo_vs_dpo": {1: 4}, "rounds": {1: 5}, "grid": {1: 7, 2: 7}, "sawyer": {2: 2}}
PATHS = {"ppo_vs_dpo": ["PPO"], "rounds": ["PPO"], "grid": [], "sawyer": ["PPO"]}


@pytest.mark.parametrize("name", GIVEN)
def test_the_tiny_scale_has_the_full_one_s_arms_and_needs_nothing(name: str) -> None:
    _, full = read_experiment(read_shipped(name), variables=GIVEN[name])
    _, tiny = read_experiment(read_shipped(name), scale="tiny")
    assert [step.arm for step in tiny if step.arm] == [step.arm for step in full if step.arm]
    assert {step.name for step in tiny} <= {step.name for step in full}
    with pytest.raises(Invalid, match="needs the variable"):
        read_experiment(read_shipped(name))


def test_ppo_versus_dpo_measures_what_was_not_trained_for() -> None:
    _, full = read_experiment(read_shipped("ppo_vs_dpo"), variables=GIVEN["ppo_vs_dpo"])
    assert {step.recipe["benchmark"] for step in full if step.recipe["kind"] == "benchmark"} == {
        "truthfulqa", "mmlu", "hellaswag", "pku_saferlhf", "strict_format",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_it_runs_offline_at_the_tiny_scale(sqlite_database: str, name: str) -> None:
    with transaction() as session:
        project = make_project(session, "lab", "Lab", make_account(session, "owner"))
        experiment = start_experiment(session, project.id, read_shipped(name), scale="tiny", seeds=[1])
    for _ in range(40):
        advance_all()
        work_off()
        with reading() as session:
            shown = experiment_as_json(session, get(session, Experiment, experiment.id))
        if shown["status"] != "running":
            break
    assert {step["name"]: step["error"] for step in shown["steps"] if step["status"] != "done"} == {}
    assert shown["status"] == "done"
    with transaction() as session:
        cookie = make_login(session, session.exec(select(Account)).one(), "session")
    with TestClient(create_app(), base_url="http://127.0.0.1", cookies={COOKIE: cookie}) as client:
        assert client.get("/p/lab/report/1").status_code == 200
        found = client.get("/p/lab/report/1.json").json()
        assert {one["recipe"]["reference"]: len(one["points"]) for one in found["frontiers"]} == POINTS[name]
        assert not any(one["left_out"] for one in found["frontiers"])
        assert [one["label"] for paths in found["paths"] for one in paths["paths"]] == PATHS[name]
        {"rounds": check_rounds, "grid": check_grid, "ppo_vs_dpo": check_in_context, "sawyer": check_sawyer}[name](
            client, found
        )


def check_in_context(client: TestClient, found: dict[str, Any]) -> None:
    """What was only told stands beside what was trained, on the same items."""
    (told,) = [one for one in found["arms"] if one["name"] == "in context"]
    assert (told["method"], told["start"], told["trained_on"]) == ("in_context", "base", "nothing: told in context")
    for benchmark in found["benchmarks"]:
        scores = {one["arm"]: one for one in benchmark["metrics"][0]["scores"]}
        assert set(scores) == {"base", "in context", "SFT", "DPO", "PPO"}
        assert scores["in context"]["difference"]["n"] == scores["DPO"]["difference"]["n"] == 12
        assert scores["base"]["difference"] is None
    assert "arm-in-context" in client.get("/p/lab/report/1").text
    with reading() as session:
        (grading,) = session.exec(select(Grading))
        arms = [get(session, Arm, key) for key in grading.arms]
    assert [arm.method for arm in arms] == ["base", "dpo", "ppo", "in_context"]
    assert len({str(arm.decoding) for arm in arms}) == 1  # sampled alike


def check_rounds(client: TestClient, found: dict[str, Any]) -> None:
    """The report tells what was new in each round, and a checkpoint's page leads to the next one, filled in."""
    rounds = {one["arm"]: one for one in found["rounds"]}
    assert {arm: len(one["rounds"]) for arm, one in rounds.items()} == {
        "DPO, round 1": 1, "DPO, round 2": 2, "DPO, one round, as many labels": 1, "PPO": 1,
    }  # fmt: skip
    assert [bool(one["fresh"]) for one in rounds.values()] == [False, False, False, True]
    first, second = rounds["DPO, round 2"]["rounds"]
    assert first == rounds["DPO, round 1"]["rounds"][0] and first["prompts"] == first["new_prompts"] == 30
    assert second["start"] == first["checkpoint"] and second["reference"] == first["start"] == first["reference"]
    assert first["is_own_samples"] and second["is_own_samples"] and 0 < second["new_prompts"] < second["prompts"] == 30
    page = client.get("/p/lab/report/1").text
    assert 'id="rounds"' in page and "then 32 fresh rollouts of its own" in page
    here = f"/p/lab/train/checkpoints/{second['checkpoint']}/rounds"
    assert f"{here}/line" in client.get(f"/p/lab/checkpoints/{second['checkpoint']}").text
    line = client.get(f"{here}/line").text
    assert "Round 2:" in line and here in line
    assert [one["round"] for one in client.get(f"{here}.json").json()["rounds"]] == [1, 2]
    follow_the_next_round(client, here, second)
    with reading() as session:
        reward = session.exec(select(Checkpoint).where(Checkpoint.role == "reward")).one()
    assert client.get(f"/p/lab/train/checkpoints/{reward.id}/rounds").status_code == 422


def follow_the_next_round(client: TestClient, here: str, second: dict[str, Any]) -> None:
    """Presses one form after another of round 3, as they are filled in, and trains it."""
    for label, kind in (("Sample pairs", "generate"), ("Judge", "judge"), ("Freeze", "snapshot")):
        press(client, here, label, kind)
    trained = press(client, here, "Train on, held to where the rounds began", "dpo")
    dpo = trained.recipe
    assert dpo["start"] == second["checkpoint"] and dpo["reference"] == second["reference"] and dpo["is_later_round"]
    assert dpo["lr"] == 2.0e-4 and dpo["max_length"] == 256
    with reading() as session:
        made = session.exec(select(Checkpoint).where(Checkpoint.run_id == trained.id)).one()
    rounds = client.get(f"/p/lab/train/checkpoints/{made.id}/rounds.json").json()["rounds"]
    assert [one["round"] for one in rounds] == [1, 2, 3] and made.name == "round 3"


def press(client: TestClient, here: str, label: str, kind: str) -> Run:
    """Opens the form that a button leads to, sends what it was filled in with, and does the run."""
    page = client.get(here).text
    address = re.search(r'href="([^"]+)">' + re.escape(label) + "<", page)
    assert address, page
    form = client.get(html.unescape(address[1])).text
    key = re.search(r'name="form_key" value="([^"]+)"', form)
    assert key
    sent = parse_qs(html.unescape(address[1]).partition("?")[2])
    done = client.post(f"/p/lab/new/{kind}", data={**sent, "form_key": key[1]})
    assert done.status_code == 200, done.text
    work_off()
    with reading() as session:
        run = session.exec(select(Run).order_by(col(Run.id).desc())).first()
    assert run is not None and run.kind == kind and run.status == "done", run and run.error
    return run


def check_grid(client: TestClient, found: dict[str, Any]) -> None:
    """Every family stands by its own base, and each arm with a critic beside SFT on that critic's completions."""
    lines = {(one["arm"], one["critic"]): one for one in found["teachers"]}
    assert len(lines) == 8
    for (arm, critic), one in lines.items():
        strength, family = arm.split()[2], arm.rpartition(", ")[2]
        assert one["teacher"] == f"SFT on {strength}, {family}" and critic == f"{strength} critic"
        assert one["start"] == f"SFT on {arm.split()[6].rstrip(',')}, {family}"
        assert one["reading"] in SAID and one["gain"]["n"] == one["over_teacher"]["n"] == 20
    facts = found["benchmarks"][0]["metrics"][0]["scores"]
    assert sum(one["difference"] is None for one in facts) == 2, "the two bases"
    assert not any("2402.12366" in one for one in found["limits"])
    with reading() as session:
        report = read_report(session, get(session, Experiment, 1))
        without = [arm for arm in report.arms if arm.method != "sft"]
        alone = read_teacher_lines(session, report.material, without, report.headline)
    assert {line.reading for line in alone} == {"not measured"} and not any(
        line.teacher or line.start for line in alone
    )
    assert [said.count("DPO by") for said in lacks_teacher(alone)] == [4, 4]
    assert 'id="teachers"' in client.get("/p/lab/report/1").text


def test_a_scale_replaces_a_recipe_by_naming_its_kind_and_leaves_a_step_out_by_null() -> None:
    text = """
name: x
scales: {tiny: {base: {kind: demo_base, steps: 2}, more: null}}
steps:
  - {name: base, recipe: {kind: import_checkpoint, source: a/b}}
  - {name: more, recipe: {kind: import_prompts, shipped: demo}}
"""
    assert [step.recipe["kind"] for step in read_experiment(text)[1]] == ["import_checkpoint", "import_prompts"]
    (only,) = read_experiment(text, scale="tiny")[1]
    assert only.recipe == {"kind": "demo_base", "steps": 2}
    with pytest.raises(Invalid, match="no earlier step “more”"):
        read_experiment(
            text + '  - {name: last, recipe: {kind: generate, prompt_set: "@more", checkpoint: "@base"}}\n',
            scale="tiny",
        )
