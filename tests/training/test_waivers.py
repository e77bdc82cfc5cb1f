"""A judge that failed its Judge Card rewards only with a typed reason: by form, API, experiment, at the start."""

from dataclasses import dataclass
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint, Endpoint
from app.db import get, reading, transaction
from app.errors import Invalid
from app.experiments.advance import advance_all
from app.experiments.models import Experiment, Step
from app.experiments.start import start_experiment
from app.judging.models import Judge
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.recipes import read_recipe
from app.report.arms import read_material
from app.report.limits import find_limits
from app.review.models import JudgeCard
from app.runs.models import Run
from app.runs.queue import launch
from tests.judging.rows import make_pairs
from tests.worker.test_rate import rubric
from worker.job import Job
from worker.rewards import check_cards

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
BROKEN = "failed its Judge Card 1 (position flips 0.40 [0.30, 0.50], n = 200, limit at most 0.2)"
REASON = "To see what position flips do to PPO."
LINE = {"key": "flip", "name": "Position flips", "value": 0.4, "low": 0.3, "high": 0.5, "n": 200, "limit": 0.2,
        "is_at_least": False, "is_gated": True, "state": "failed"}  # fmt: skip
STUDY = """\
name: Rewards
steps:
  - name: grpo
    recipe: {kind: grpo, start: "@checkpoint:base", reference: "@checkpoint:base", prompt_set: "@prompt_set:prompts 0",
             judge: "@judge:the scorer", constitution: "@constitution:rubric", reward_by: judge, max_null: 0.4WAIVER}
"""


@dataclass
class Scene:
    """What an online recipe points to."""

    project: Project
    fields: dict[str, Any]
    pairs: int

    def fail_the_card(self) -> None:
        """The judge fails under this constitution."""
        with transaction() as session:
            session.add(JudgeCard(
                project_id=self.project.id, judge_id=self.fields["judge"], pair_set_id=self.pairs, is_passed=False,
                constitution_id=self.fields["constitution"], n=200, lines=[LINE],
            ))  # fmt: skip


@pytest.fixture
def scene(project: Project) -> Scene:
    constitution = rubric(project)
    with transaction() as session:
        endpoint = Endpoint(project_id=project.id, name="e", origin="http://127.0.0.1:9", model="m")
        base = Checkpoint(project_id=project.id, name="base", role="policy", method="imported", path="x")
        session.add_all([endpoint, base])
        session.flush()
        judge = Judge(project_id=project.id, name="the scorer", kind="endpoint", endpoint_id=endpoint.id)
        session.add(judge)
        pairs = make_pairs(session, project.id, [("q", "a", "b", None)])
        prompts = session.exec(select(PromptSet.id)).one()
        session.flush()
        fields = {"start": base.id, "reference": base.id, "prompt_set": prompts, "judge": judge.id,
                  "constitution": constitution}  # fmt: skip
        return Scene(project, fields, pairs.id)


ONLINE: list[dict[str, Any]] = [
    {"kind": "ppo"},
    {"kind": "grpo", "reward_by": "judge"},
    {"kind": "rloo", "reward_by": "mix", "rule_weight": 0.5},
]


@pytest.mark.parametrize("more", ONLINE, ids=lambda one: one["kind"])
def test_it_rewards_only_with_a_reason(scene: Scene, more: dict[str, Any]) -> None:
    def start(**given: Any) -> Run:
        with transaction() as session:
            return launch(session, read_recipe({**more, **scene.fields, **given}), project_id=scene.project.id)

    start()  # nobody has probed it: nothing is asked
    scene.fail_the_card()
    for reason in ("", "because", "          because          "):
        with pytest.raises(Invalid) as refused:
            start(waiver=reason)
        assert BROKEN in refused.value.message and "or choose another judge" in refused.value.message
        assert "say why its scores may train all the same" in refused.value.fields["waiver"][0]
    assert start(waiver=REASON).recipe["waiver"] == REASON
    if more["kind"] == "ppo":
        start(judge_weight=0, rule_weight=1.0)  # a judge without a weight rewards nothing


def test_form_api_and_experiment_say_the_same(client: TestClient, scene: Scene) -> None:
    scene.fail_the_card()
    forecast = client.get("/p/demo/forecast/ppo", params=scene.fields).text
    assert BROKEN in forecast and "train only with a reason" in forecast
    form = {**scene.fields, "form_key": "w", "waiver": "no"}
    refused = client.post("/p/demo/new/ppo", data=form)
    assert refused.status_code == 422 and "failed its card 1: say why" in refused.text
    assert "no</textarea>" in refused.text and "<details open>" in refused.text
    limits = _train_with_a_reason(client, scene, scene.fields, STUDY)
    assert (
        f"“the scorer” {BROKEN.replace('Card 1', 'Card')} and its scores rewarded training; reason given: “{REASON}”."
        in limits
    )


