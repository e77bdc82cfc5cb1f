"""The training pages: runs with headline and stale mark, snapshots, panel, forecast, training again."""

import json
from datetime import timedelta

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE
from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import get, now, transaction
from app.judging.models import VerdictSet
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import Metric, Run
from app.training.models import Snapshot
from tests.review.rows import do_run, make_person, make_run
from tests.training.test_snapshots import answer, freeze, pick, train_on, verdicts

__all__ = ["verdicts"]

CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 344,
    "vocab_size": 800,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_empty_project_says_what_to_do(client: TestClient) -> None:
    page = client.get("/p/demo/train")
    assert page.status_code == 200 and "Nothing trained yet" in page.text
    for kind in ("sft", "reward", "dpo", "ppo", "grpo", "snapshot"):
        assert f"/p/demo/new/{kind}" in page.text
    assert "No snapshot yet" in client.get("/p/demo/train/snapshots").text


def test_from_an_override_to_training_again(client: TestClient, project: Project, verdicts: VerdictSet) -> None:
    snapshot, _, _ = freeze(project, verdicts)
    run, trained = train_on(project, snapshot)
    with transaction() as session:
        for step, loss in ((1, 3.5), (2, 1.234)):
            session.add(Metric(run_id=run.id, name="dev_loss", step=step, value=loss))
    page = client.get("/p/demo/train").text
    assert "1.234" in page and "changed since" not in page
    shown = client.get(f"/p/demo/train/snapshots/{snapshot.id}").text
    assert snapshot.sha256 in shown and "says a." in shown and "changed since" not in shown
    assert client.post(f"/p/demo/train/runs/{run.id}/again").status_code == 409

    answer(verdicts, pick(verdicts, "a"), "b")
    for url in ("/p/demo/train", f"/p/demo/train/snapshots/{snapshot.id}", f"/p/demo/runs/{run.id}/panel/sft"):
        assert "1 label changed since" in " ".join(client.get(url).text.split())
    mark = client.get(f"/p/demo/train/checkpoints/{trained.id}/stale").text
    assert "1 label changed since" in " ".join(mark.split()) and "Train again" in mark
    assert f"train/checkpoints/{trained.id}/stale" in client.get(f"/p/demo/checkpoints/{trained.id}").text
    form = client.get("/p/demo/forecast/dpo", params={"snapshot": snapshot.id}).text
    assert f"1 label of “{snapshot.name}” changed after it was frozen: this trains on the old ones" in form
    form = client.get("/p/demo/forecast/ppo", params={"reward": trained.id, "start": trained.parent_id}).text
    assert f"The reward model “{trained.name}” grew from labels of which 1 changed since" in form
    assert "The start" not in form
    assert "changed" not in client.get(f"/p/demo/train/checkpoints/{trained.parent_id}/stale").text
    again = client.post(f"/p/demo/train/runs/{run.id}/again")
    assert again.status_code == 200 and "waits for" in again.text
    with transaction() as session:
        new = session.exec(select(Run).where(Run.kind == "sft", Run.id != run.id)).one()
        frozen = get(session, Snapshot, new.recipe["snapshot"])
    assert "being written" in client.get(f"/p/demo/train/snapshots/{frozen.id}").text
    do_run(frozen.run_id or 0)
    shown = client.get(f"/p/demo/train/snapshots/{frozen.id}").text
    assert "changed since" not in shown and "Only those with a label from people" in shown
    assert client.get(f"/p/demo/train/snapshots/{frozen.id}?by=people").text.count("badge-label-from-people") == 1
    assert client.get("/p/demo/train.json").json()["rows"][-1]["value"] == 1.234
    for path in ("train", "train/snapshots"):
        for fmt in ("json", "csv", "jsonl"):
            assert client.get(f"/p/demo/{path}.{fmt}").status_code == 200
    api = client.post(f"/api/v1/p/demo/train/runs/{run.id}/again").json()
    assert api["id"] == new.id


