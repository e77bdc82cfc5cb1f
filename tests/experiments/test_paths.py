"""Arms' paths along their own training: grouping by scale and prompts, matched looks, and the page of what was kept."""

import csv
import io
from typing import Any

import numpy as np
import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.experiments.frontier import Point, draw_frontiers
from app.experiments.models import Experiment, Step
from app.experiments.paths import ArmPath, find_passings, group_paths
from app.projects.models import Project
from app.runs.models import Run, RunIo, Sampled
from app.training.measured import Measured
from app.training.paths import Look, by_prompt
from app.training.recipes import GrpoRecipe

ONE_DATABASE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
NAMES = {("checkpoint", 5): "gold", ("checkpoint", 6): "proxy", ("judge", 2): "GPT"}


def look(step: int, kl: float, prompts: str = "abcd", **scores: float) -> Look:
    """Values that differ a little between prompts."""
    spread = np.arange(len(prompts)) / 100
    return Look(step, tuple(prompts), {"kl": kl + spread, **{name: one + spread for name, one in scores.items()}})


def path(label: str, looks: list[Look], **recipe: Any) -> ArmPath:
    given = {"kind": "dpo", "start": 1, "reference": 1, "held_out": 5, **recipe}
    run = Run(id=9, project_id=1, kind=given["kind"], queue="gpu", recipe=given, recipe_sha256="0")
    return ArmPath(label, label, given["kind"], run, looks)


def test_only_what_is_scored_alike_from_one_reference_is_drawn_together() -> None:
    ppo = {"kind": "ppo", "reward": 6, "reward_weight": 1.0}
    drawn = group_paths(
        [
            path("dpo", [look(0, 0, held_out=0.1), look(9, 2, held_out=0.5)]),
            path("ppo", [look(0, 0, held_out=0.1, reward=1), look(5, 3, held_out=0.4, reward=2)], **ppo),
            path("elsewhere", [look(0, 0, held_out=0.1)], start=2, reference=2),
            path("judged", [look(0, 0, held_out=0.1)], held_out=None, held_out_judge=2, held_out_constitution=3),
            path("unwatched", [look(0, 0)], held_out=None),
        ],
        NAMES,
    )
    assert [(one.by, one.said, [path.label for path in one.paths]) for one in drawn] == [
        ("held_out", "reward model “gold”", ["dpo", "ppo"]),
        ("reward", "reward model “proxy”", ["ppo"]),
        ("held_out", "reward model “gold”", ["elsewhere"]),
        ("held_out", "judge “GPT” by constitution 3", ["judged"]),
    ]
    stands = drawn[0].drawn[1][1]
    assert [one.step for one in stands] == [0, 5] and [one.kl.value for one in stands] == pytest.approx([0.015, 3.015])
    low, high = stands[0].kl.low, stands[0].kl.high
    assert stands[0].kl.n == 4 and low is not None and high is not None and low < 0.015 < high


def test_paths_stand_on_the_prompts_they_share_and_others_are_named() -> None:
    (drawn,) = group_paths(
        [
            path("all", [look(0, 0, "abcdef", held_out=0.1)]),
            path("some", [look(0, 0, "fdbx", held_out=0.1)]),
            path("others", [look(0, 0, "uvwx", held_out=0.1)]),
        ],
        NAMES,
    )
    assert [one.label for one in drawn.paths] == ["all", "some"] and [one.label for one in drawn.left_out] == ["others"]
    assert drawn.n == 3 and [set(one.prompts) for one in drawn.paths] == [set("bdf")] * 2
    assert drawn.paths[0].looks[0].interval("kl").value == pytest.approx((0.01 + 0.03 + 0.05) / 3)  # type: ignore[union-attr]


def test_a_path_of_which_nothing_was_read_on_the_shared_prompts_is_not_drawn() -> None:
    silent = Look(0, tuple("abcd"), {"kl": np.zeros(4), "held_out": np.array([np.nan, np.nan, 0.1, 0.1])})
    (drawn,) = group_paths([path("all", [look(0, 0, "abx", held_out=0.1)]), path("silent", [silent])], NAMES)
    assert [one.label for one in drawn.paths] == ["all"] and drawn.kl_ends[1] > 0


