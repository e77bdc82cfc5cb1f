"""The report of a tiny study that really ran: what it prints, what it badges, and what it does not invent."""

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account, make_login
from app.accounts.models import Account
from app.benchmarks.models import Benchmark, Score
from app.benchmarks.scores import read_levels
from app.checkpoints.models import Checkpoint
from app.cli import main
from app.db import get, now, reading, transaction
from app.experiments import collect
from app.experiments.advance import advance_all
from app.experiments.models import Experiment, Step
from app.experiments.start import start_experiment
from app.grading.models import Grade, GradeItem, Grading
from app.judging.models import Judge, Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.projects.models import Project
from app.prompts.models import Prompt
from app.report.arms import Material, lineage, read_material
from app.report.limits import say_left_out
from app.report.report import read_report
from app.report.results import result_lines, result_table, table_columns
from app.report.signals import training_signals
from app.review.models import JudgeCard, Override
from app.runs.models import Run, RunIo
from app.runs.queue import claim
from app.training.budgets import cost_of, read_budgets
from app.training.models import Snapshot
from tests.benchmarks.rows import fresh_project
from tests.conftest import forget_settings
from worker.child import work

FILE = (Path(__file__).parent / "study.yaml").read_text()


def run_to_the_end(experiment_id: int) -> None:
    """What the ticker and a worker do, in this process."""
    for _ in range(200):
        advance_all()
        with transaction() as session:
            run = claim(session, ["gpu", "io", "cpu"], "test worker", None)
        if run is not None:
            assert work(run.id, run.attempt) == "done", read_error(run.id)
        with reading() as session:
            if get(session, Experiment, experiment_id).status != "running":
                return
    raise AssertionError("the experiment did not end")


def steps_of(experiment_id: int) -> list[Step]:
    with reading() as session:
        return list(session.exec(select(Step).where(Step.experiment_id == experiment_id)))


def read_error(run_id: int) -> str | None:
    from app.runs.models import Run

    with reading() as session:
        return get(session, Run, run_id).error