def test_panel_and_forecast(client: TestClient, project: Project) -> None:
    folder = settings().folder("checkpoints", "base")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with transaction() as session:
        base = Checkpoint(project_id=project.id, name="the base", method="base", path="checkpoints/base")
        reward = Checkpoint(project_id=project.id, name="the reward", method="reward", role="reward")
        session.add_all([base, reward])
        session.flush()
        recipe = {"kind": "ppo", "start": base.id, "reference": base.id, "reward": reward.id, "is_lora": False}
        run = make_run(session, project, "ppo", recipe=recipe, status="running", cost={"generated_tokens": 4321})
        session.add(Metric(run_id=run.id, name="kl", step=3, value=None))
    live = client.get(f"/p/demo/runs/{run.id}/panel/ppo").text
    assert "the base" in live and "the reward" in live and "4,321" in live and "not finite" in live
    assert 'hx-trigger="every 2s"' in live
    with transaction() as session:
        get(session, Run, run.id).status = "done"
    assert "hx-trigger" not in client.get(f"/p/demo/runs/{run.id}/panel/ppo").text
    assert client.get(f"/p/demo/runs/{run.id}/panel/dpo").status_code == 404

    full = client.get("/p/demo/forecast/ppo", params={"start": base.id}).text
    assert "4 separate copies" in full and "MiB" in full
    lora = client.get(f"/p/demo/forecast/ppo?start={base.id}&is_lora=false&is_lora=true").text
    assert "share one frozen base" in lora
    for kind in ("sft", "reward", "dpo", "grpo"):
        assert "of memory" in client.get(f"/p/demo/forecast/{kind}", params={"start": base.id, "lora_rank": "x"}).text
    assert "once the start is chosen" in client.get("/p/demo/forecast/sft").text
    assert "once the start is chosen" in client.get("/p/demo/forecast/sft", params={"start": 2**80}).text


def test_time_is_told_by_the_projects_own_finished_runs(client: TestClient, project: Project) -> None:
    folder = settings().folder("checkpoints", "base")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with transaction() as session:
        base = Checkpoint(project_id=project.id, name="the base", method="base", path="checkpoints/base")
        session.add(base)
        session.flush()
        given = {"start": base.id, "batch_size": 8, "is_lora": False}
        begun = now() - timedelta(hours=1)
        # 10 seconds until it counts, then 2 and 4 seconds a step; LoRA was slower, and a resumed one says nothing.
        for steps, busy, lora, attempt in (
            (10, 20, False, 1),
            (5, 20, False, 1),
            (5, 500, True, 1),
            (5, 900, False, 2),
        ):
            make_run(
                session, project, "dpo", recipe={"kind": "dpo", **given, "max_steps": steps, "is_lora": lora},
                status="done", attempt=attempt, cost={"wall_seconds": 10 + busy}, counted_at=begun,
                ended_at=begun + timedelta(seconds=busy),
            )  # fmt: skip
    form: dict[str, str | int] = {"start": base.id, "batch_size": 8, "max_steps": 15, "is_lora": "false"}
    alike = client.get("/p/demo/forecast/dpo", params=form).text
    assert "About <strong>55 s</strong> (40 s to 70 s)" in alike
    assert "2 newest runs of this method" in alike
    alone = client.get("/p/demo/forecast/dpo", params={**form, "is_lora": "true"}).text
    assert "the newest run of this method" in alone and "<strong>25 min</strong>" in alone
    for unknown in ({**form, "max_steps": ""}, {**form, "start": ""}):
        assert "newest run" not in client.get("/p/demo/forecast/dpo", params=unknown).text
    assert "once a run of this method has finished" in client.get("/p/demo/forecast/simpo", params=form).text


def test_graders_stay_out(client: TestClient, project: Project) -> None:
    with transaction() as session:
        _, cookie = make_person(session, project, "grace", "grader")
    client.cookies.set(COOKIE, cookie)
    for path in ("train", "train/snapshots", "train.csv", "forecast/sft"):
        assert client.get(f"/p/demo/{path}").status_code == 403


def test_the_form_warns_of_prompts_that_overlap_with_a_benchmark(client: TestClient, project: Project) -> None:
    with transaction() as session:
        prompts = PromptSet(
            project_id=project.id, name="p", state="ready", hygiene={"overlaps": {"mmlu": 3}, "n_near": 2}
        )
        other = PromptSet(project_id=project.id, name="q", state="ready")
        session.add_all([prompts, other])
        session.flush()
    said = client.get(f"/p/{project.slug}/forecast/ppo", params={"prompt_set": prompts.id}).text
    assert "3 prompts overlap with the questions of mmlu" in said and "2 prompts nearly equal" in said
    for quiet in (other.id, 4711, "x", 2**70):
        page = client.get(f"/p/{project.slug}/forecast/ppo", params={"prompt_set": quiet})
        assert page.status_code == 200 and "overlap" not in page.text
