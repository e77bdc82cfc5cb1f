"""Studies as files: each runs whole at the scale tiny, offline, with the steps and arms of the full one."""

import pytest

from app.accounts.logins import make_account
from app.db import get, reading, transaction
from app.errors import Invalid
from app.experiments.advance import advance_all
from app.experiments.board import experiment_as_json
from app.experiments.files import read_experiment, read_shipped
from app.experiments.models import Experiment
from app.experiments.start import start_experiment
from app.projects.projects import make_project
from tests.experiments.test_advance import work_off

GIVEN = {
    "ppo_vs_dpo": {"prompts": "p.jsonl", "scenarios": "s.jsonl", "endpoint": "judge"},
    "rounds": {"prompts": "p.jsonl", "endpoint": "judge"},
    "grid": {"prompts": "p.jsonl", "weak": "small", "strong": "large"},
}


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
