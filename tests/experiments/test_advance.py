"""Experiments move on by themselves: real steps, real runs, done in this process by the worker's own function."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest
from sqlmodel import Session, col, select

from app.cli.experiments import follow
from app.db import get, now, reading, transaction
from app.errors import Conflict
from app.experiments.advance import _launch, advance, advance_all
from app.experiments.board import experiment_as_json, read_board
from app.experiments.models import Experiment, Step, state_of
from app.experiments.start import cancel_experiment, find_same, retry_experiment, start_experiment
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import QUEUES, Run
from app.runs.queue import cancel, claim, finish, outputs, resume
from worker.child import work

FILE = """\
name: Imports
seeds: [3, 4]
variables: {folder: where the files lie}
steps:
  - name: judge
    shared: true
    recipe: {kind: new_judge, judge_kind: rule}
  - name: prompts
    recipe: {kind: import_prompts, path: "{folder}/prompts.jsonl"}
  - name: lost
    recipe: {kind: import_prompts, path: "{folder}/absent.jsonl"}
  - name: after_lost
    needs: [lost]
    recipe: {kind: import_prompts, shipped: demo}
  - name: after_prompts
    needs: [prompts, judge]
    recipe: {kind: import_prompts, shipped: demo, seed: 9}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f'{{"prompt": "Question {i}?", "reference": "Answer {i}"}}' for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def start(project: Project, folder: Path, text: str = FILE) -> int:
    with transaction() as session:
        given = {"folder": str(folder)} if "{folder}" in text else {}
        return start_experiment(session, project.id, text, variables=given).id


def work_off(*kinds: str) -> int:
    """Does what is queued, as a worker would; returns how many runs that were."""
    n = 0
    while True:
        with transaction() as session:
            run = claim(session, QUEUES, "test", None)
        if run is None:
            return n
        work(run.id, run.attempt)
        n += 1


def run_to_end(experiment_id: int, most: int = 20) -> Experiment:
    for _ in range(most):
        advance_all()
        work_off()
        with reading() as session:
            experiment = get(session, Experiment, experiment_id)
        if experiment.status != "running":
            return experiment
    raise AssertionError("the experiment does not end")


def steps_of(session: Session, experiment_id: int) -> dict[tuple[str, int], Step]:
    rows = session.exec(select(Step).where(Step.experiment_id == experiment_id)).all()
    return {(row.name, row.seed): row for row in rows}


def test_steps_wait_for_what_they_need_and_a_failure_stops_only_what_needs_it(project: Project, folder: Path) -> None:
    experiment_id = start(project, folder)
    advance_all()
    with reading() as session:
        before = {key: step.status for key, step in steps_of(session, experiment_id).items()}
    assert before["prompts", 3] == before["judge", 0] == "launched" and before["after_prompts", 3] == "waiting"
    experiment = run_to_end(experiment_id)
    assert experiment.status == "failed" and experiment.ended_at is not None
    with reading() as session:
        steps = steps_of(session, experiment_id)
        seeds = {seed: get(session, Run, steps["prompts", seed].run_id or 0).recipe["seed"] for seed in (3, 4)}
    assert {key: step.status for key, step in steps.items()} == {
        ("judge", 0): "done",
        **{("prompts", seed): "done" for seed in (3, 4)},
        **{("lost", seed): "failed" for seed in (3, 4)},
        **{("after_lost", seed): "skipped" for seed in (3, 4)},
        **{("after_prompts", seed): "done" for seed in (3, 4)},
    }
    assert seeds == {3: 3, 4: 4}  # the experiment's seed, unless the file fixes it
    assert "absent.jsonl" in steps["lost", 3].error
    assert steps["after_lost", 3].error == "It needs “lost”, which failed."
    assert steps["after_prompts", 3].run_id == steps["after_prompts", 4].run_id  # the same recipe: one run


def test_a_reference_becomes_the_row_that_the_step_made(project: Project, folder: Path) -> None:
    text = """\
name: References
steps:
  - name: prompts
    recipe: {kind: import_prompts, shipped: demo, name: by hand}
  - name: base
    recipe: {kind: demo_base, steps: 2, batch_size: 4, hidden: 32, mlp: 32, layers: 1, heads: 2}
  - name: scored
    recipe: {kind: benchmark, benchmark: strict_format, checkpoint: "@base", prompt_set: "@prompts", limit: 2}
  - name: by_name
    needs: [prompts]
    recipe: {kind: benchmark, benchmark: strict_format, checkpoint: "@base", prompt_set: "@prompt_set:by hand"}
  - name: by_wrong_name
    needs: [prompts]
    recipe: {kind: benchmark, benchmark: strict_format, checkpoint: "@base", prompt_set: "@prompt_set:unknown"}
  - name: made_nothing_such
    recipe: {kind: benchmark, benchmark: strict_format, checkpoint: "@prompts", prompt_set: "@prompts"}
"""
    experiment_id = start(project, folder, text)
    for _ in range(3):
        advance_all()
        work_off()
    with reading() as session:
        steps = steps_of(session, experiment_id)
        made = outputs(session, steps["prompts", 1].run_id or 0, "prompt_set")
        base = outputs(session, steps["base", 1].run_id or 0, "checkpoint")
        for name in ("scored", "by_name"):
            recipe = get(session, Run, steps[name, 1].run_id or 0).recipe
            assert [recipe["prompt_set"]] == made and [recipe["checkpoint"]] == base
    assert "no prompt set called “unknown”" in steps["by_wrong_name", 1].error
    assert "step “prompts” made no checkpoint" in steps["made_nothing_such", 1].error