def measured(label: str, kl: float, prompts: frozenset[int] = frozenset({1, 2})) -> Point:
    run = Run(id=3, project_id=1, kind="measure", queue="gpu", recipe_sha256="0",
              recipe={"checkpoint": 7, "reference": 1, "quality": "reward", "reward": 5})  # fmt: skip
    values = np.array([kl, kl + 0.1])
    return Point(label, label, label, Measured(run, values, values, values, np.array([0, 1]), prompts))


def test_the_look_nearest_to_a_matched_kl_is_listed_where_the_path_passes_it() -> None:
    frontiers = draw_frontiers([measured("dpo", 1), measured("dpo", 3), measured("ppo", 2)])
    paths = [
        path("dpo", [look(0, 0, held_out=0.1), look(4, 1.8, held_out=0.5), look(9, 4, held_out=0.5)]),
        path("ppo", [look(0, 0, held_out=0.1), look(5, 1, held_out=0.4)]),  # never came as far
    ]
    drawn = group_paths(paths, NAMES, frontiers)
    assert [point.label for point in drawn[0].points] == ["dpo", "ppo", "dpo"]
    assert [(one.label, one.stand.step) for one in find_passings(drawn, frontiers)] == [("dpo", 4)]


def test_points_on_other_prompts_are_left_out_and_named() -> None:
    (drawn,) = draw_frontiers([measured("dpo", 1), measured("ppo", 2), measured("sft", 3, frozenset({1, 2, 4}))])
    assert [one.label for one in drawn.points] == ["dpo", "ppo"] and [one.label for one in drawn.left_out] == ["sft"]
    assert [(one.a, one.b) for one in drawn.comparisons] == [("dpo", "ppo")] and drawn.n_prompts == 2


@ONE_DATABASE
def test_the_report_draws_what_was_kept_and_an_old_run_has_no_path(client: TestClient) -> None:
    with transaction() as session:
        project = session.exec(select(Project)).one()
        experiment = Experiment(project_id=project.id, name="e", file="", sha256="0", seeds=[1], status="done")
        session.add(experiment)
        session.flush()
        for place, name in enumerate(("old", "GRPO")):
            recipe = GrpoRecipe(start=1, reference=1, prompt_set=1).stored()
            run = Run(project_id=project.id, kind="grpo", queue="gpu", recipe=recipe, recipe_sha256="0", status="done")
            session.add(run)
            session.flush()
            made = Checkpoint(project_id=project.id, name=name, method="grpo", run_id=run.id)
            session.add(made)
            session.flush()
            session.add(RunIo(run_id=run.id, is_output=True, noun="checkpoint", ref_id=made.id))
            session.add(Step(experiment_id=experiment.id, name=name, position=place, arm=name, seed=1, recipe=recipe,
                             run_id=run.id, status="done"))  # fmt: skip
            for step in (0, 10):
                details: list[dict[str, Any]] = [{"kl": step / 10, "kl_k3": step / 9}, {"kl": step / 5, "kl_k3": None}]
                kept = {"by_prompt": by_prompt(["a", "b"], details, [0.5, None])} if name == "GRPO" else {}
                session.add(Sampled(run_id=run.id, step=step, place=0, prompt="?", text="!", reward=0.5,
                                    detail={"length": 1.0, "ended": 1.0, **kept}))  # fmt: skip
    (found,) = client.get("/p/demo/report/1.json").json()["paths"]
    assert (found["scored_by"], found["scorer"], found["n_prompts"], found["reference"]) == ("reward", "the rule", 2, 1)
    (only,) = found["paths"]
    assert only["label"] == "GRPO" and [one["step"] for one in only["looks"]] == [0, 10]
    last = only["looks"][1]
    assert last["kl"]["value"] == pytest.approx(1.5) and last["kl"]["n"] == 2
    assert last["kl_k3"]["value"] == pytest.approx(10 / 9) and last["score"]["n"] == 1  # what was read
    page = client.get("/p/demo/report/1").text
    assert "Along training, n = 2 prompts, audit: training reward by the rule" in page
    lines = list(csv.DictReader(io.StringIO(client.get("/p/demo/experiments/1/paths.csv").text)))
    assert [(line["arm"], line["step"], float(line["kl_k1"])) for line in lines] == [
        ("GRPO", "0", 0),
        ("GRPO", "10", 1.5),
    ]
    with reading() as session:
        assert len(session.exec(select(Sampled)).all()) == 4