@pytest.fixture(scope="module")
def study(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the study run twice: experiment 1 with one seed, experiment 2 with two (the first is reused)."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFLAB_DATA", str(folder))
        forget_settings()
        shutil.copy(sqlite_template, folder / "preflab.db")
        project = fresh_project()
        for seeds in ([1], [1, 2]):
            with transaction() as session:
                experiment = start_experiment(session, project.id, FILE, seeds=seeds)
            run_to_the_end(experiment.id)
        forget_settings()
    with sqlite3.connect(folder / "preflab.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return folder / "preflab.db"


@pytest.fixture
def studied(study: Path, data_dir: Path) -> None:
    """A copy of the study's database for this test alone."""
    shutil.copy(study, data_dir / "preflab.db")
    forget_settings()


@pytest.fixture
def reader(studied: None) -> Iterator[TestClient]:
    """The owner's browser."""
    from app.main import create_app

    with transaction() as session:
        cookie = make_login(session, session.exec(select(Account)).one(), "session")
    with TestClient(create_app(), base_url="http://127.0.0.1", cookies={COOKIE: cookie}) as client:
        yield client


def test_one_seed_speaks_of_a_checkpoint_and_the_headline_is_no_training_signal(reader: TestClient) -> None:
    page = reader.get("/p/demo/report/1")
    assert page.status_code == 200
    assert "this checkpoint" in page.text and "this method" not in page.text
    found = reader.get("/p/demo/report/1.json").json()
    assert found["headline"] == [["demo_facts", "acc"]]
    badged = {(one["name"], m["metric"]) for one in found["benchmarks"] for m in one["metrics"] if m["training_signal"]}
    assert badged == {
        ("strict_format", name) for name in ("format", "accuracy", "format_greedy", "accuracy_greedy")
    }  # fmt: skip
    head = page.text.partition('id="found"')[2].partition('id="results"')[0]
    assert "Demo facts" in head and "trict format" not in head
    assert page.text.count("badge-training-signal") >= 8


def test_people_are_never_invented(reader: TestClient) -> None:
    page = reader.get("/p/demo/report/1").text
    found = reader.get("/p/demo/report/1.json").json()
    grading, audit = found["gradings"][0], found["audits"][0]
    assert grading["n_graded"] == 0 and grading["is_sealed"] and "compared" not in grading
    assert audit["n_audited"] == 0 and audit["agreement"] is None
    assert f"0 of {grading['n_planned']} graded" in page and "0 of 10 audited" in page
    assert "Blind win rates" not in page and "kappa" not in page


def test_numbers_are_those_of_the_stored_scores(studied: None) -> None:
    with reading() as session:
        experiment = get(session, Experiment, 1)
        rows = result_table(session, experiment)
        levels = read_levels(session, [cell.run_id for row in rows for cell in row.values.values() if cell])
    assert [(row.arm, row.seed) for row in rows] == [("base", 1), ("DPO", 1)]
    assert list(rows[0].values) == [
        "format, sampled", "accuracy, sampled", "4-choice", "format, greedy", "accuracy, greedy",
    ]  # fmt: skip
    for row in rows:
        cell = row.values["format, sampled"]
        assert cell is not None and cell.level == levels[cell.run_id, "format", ""]
        assert cell.level.n_text == "12 × 2"
    base, dpo = (row.values["4-choice"] for row in rows)
    assert base is not None and dpo is not None and base.difference is None and dpo.difference is not None
    assert dpo.difference.n == 40
    assert dpo.level.interval is not None and base.level.interval is not None
    assert dpo.difference.value == pytest.approx(dpo.level.interval.value - base.level.interval.value)
    lines = result_lines(rows)
    assert lines[0].split()[:2] == ["arm", "seed"] and lines[-1].startswith("DPO") and "n = 24" in "\n".join(lines)


def test_budgets_count_everything_an_arm_grew_from(studied: None) -> None:
    with reading() as session:
        report = read_report(session, get(session, Experiment, 1))
    base, dpo = report.arms
    assert dpo.start == dpo.reference == "base"
    assert "pairs" in dpo.data and base.data == "4,800 documents"
    assert "generated_tokens" not in dpo.own_cost and dpo.whole_cost["generated_tokens"] > 0
    assert dpo.whole_cost["judge_calls"] > 0 and not base.whole_cost["judge_calls"]
    assert dpo.whole_cost["cpu_seconds"] > base.whole_cost["cpu_seconds"]
    assert report.budget["generated_tokens"] > dpo.whole_cost["generated_tokens"]  # benchmarks and grading too


def test_labels_frozen_twice_are_counted_once_wherever_they_are_told(reader: TestClient) -> None:
    with transaction() as session:
        first = session.exec(select(Snapshot).order_by(col(Snapshot.id))).first()
        dpo = session.exec(select(Run).where(Run.kind == "dpo").order_by(col(Run.id))).first()
        assert first is not None and dpo is not None
        n = first.n_train
        same = first.model_dump(exclude={"id", "name", "n_train"})
        again = Snapshot(name="frozen again", n_train=n + 1, **same)
        session.add(again)
        session.flush()
        session.add(RunIo(run_id=dpo.id, is_output=False, noun="snapshot", ref_id=again.id))
    found = reader.get("/p/demo/report/1.json").json()
    whole = {arm["name"]: arm["whole_cost"]["labels"] for arm in found["arms"]}
    assert whole == {line["arm"]: line["total"]["labels"] for line in found["budgets"]["arms"]}
    assert whole == {"base": 0, "DPO": n + 1} and found["budget"]["labels"] == n + 1
    assert {row["arm"]: row["budget"]["labels"] for row in found["results"]} == whole


def test_rows_that_were_too_long_stand_in_the_table_and_the_limits(reader: TestClient) -> None:
    with transaction() as session:
        dpo = session.exec(select(Run).where(Run.kind == "dpo").order_by(col(Run.id))).first()
        first = session.exec(select(Snapshot).order_by(col(Snapshot.id))).first()
        assert dpo is not None and first is not None
        n = first.n_train
        assert dpo.cost["left_out_rows"] == 0 and dpo.cost["labels"] == n
        dpo.cost = {**dpo.cost, "row_limit": 96, "left_out_rows": 5, "left_out_dev_rows": 2}
        key = dpo.id
    page = " ".join(reader.get("/p/demo/report/1").text.split())
    assert (
        f"5 train and 2 dev rows were left out of the dpo training of DPO (run {key}): they are longer than 96" in page
    )
    assert f'{n - 5} <span class="quiet small">of {n}</span>' in page
    whole = {arm["name"]: arm["whole_cost"]["labels"] for arm in reader.get("/p/demo/report/1.json").json()["arms"]}
    assert whole == {"base": 0, "DPO": n - 5}
    assert "different rows of them" not in page  # one training alone differs from none


def test_curves_rewards_and_completions_are_there(reader: TestClient) -> None:
    found = reader.get("/p/demo/report/1.json").json()
    assert {"base: loss", "DPO: loss", "reward: loss"} <= {one["title"] for one in found["curves"]}
    counts = {arm: sum(bar["count"] for bar in bars) for arm, bars in found["rewards"]["bins"].items()}
    assert counts == {"base": 24, "DPO": 24}
    assert len(found["examples"]) == 4
    assert all(set(one["said"]) == {"base", "DPO"} and one["reference"] for one in found["examples"])
    page = reader.get("/p/demo/report/1").text
    assert "<polyline" in page and found["examples"][0]["prompt"] in page


def test_rewards_are_of_one_reward_model_and_it_is_said_whether_it_had_a_part_in_training(studied: None) -> None:
    with transaction() as session:
        report = read_report(session, get(session, Experiment, 1))
        assert report.rewards is not None and report.rewards.is_signal and report.rewards.scorer == "reward"
        scored = [report.material.run_of(step) for step in report.material.of_kind("benchmark")]
        dpo = next(run for run in scored if run is not None and run.title == "dpo_format, seed 1")
        other = Checkpoint(project_id=dpo.project_id, name="gold", method="reward", role="reward")
        session.add(other)
        session.flush()
        dpo.recipe = {**dpo.recipe, "scorer": other.id}
    with reading() as session:
        again = read_report(session, get(session, Experiment, 1)).rewards
        assert again is not None and list(again.bins) == ["base"] and again.is_signal
    with transaction() as session:
        for run in session.exec(select(Run).where(Run.kind == "benchmark")).all():
            run.recipe = {**run.recipe, "scorer": other.id}
    with reading() as session:
        gold = read_report(session, get(session, Experiment, 1)).rewards
        assert gold is not None and (gold.scorer, gold.is_signal) == ("gold", False)


def test_two_seeds_show_each_and_their_spread(reader: TestClient) -> None:
    page = reader.get("/p/demo/report/2").text
    assert "this method" in page and "this checkpoint" not in page
    found = reader.get("/p/demo/report/2.json").json()
    assert [(row["arm"], row["seed"]) for row in found["results"]] == [
        ("base", 1), ("base", 2), ("DPO", 1), ("DPO", 2),
    ]  # fmt: skip
    facts = next(one for one in found["benchmarks"] if one["name"] == "demo_facts")["metrics"][0]
    values = [score["value"] for score in facts["scores"] if score["arm"] == "DPO"]
    spread = facts["over_seeds"]["DPO"]["level"]
    assert spread["n"] == 2 and spread["mean"] == pytest.approx(sum(values) / 2)
    assert (spread["low"], spread["high"]) == (min(values), max(values))
    assert any("steps reuse runs" in one for one in found["limits"])


def test_one_checkpoint_under_two_seeds_is_no_second_trial(reader: TestClient) -> None:
    """As where a recipe names its own seed: the second seed's steps reuse the first one's runs."""
    names = ("dpo", "dpo_facts", "dpo_format")
    with transaction() as session:
        steps = session.exec(select(Step).where(Step.experiment_id == 2, col(Step.name).in_(names))).all()
        first = {step.name: step.run_id for step in steps if step.seed == 1}
        for step in steps:
            step.run_id, step.is_reused = first[step.name], True
    found = reader.get("/p/demo/report/2.json").json()
    facts = next(one for one in found["benchmarks"] if one["name"] == "demo_facts")["metrics"][0]
    assert [facts["over_seeds"]["DPO"][of]["n"] for of in ("level", "difference")] == [1, 1]
    assert [score["seed"] for score in facts["scores"] if score["arm"] == "DPO"] == [1, 2]
    assert facts["over_seeds"]["DPO"]["level"]["sd"] is None and facts["over_seeds"]["base"]["level"]["n"] == 2
    assert found["experiment"]["about"] == "this checkpoint"
    assert any(one.startswith("DPO: seeds share a checkpoint") for one in found["limits"])
    own = [key for key in {step.run_id for step in steps_of(2)} if key is not None]
    with reading() as session:
        assert found["budget"] == cost_of(session, [get(session, Run, key) for key in own]), "each run was paid once"
    assert "n = 1" in reader.get("/p/demo/report/2").text


def test_a_lost_seed_is_named_and_the_others_stand(reader: TestClient) -> None:
    with transaction() as session:
        step = session.exec(select(Step).where(Step.experiment_id == 2, Step.name == "dpo_facts", Step.seed == 2)).one()
        step.status, step.run_id = "failed", None
    found = reader.get("/p/demo/report/2.json").json()
    assert "These steps failed, and nothing here stands for them: dpo_facts (seed 2)." in found["limits"]
    facts = next(one for one in found["benchmarks"] if one["name"] == "demo_facts")["metrics"][0]
    assert facts["over_seeds"]["DPO"]["level"]["n"] == 1 and facts["over_seeds"]["base"]["level"]["n"] == 2


def test_two_versions_of_a_benchmark_are_two_columns(studied: None) -> None:
    with reading() as session:
        report = read_report(session, get(session, Experiment, 1))
    one = next(found for found in report.results if found.benchmark.name == "strict_format")
    assert [heading for heading, _ in table_columns([one])][:2] == ["format, sampled", "accuracy, sampled"]
    again = Benchmark(**{**one.benchmark.model_dump(), "version": 2})
    other = replace(one, benchmark=again, metrics=[replace(metric, benchmark=again) for metric in one.metrics])
    columns = table_columns([one, other])
    assert [heading for heading, _ in columns][:2] == ["format, sampled, version 1", "format, sampled, version 2"]
    assert [metric.benchmark.version for _, metric in columns][:2] == [1, 2]


def test_labels_changed_since_and_scores_that_could_not_be_read_are_limits(reader: TestClient) -> None:
    with transaction() as session:
        snapshot = session.exec(select(Snapshot).order_by(col(Snapshot.id))).first()
        assert snapshot is not None
        judged = select(Pair.id).join(Verdict, col(Pair.id) == col(Verdict.pair_id)).join(Prompt)
        judged = judged.where(Verdict.verdict_set_id == snapshot.verdict_set_id, Prompt.split == "train")
        pair = session.exec(judged.where(Verdict.outcome == "a").limit(1)).one()
        account = session.exec(select(Account.id)).one()
        session.add(Override(pair_id=pair, choice="b", account_id=account, why="looked again"))
        get(session, PairSet, snapshot.pair_set_id).labels_version += 1
        run = session.exec(select(Run).where(Run.kind == "benchmark").order_by(col(Run.id))).first()
        assert run is not None
        lost = session.exec(select(Score).where(Score.run_id == run.id).order_by(col(Score.id))).first()
        assert lost is not None
        lost.value = None
        session.add(Step(experiment_id=1, position=98, name="again", seed=1, recipe=run.recipe, run_id=run.id,
                         status="done"))  # fmt: skip
    limits = reader.get("/p/demo/report/1.json").json()["limits"]
    assert any(one.startswith("1 label of the preferences “") for one in limits)
    assert any("of the scores could not be read" in one for one in limits)
    assert any("had it more than once; the last of the file’s steps counts" in one for one in limits)


def test_a_closed_grading_shows_its_win_rates_and_who_was_simulated(reader: TestClient) -> None:
    with transaction() as session:
        robot = make_account(session, "robot", "correct horse")
        robot.is_simulated = True
        session.add(robot)
        session.flush()
        grading = session.exec(select(Grading).order_by(col(Grading.id))).first()
        assert grading is not None
        shown = (GradeItem.grading_id == grading.id, ~col(GradeItem.is_identical))
        items = session.exec(select(GradeItem).where(*shown)).all()
        session.add_all(Grade(item_id=item.id, account_id=robot.id, choice="left") for item in items)
        grading.closed_at = now()
        session.add(grading)
    page = reader.get("/p/demo/report/1").text
    assert "Blind win rates" in page and "badge-simulated" in page


def test_the_file_needs_nothing_else(reader: TestClient) -> None:
    page = reader.get("/p/demo/report/1.html")
    assert "attachment" in page.headers["Content-Disposition"]
    assert "/static/" not in page.text and "<script" not in page.text and "@import" not in page.text
    assert "--arm-dpo" in page.text and "Tiny study" in page.text


def test_signals_are_found_from_what_was_trained_on(studied: None) -> None:
    with reading() as session:
        material = read_material(session, get(session, Experiment, 1))
        found = training_signals(session, material)
    assert ("strict_format", "format") in found and ("demo_facts", "acc") not in found
    assert "10% flipped" in found["strict_format", "format"]


def test_what_an_earlier_experiment_was_trained_on_is_a_signal_as_well(studied: None) -> None:
    """As where a second study goes on from a checkpoint of this one: its own steps read no label at all."""
    with transaction() as session:
        experiment = get(session, Experiment, 1)
        start = session.exec(select(Checkpoint).where(Checkpoint.method == "dpo").order_by(col(Checkpoint.id))).first()
        assert start is not None
        recipe = {"kind": "ppo", "start": start.id, "reference": start.id}
        run = Run(project_id=1, kind="ppo", queue="gpu", recipe=recipe, recipe_sha256="0", status="done")
        session.add(run)
        session.flush()
        session.add(RunIo(run_id=run.id, is_output=False, noun="checkpoint", ref_id=start.id))
        second = Experiment(**experiment.model_dump(exclude={"id", "form_key"}))
        session.add(second)
        session.flush()
        session.add(Step(experiment_id=second.id, position=1, name="ppo", recipe=recipe, run_id=run.id, status="done"))
    with reading() as session:
        material = read_material(session, get(session, Experiment, second.id))
        assert "flipped" in training_signals(session, material)["strict_format", "format"]


def test_the_limits_say_what_the_judges_card_found_and_why_its_labels_were_trained_on(reader: TestClient) -> None:
    def limits() -> list[str]:
        found: list[str] = reader.get("/p/demo/report/1.json").json()["limits"]
        return [line for line in found if "Judge Card" in line]

    assert [line.startswith("No Judge Card was made for “") for line in limits()] == [True]
    with transaction() as session:
        snapshot = session.exec(select(Snapshot).order_by(col(Snapshot.id))).first()
        assert snapshot is not None
        verdicts = get(session, VerdictSet, snapshot.verdict_set_id)
        line = {"name": "Position flips", "value": 0.4, "low": 0.3, "high": 0.5, "n": 60, "limit": 0.2,
                "is_at_least": False, "is_gated": True, "state": "failed"}  # fmt: skip
        card = JudgeCard(
            project_id=1, judge_id=verdicts.judge_id, constitution_id=verdicts.constitution_id, n=60, is_passed=False,
            pair_set_id=verdicts.pair_set_id, lines=[line],
        )  # fmt: skip
        session.add(card)
        session.flush()
        card_id = card.id
    broken = "failed its Judge Card (position flips 0.40 [0.30, 0.50], n = 60, limit at most 0.2)"
    assert broken in limits()[0] and limits()[0].endswith("it failed after they had been frozen.")
    with transaction() as session:
        row = get(session, VerdictSet, verdicts.id)
        row.protocol = {**row.protocol, "n_cut": 1}
    cut = [line for line in reader.get("/p/demo/report/1.json").json()["limits"] if "were trained on: 1 of " in line]
    assert len(cut) == 1 and verdicts.name in cut[0], "a report says that labels rest on texts that were cut"
    with transaction() as session:
        get(session, Snapshot, snapshot.id).waiver = "To see what flips do."
    assert limits()[0].endswith("trained on; reason given: “To see what flips do.”.")
    assert "To see what flips do." in reader.get("/p/demo/report/1").text
    with transaction() as session:
        changed = get(session, JudgeCard, card_id)
        changed.is_passed, changed.lines = None, [line | {"state": "undecided"}]
    assert "leaves undecided: position flips 0.40" in limits()[0]


def test_a_report_before_anything_has_ended_says_so(studied: None, reader: TestClient) -> None:
    with transaction() as session:
        fresh = start_experiment(session, 1, FILE.replace("Tiny study", "Another study"), seeds=[9])
    page = reader.get(f"/p/demo/report/{fresh.id}")
    assert page.status_code == 200 and "No arm has a checkpoint yet" in page.text
    assert "14 of 14 steps have not ended" in page.text
    with reading() as session:
        assert result_lines(result_table(session, fresh)) == ["No arm has a checkpoint yet."]


def test_the_list_links_to_each_report(reader: TestClient) -> None:
    assert 'href="/p/demo/report/1"' in reader.get("/p/demo/report").text
    assert len(reader.get("/p/demo/report.json").json()["rows"]) == 2
    assert reader.get("/p/demo/report/77").status_code == 404


def test_an_arm_did_not_grow_from_what_only_watched_it() -> None:
    def ran(key: int, **recipe: object) -> Run:
        return Run(id=key, project_id=1, kind="dpo", recipe=recipe, recipe_sha256="0")

    material = Material(
        Experiment(name="e", sha256="0"), [], {1: ran(1), 2: ran(2), 3: ran(3, start=10, held_out=20)},
        {3: [("checkpoint", 10), ("checkpoint", 20)]}, {}, {("checkpoint", 10): 1, ("checkpoint", 20): 2},
    )  # fmt: skip
    assert lineage(material, 3) == {1, 3}


def test_a_judge_or_rule_that_rewarded_rollouts_itself_is_a_signal_too(studied: None) -> None:
    recipe = {"kind": "grpo", "reward_by": "mix", "rule_weight": 0.5, "judge_weight": 1.0, "constitution": 1}
    with transaction() as session:
        judge = Judge(project_id=1, name="the scorer", kind="endpoint")
        session.add(judge)
        session.flush()
        recipe["judge"] = judge.id
        run = Run(project_id=1, kind="grpo", queue="gpu", recipe=recipe, recipe_sha256="0", status="done")
        session.add(run)
        session.flush()
        session.add(Step(
            experiment_id=1, position=99, name="grpo", seed=1, recipe={**recipe, "judge": "@judge:x"}, run_id=run.id,
            status="done",
        ))  # fmt: skip
    with reading() as session:
        experiment = get(session, Experiment, 1)
        material = read_material(session, experiment)
        alone = replace(material, steps=[step for step in material.steps if step.name == "grpo"])
        found = training_signals(session, alone)
        limits = read_report(session, experiment).limits
    assert "the scorer" in found["pku_saferlhf", "judged_safe"]
    assert found["strict_format", "format"] == "the rule rewards it in GRPO"
    assert any("“the scorer”: its scores rewarded training unprobed" in one for one in limits)


def test_trainings_started_one_by_one_make_a_report_and_a_file_that_repeats_them(reader: TestClient) -> None:
    with reading() as session:
        dpo = session.exec(select(Checkpoint).where(Checkpoint.method == "dpo").order_by(col(Checkpoint.id))).first()
        n_runs = len(session.exec(select(Run.id)).all())
    assert dpo is not None
    assert dpo.name in reader.get("/p/demo/report/collect").text
    refused = reader.post("/p/demo/report/collect", data={"form_key": "x"}, headers={"sec-fetch-site": "same-origin"})
    assert refused.status_code == 422 and "choose at least one" in refused.text
    given = {"form_key": "y", "name": "By hand", "checkpoints": str(dpo.id)}
    pages = {str(reader.post("/p/demo/report/collect", data=given).url.path) for _ in range(2)}
    (address,) = pages  # sent twice, made once
    by_hand, by_file = (reader.get(f"{one}.json").json() for one in (address, "/p/demo/report/1"))
    assert [arm["name"] for arm in by_hand["arms"]] == ["base", dpo.name]
    scores = [
        {(one["name"], metric["metric"]): [(row["run"], row["value"]) for row in metric["scores"]]
         for one in found["benchmarks"] for metric in one["metrics"]}
        for found in (by_hand, by_file)
    ]  # fmt: skip
    assert scores[0] == scores[1] and len(scores[0]) >= 5
    assert by_hand["arms"][1]["whole_cost"] == by_file["arms"][1]["whole_cost"]
    assert len(by_hand["gradings"]) == len(by_hand["audits"]) == 1
    assert reader.get(address).status_code == 200
    with transaction() as session:
        file = get(session, Experiment, int(address.rpartition("/")[2])).file
        again = start_experiment(session, session.exec(select(Project.id)).one(), file)
    run_to_the_end(again.id)
    with reading() as session:
        assert get(session, Experiment, again.id).status == "done"
        assert len(session.exec(select(Run.id)).all()) == n_runs, "every run of the file is there already"


def test_the_command_line_makes_a_report_of_checkpoints(
    studied: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "OFFERED", 0)  # one that is not among the last that the form lists
    with reading() as session:
        dpo = session.exec(select(Checkpoint.id).where(Checkpoint.method == "dpo")).first()
    assert main(["report", "--of", str(dpo), "--name", "By hand"]) in (0, None)
    said = capsys.readouterr().out
    assert "By hand" in said and "base" in said and "/report/3" in said


def test_a_collection_refuses_what_no_finished_training_made(reader: TestClient) -> None:
    said = reader.post("/api/v1/p/demo/report", json={"checkpoints": [10**9]})
    assert said.status_code == 422 and "finished training" in said.json()["error"]


def test_arms_that_left_out_different_rows_of_one_file_are_named(studied: None) -> None:
    """A second DPO on the same snapshot, with a shorter longest text: as many rows or fewer, and others."""
    with transaction() as session:
        arm = read_report(session, get(session, Experiment, 1)).arms[-1]
        assert arm.run is not None
        dpo = arm.run
        made = session.exec(select(Checkpoint).where(Checkpoint.run_id == dpo.id)).one()
        other = Run(**dpo.model_dump(exclude={"id", "form_key"}))
        other.cost = {**dpo.cost, "row_limit": 64, "left_out_rows": 3, "left_out_dev_rows": 0}
        session.add(other)
        session.flush()
        rows = {**made.facts["rows"], "sha256": "others"}
        session.add(Checkpoint(project_id=1, name="short", method="dpo", run_id=other.id, facts={"rows": rows}))
        key = other.id
    with reading() as session:
        arms = list(read_report(session, get(session, Experiment, 1)).arms)
        budget = read_budgets(session, [key])[key]
        said = say_left_out(session, [*arms, replace(arms[-1], name="short", budget=budget)])
        assert say_left_out(session, arms) == []
    assert said[0].startswith(f"3 train and 0 dev rows were left out of the dpo training of short (run {key})")
    assert said[1].startswith("Trainings on the same frozen preferences left out different rows of them")