SIMPLE = """\
name: Simple
steps:
  - name: prompts
    recipe: {kind: import_prompts, shipped: demo}
  - name: later
    needs: [prompts]
    recipe: {kind: import_prompts, shipped: demo, dev_share: 0.2}
"""


def test_the_same_work_is_not_done_twice(project: Project, folder: Path) -> None:
    first = start(project, folder, SIMPLE)
    assert run_to_end(first).status == "done"
    second = start(project, folder, SIMPLE)
    for _ in range(4):
        advance_all()
    with reading() as session:
        assert get(session, Experiment, second).status == "done" and work_off() == 0
        before, after = steps_of(session, first), steps_of(session, second)
        assert [step.is_reused for step in after.values()] == [True, True]
        assert {s.run_id for s in before.values()} == {s.run_id for s in after.values()}
        made = outputs(session, before["prompts", 1].run_id or 0, "prompt_set")[0]
    with transaction() as session:  # what was made is put away: it must be made again
        get(session, PromptSet, made).archived_at = now()
    third = start(project, folder, SIMPLE)
    advance_all()
    with reading() as session:
        assert not steps_of(session, third)["prompts", 1].is_reused


@pytest.mark.parametrize("is_dated_back", [False, True])
def test_an_import_whose_file_has_changed_is_done_again(project: Project, folder: Path, is_dated_back: bool) -> None:
    text = SIMPLE.replace("shipped: demo}", 'path: "{folder}/prompts.jsonl"}', 1).replace(
        "steps:", "variables: {folder: f}\nsteps:", 1
    )
    first = start(project, folder, text)
    assert run_to_end(first).status == "done"
    (folder / "prompts.jsonl").write_text('{"prompt": "A new question?"}\n' * 1)
    if is_dated_back:  # as cp -p, tar and rsync do
        os.utime(folder / "prompts.jsonl", (1, 1))
    second = start(project, folder, text)
    assert run_to_end(second).status == "done"
    with reading() as session:
        steps = steps_of(session, second)
        assert (steps["prompts", 1].is_reused, steps["later", 1].is_reused) == (False, True)


def test_many_tickers_launch_each_step_once(project: Project, folder: Path) -> None:
    text = "name: Wide\nsteps:\n" + "".join(
        f"  - {{name: s{i}, recipe: {{kind: import_prompts, shipped: demo, seed: {i + 1}}}}}\n" for i in range(12)
    )
    experiment_id = start(project, folder, text)
    with ThreadPoolExecutor(6) as tickers:
        for ticker in [tickers.submit(advance, experiment_id) for _ in range(18)]:
            ticker.result()
    with reading() as session:
        runs = session.exec(select(Run.id).order_by(col(Run.id))).all()
        steps = steps_of(session, experiment_id)
    assert len(runs) == 12 and {step.run_id for step in steps.values()} == set(runs)


def test_a_failed_step_is_tried_again_and_what_was_skipped_follows(project: Project, folder: Path) -> None:
    text = FILE.replace("seeds: [3, 4]", "seeds: [3]")
    experiment_id = start(project, folder, text)
    assert run_to_end(experiment_id).status == "failed"
    with reading() as session:
        run_id = steps_of(session, experiment_id)["lost", 3].run_id
    (folder / "absent.jsonl").write_text((folder / "prompts.jsonl").read_text())
    with transaction() as session:
        retry_experiment(session, get(session, Experiment, experiment_id))
    assert run_to_end(experiment_id).status == "done"
    with reading() as session:
        steps = steps_of(session, experiment_id)
        assert {step.status for step in steps.values()} == {"done"} and steps["lost", 3].run_id == run_id


def test_cancel_stops_and_retry_goes_on(project: Project, folder: Path) -> None:
    experiment_id = start(project, folder, SIMPLE)
    advance_all()
    with transaction() as session:
        cancel_experiment(session, get(session, Experiment, experiment_id))
    advance_all()
    assert work_off() == 0
    with reading() as session:
        states = {step.name: step.status for step in steps_of(session, experiment_id).values()}
        assert states == {"prompts": "failed", "later": "skipped"}
    with transaction() as session:
        retry_experiment(session, get(session, Experiment, experiment_id))
    assert run_to_end(experiment_id).status == "done"