def _train_with_a_reason(client: TestClient, scene: Scene, fields: dict[str, Any], study: str) -> list[str]:
    """By form, API and experiment it trains with a reason alone; gives the limits that the report prints."""
    page = client.post("/p/demo/new/ppo", data={**fields, "form_key": "w", "waiver": REASON})
    assert page.status_code == 200 and REASON in client.get(f"{page.url.path}/panel/ppo").text
    api = client.post("/api/v1/p/demo/runs", json={"kind": "ppo", **fields})
    assert api.status_code == 422 and BROKEN in api.json()["error"] and list(api.json()["fields"]) == ["waiver"]
    steps = {}
    for name, waiver in (("without", ""), ("with", f", waiver: {REASON}")):
        with transaction() as session:
            key = start_experiment(session, scene.project.id, study.replace("WAIVER", waiver)).id
        advance_all()
        with reading() as session:
            steps[name] = session.exec(select(Step).where(Step.experiment_id == key)).one()
    assert steps["without"].status == "failed" and BROKEN in steps["without"].error
    assert steps["with"].status == "launched", steps["with"].error
    with reading() as session:
        material = read_material(session, get(session, Experiment, steps["with"].experiment_id))
        return find_limits(session, material, [], [], [], [])


def _fail_as_a_judge(scene: Scene) -> int:
    """A reward model that was made a judge twice, and failed under a constitution, which it does not read."""
    with transaction() as session:
        model = Checkpoint(project_id=scene.project.id, name="rm", role="reward", method="reward", path="r")
        session.add(model)
        session.flush()
        judges = [Judge(project_id=scene.project.id, name=name, kind="reward", checkpoint_id=model.id)
                  for name in ("the critic", "the same critic")]  # fmt: skip
        session.add_all(judges)
        session.flush()
        session.add(JudgeCard(
            project_id=scene.project.id, judge_id=judges[1].id, pair_set_id=scene.pairs, is_passed=False,
            constitution_id=scene.fields["constitution"], n=200, lines=[LINE],
        ))  # fmt: skip
        return model.id


BY_MODEL: list[dict[str, Any]] = [
    {"kind": "ppo"},
    {"kind": "grpo", "reward_by": "reward_model"},
    {"kind": "rloo", "reward_by": "mix", "rule_weight": 0.5},
]


@pytest.mark.parametrize("more", BY_MODEL, ids=lambda one: one["kind"])
def test_a_reward_model_that_failed_as_a_judge_rewards_only_with_a_reason(scene: Scene, more: dict[str, Any]) -> None:
    fields = {**more, **{name: scene.fields[name] for name in ("start", "reference", "prompt_set")}}
    fields["reward"] = _fail_as_a_judge(scene)

    def start(**given: Any) -> Run:
        with transaction() as session:
            return launch(session, read_recipe({**fields, **given}), project_id=scene.project.id)

    for reason in ("", "because"):
        with pytest.raises(Invalid) as refused:
            start(waiver=reason)
        assert f"“the same critic”, which is this reward model, {BROKEN}" in refused.value.message
        assert "or choose another reward model" in refused.value.message and "waiver" in refused.value.fields
    assert start(waiver=REASON).recipe["waiver"] == REASON
    if more["kind"] == "ppo":
        start(reward_weight=0, rule_weight=1.0)  # without a weight it rewards nothing
    with transaction() as session:  # a newer card that passed undoes the failed one
        other = session.exec(select(Judge.id).where(Judge.name == "the critic")).one()
        session.add(JudgeCard(
            project_id=scene.project.id, judge_id=other, pair_set_id=scene.pairs, is_passed=True, n=200, lines=[LINE]
        ))  # fmt: skip
    start()


def test_of_a_reward_model_form_api_experiment_and_report_say_so_too(client: TestClient, scene: Scene) -> None:
    key = _fail_as_a_judge(scene)
    fields = {name: scene.fields[name] for name in ("start", "reference", "prompt_set")} | {"reward": key}
    assert BROKEN in client.get("/p/demo/forecast/ppo", params=fields).text
    refused = client.post("/p/demo/new/ppo", data={**fields, "form_key": "w", "waiver": "no"})
    assert (
        refused.status_code == 422 and "failed its card 1: say why" in refused.text and "<details open>" in refused.text
    )
    by_model = STUDY.replace('judge: "@judge:the scorer", constitution: "@constitution:rubric", reward_by: judge',
                             'reward: "@checkpoint:rm", reward_by: reward_model')  # fmt: skip
    limits = _train_with_a_reason(client, scene, fields, by_model)
    broken = BROKEN.replace("Card 1", "Card")
    said = f"“the same critic”, a reward model, {broken} and its scores rewarded training; reason given: “{REASON}”."
    assert said in limits


@pytest.mark.parametrize("by", ["judge", "reward model"])
def test_a_card_that_fails_after_the_launch_holds_until_the_first_step_is_done(scene: Scene, by: str) -> None:
    fields = scene.fields
    if by == "reward model":
        key = _fail_as_a_judge(scene)
        fields = {name: fields[name] for name in ("start", "reference", "prompt_set")} | {"reward": key}
    with transaction() as session:
        run = launch(session, read_recipe({"kind": "ppo", **fields, "waiver": REASON}), project_id=scene.project.id)
        run.status, run.attempt, run.recipe = "running", 1, {**run.recipe, "waiver": ""}
    scene.fail_the_card()
    with pytest.raises(Invalid, match="failed its Judge Card 1"):
        check_cards(Job(run.id, 1))
    with transaction() as session:
        get(session, Run, run.id).done = 1
    check_cards(Job(run.id, 1))  # what it has begun it goes on with
