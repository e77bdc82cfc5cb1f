"""Reward models: what is measured at the end, the notes it calls for, its pages, several starts from one form."""

from typing import Any

import numpy as np
import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.errors import Invalid
from app.projects.models import Project
from app.runs.models import Run
from app.runs.queue import launch
from app.stats.rewards import reliability
from app.training.forecast import forecast_memory
from app.training.health import write_notes
from app.training.held_out import ArmScores, Scored, describe_held_out, describe_scores
from app.training.models import Snapshot
from app.training.recipes import RewardRecipe
from tests.review.rows import make_run
from tests.training.test_forecast import DEMO
from tests.training.test_snapshots import freeze, verdicts

__all__ = ["verdicts"]


def rows(n: int, share: float, share_longer: float, lead: float = 2.0) -> Scored:
    """n rows of n prompts, of which a share is ordered rightly and a share has the longer text chosen."""
    right = np.arange(n) < share * n
    longer = np.arange(n)[::-1] < share_longer * n
    return Scored(
        [lead if one else -lead for one in right], [0.0] * n, [9 if one else 3 for one in longer], [6] * n,
        [str(i) for i in range(n)],
    )  # fmt: skip


def test_what_is_measured_is_what_a_hand_computes() -> None:
    scored = Scored([2.0, 0.5, 1.0, -1.0], [0.0, 0.5, 3.0, -1.5], [5, 1, 9, 4], [3, 3, 9, 2], ["p", "p", "q", "r"])
    found = describe_held_out(scored, share_longer=0.8)
    assert found["accuracy"]["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (found["accuracy"]["n"], found["accuracy"]["n_clusters"]) == (4, 3)
    assert found["length_rule"] == "longer" and found["by_length"]["value"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["over_length"]["value"] == pytest.approx(0.0)
    p = 1 / (1 + np.exp(-np.array([2.0, 0.0, -2.0, 0.5])))
    assert found["brier"]["score"] == pytest.approx(float(((p - 1) ** 2).mean()))
    assert found["brier"]["value"] == pytest.approx(found["brier"]["score"] - found["brier"]["null_mean"])
    # Sureness .5 and .622 (bins 1 and 2) were right, .881 (bin 4) once right and once wrong.
    assert found["calibration"]["score"] == pytest.approx((0.5 + (1 - p[3]) + abs(2 * p[0] - 1)) / 4, abs=1e-9)
    assert [(one["n"], one["right"]) for one in found["reliability"]] == [(1, 1.0), (1, 1.0), (2, 0.5)]
    shorter = describe_held_out(scored, share_longer=0.2)
    assert shorter["length_rule"] == "shorter" and shorter["by_length"]["value"] == pytest.approx(1 - 2.5 / 4)


def test_a_calibrated_model_has_no_excess_and_an_over_sure_one_has() -> None:
    random = np.random.default_rng(4)
    lead = random.normal(0, 1.5, 2000)
    chosen = np.where(random.random(2000) < 1 / (1 + np.exp(-lead)), lead, -lead)
    zeros, prompts = [0.0] * 2000, [str(i) for i in range(2000)]
    for times, is_off in ((1.0, False), (3.0, True)):
        found = describe_held_out(Scored(list(times * chosen), zeros, [1] * 2000, [1] * 2000, prompts), 0.5)
        assert (found["brier"]["low"] > 0) is is_off and (found["calibration"]["low"] > 0) is is_off
    assert sum(one.n for one in reliability(1 / (1 + np.exp(-chosen)), np.ones(2000))) == 2000


def test_scores_of_chosen_rejected_and_arms_share_their_bins() -> None:
    arms = [ArmScores(7, "base T=1", "base", [-4.0, 0.0]), ArmScores(8, "nothing", "sft", [])]
    found = describe_scores(rows(4, 1.0, 0.5), arms)
    assert [(one["label"], one["mean"]) for one in found] == [("chosen", 2.0), ("rejected", 0.0), ("base T=1", -2.0)]
    assert {(one["bins"][0]["low"], one["bins"][-1]["high"]) for one in found} == {(-4.0, 2.0)}
    assert [sum(each["count"] for each in one["bins"]) for one in found] == [4, 4, 2]


NOTES = [
    (rows(40, 0.55, 0.5), "not shown to reproduce the judge"),
    (rows(200, 0.8, 0.78), "not shown to read more than length"),
    (rows(200, 0.9, 0.6), ""),
]


@pytest.mark.parametrize(("scored", "said"), NOTES, ids=["guessing", "length", "healthy"])
def test_a_model_that_does_not_reproduce_the_judge_is_warned_of(scored: Scored, said: str) -> None:
    notes = write_notes("reward", {}, {"loss": [(9, 0.5)]}, held_out=describe_held_out(scored, 0.6))
    assert [note.level for note in notes] == (["act"] if said else [])
    assert not said or (said in notes[0].text and notes[0].evidence[0][:2] == ("held_out_accuracy", 9))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_its_pages_show_what_was_measured(client: TestClient, project: Project) -> None:
    scored = rows(40, 0.55, 0.5)
    facts = {
        "architecture": "bi-encoder: two copies", "dtype": "float32",
        "held_out": {**describe_held_out(scored, 0.6), "n_shared": 0},
        "scores": describe_scores(scored, [ArmScores(7, "base T=1", "base", [-4.0, 0.0])]),
    }  # fmt: skip
    with transaction() as session:
        base = Checkpoint(project_id=project.id, name="the base", method="base")
        session.add(base)
        session.flush()
        run = make_run(session, project, "reward", recipe={"kind": "reward", "start": base.id, "is_lora": False})
        run.status = "done"
        made = Checkpoint(project_id=project.id, name="rm", method="reward", role="reward", run_id=run.id, facts=facts)
        session.add(made)
    panel = " ".join(client.get(f"/p/demo/runs/{run.id}/panel/reward").text.split())
    page = " ".join(client.get(f"/p/demo/checkpoints/{made.id}").text.split())
    for text in (panel, page):
        for said in ("0.55", "“Prefer the longer” would", "where a calibrated model", "base T=1", "bi-encoder: two"):
            assert said in text
    assert "not shown to reproduce the judge" in panel
    with transaction() as session:
        session.get_one(Checkpoint, made.id).facts = {"architecture": "sequence classifier", "dtype": "float32"}
    assert "was not measured" in client.get(f"/p/demo/runs/{run.id}/panel/reward").text


def launched(client: TestClient, snapshot: Snapshot, starts: list[int], key: str = "k1") -> Any:
    form = {"start": starts[0], "snapshot": snapshot.id, "also_from": ["", *starts[1:]], "form_key": key}
    return client.post("/p/demo/new/reward", data=form, follow_redirects=False)


def test_several_starts_are_a_run_each(client: TestClient, project: Project, verdicts: Any) -> None:
    snapshot, _, _ = freeze(project, verdicts)
    with transaction() as session:
        bases = [Checkpoint(project_id=project.id, name=f"size {n}", method="base") for n in range(3)]
        session.add_all(bases)
        session.flush()
        ids = [one.id for one in bases]
    missing = launched(client, snapshot, [ids[0], 999_999])
    assert missing.status_code == 422 and "no checkpoint 999999" in missing.text
    with reading() as session:
        assert session.exec(select(Run).where(Run.kind == "reward")).all() == []
    sent = launched(client, snapshot, [*ids, ids[0]])
    again = launched(client, snapshot, [*ids, ids[0]])
    with reading() as session:
        found = session.exec(select(Run).where(Run.kind == "reward").order_by(col(Run.id))).all()
    assert [run.recipe["start"] for run in found] == ids
    assert all(run.recipe["also_from"] == [] for run in found)
    first, *others = [run.id for run in found]
    wanted = f"/p/demo/runs/{first}?" + "&".join(f"beside={one}" for one in others) + "#curves"
    assert sent.status_code == 303 and sent.headers["location"] == again.headers["location"] == wanted
    assert client.get(wanted).status_code == 200
    body = {"kind": "reward", "start": ids[1], "snapshot": snapshot.id, "also_from": [ids[2]], "seed": 2}
    told = client.post("/api/v1/p/demo/runs", json=body).json()
    assert [told["recipe"]["start"], told["also"][0]["recipe"]["start"]] == [ids[1], ids[2]]
    with pytest.raises(Invalid, match="One run trains from one start"), transaction() as session:
        launch(session, RewardRecipe(start=ids[0], snapshot=snapshot.id, also_from=[ids[1]]), project_id=project.id)


def test_the_forecast_knows_a_bi_encoder_s_two_towers() -> None:
    given: dict[str, Any] = {"rank": 16, "dtype": "float32", "batch": 8, "length": 100}
    full = forecast_memory(DEMO, "bi_encoder", is_lora=False, **given)
    assert full.copies == 2 and "prompt tower, completion tower" in full.sentence
    assert forecast_memory(DEMO, "bi_encoder", is_lora=True, **given).copies == 1