ONE = "name: One\nsteps:\n  - {name: judge, recipe: {kind: new_judge, judge_kind: rule}}\n"


def test_a_cancel_in_the_middle_of_a_launch_stops_the_run(project: Project, folder: Path) -> None:
    key = start(project, folder, ONE)

    def stop() -> None:
        with transaction() as session:
            cancel_experiment(session, get(session, Experiment, key))

    with ThreadPoolExecutor(1) as pool:
        with transaction() as session:
            _launch(session, key, session.exec(select(Step).where(Step.experiment_id == key)).one(), {})
            session.flush()
            cancelling = pool.submit(stop)
            sleep(0.3)
        cancelling.result(20)
    with reading() as session:
        step = session.exec(select(Step).where(Step.experiment_id == key)).one()
        assert get(session, Run, step.run_id or 0).status == "cancelled", step.status


def test_two_experiments_that_come_to_the_same_step_at_once_share_its_run(project: Project, folder: Path) -> None:
    keys = [start(project, folder, ONE) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        with transaction() as session:
            _launch(session, keys[0], session.exec(select(Step).where(Step.experiment_id == keys[0])).one(), {})
            session.flush()
            other = pool.submit(advance, keys[1])
            sleep(0.3)
        other.result(20)
    with reading() as session:
        assert len(session.exec(select(Run)).all()) == 1
        assert [step.is_reused for step in session.exec(select(Step).order_by(col(Step.id)))] == [False, True]


def words(experiment_id: int) -> dict[str, tuple[str, str]]:
    """What a reader is told of the experiment and of each step, on the board and in the API."""
    with reading() as session:
        experiment = get(session, Experiment, experiment_id)
        board, found = read_board(session, experiment), experiment_as_json(session, experiment)
        assert state_of(session, experiment) == board.state == found["status"]
        assert [one["status"] for one in found["steps"]] == [cell.state for cell in board.cells]
        said = {cell.step.name: (cell.state, cell.step.error) for cell in board.cells}
        return {"": (board.state, ""), **said}


def test_a_cancelled_run_is_no_failure_and_what_needs_it_says_so(project: Project, folder: Path) -> None:
    experiment_id = start(project, folder, SIMPLE)
    advance_all()
    with transaction() as session:
        cancel(session, session.exec(select(Run)).one())
    assert run_to_end(experiment_id).status == "cancelled"
    assert words(experiment_id) == {
        "": ("cancelled", ""), "prompts": ("cancelled", "Run 1 was cancelled."),
        "later": ("skipped", "It needs “prompts”, which was cancelled."),
    }  # fmt: skip


def test_a_cancelled_experiment_says_what_was_running_and_what_never_began(project: Project, folder: Path) -> None:
    experiment_id = start(project, folder, SIMPLE)
    advance_all()
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
        assert run is not None
    with transaction() as session:
        cancel_experiment(session, get(session, Experiment, experiment_id))
    never = ("skipped", "The experiment was cancelled before this step began.")
    assert words(experiment_id) == {"": ("cancelled", ""), "prompts": ("cancelling", ""), "later": never}
    with transaction() as session, pytest.raises(Conflict, match="still being cancelled"):
        retry_experiment(session, get(session, Experiment, experiment_id))
    work(run.id, run.attempt)
    advance_all()
    assert words(experiment_id)["prompts"] == ("cancelled", f"Run {run.id} was cancelled.")
    with transaction() as session:
        retry_experiment(session, get(session, Experiment, experiment_id))
    assert run_to_end(experiment_id).status == "done"


def test_a_paused_run_holds_its_experiment_until_it_is_resumed(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment_id = start(project, folder, SIMPLE)
    advance_all()
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
        assert run is not None
        finish(session, run.id, run.attempt, "cancelled", "Paused after step 3: look at ten pairs.")
    advance_all()
    assert words(experiment_id) == {"": ("paused", ""), "prompts": ("paused", ""), "later": ("waiting", "")}
    with reading() as session:
        left = follow(get(session, Experiment, experiment_id), None)  # the terminal does not wait for people
    assert left.status == "running" and f"prompts: preflab runs resume {run.id}" in capsys.readouterr().out
    with transaction() as session:
        resume(session, get(session, Run, run.id))
    assert words(experiment_id)[""] == ("running", "")
    assert run_to_end(experiment_id).status == "done"


def test_the_same_experiment_is_found_again(project: Project, folder: Path) -> None:
    experiment_id = start(project, folder, SIMPLE)
    with reading() as session:
        same = find_same(session, project.id, SIMPLE, seeds=[1])
        assert same is not None and same.id == experiment_id
        assert find_same(session, project.id, SIMPLE, seeds=[2]) is None
        assert find_same(session, project.id, SIMPLE + "# changed\n", seeds=[1]) is None
