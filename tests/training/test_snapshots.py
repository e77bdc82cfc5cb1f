"""Snapshots on both databases: what they hold, that they are the same twice, when they are stale, training again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from app.accounts.models import Account
from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import engine, get, now, reading, transaction
from app.errors import Conflict, Invalid
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.projects.models import Project
from app.prompts.models import Prompt
from app.review.answers import as_shown, change_answer, give_answer
from app.review.models import Answer, JudgeCard, Queue
from app.review.queues import claim_place
from app.runs.models import Run, RunIo, RunNeed
from app.runs.queue import launch
from app.training.diff import diff_snapshots
from app.training.models import Snapshot
from app.training.recipes import PpoRecipe, RewardRecipe, SftRecipe
from app.training.snapshots import SnapshotRecipe
from app.training.stale import count_changed_labels, retrain, stale_rows
from tests.review.rows import do, do_run, make_pairs, make_person, make_run, make_verdicts
from worker.preferences import read_preferences

SPLITS = ("train", "train", "dev", "test", "train", "ood", "dev")


@pytest.fixture
def verdicts(project: Project) -> VerdictSet:
    """70 pairs over all splits."""
    with transaction() as session:
        pairs = make_pairs(session, project, 70, SPLITS)
        return make_verdicts(session, project, pairs, ["a", "b", "a", "tie", None, "b", "a", "b", "a", "a", "b"])


def answer(verdicts: VerdictSet, pair_id: int, choice: str) -> int:
    """The owner's answer to one pair, in the pair's own frame; returns its id."""
    with transaction() as session:
        me = session.exec(select(Account.id)).one()
        queue = Queue(project_id=verdicts.project_id, name="q", verdict_set_id=verdicts.id, kind="repair", n=1)
        session.add(queue)
        session.flush()
        session.add(Answer(queue_id=queue.id, pair_id=pair_id))
        session.flush()
        row = claim_place(session, queue, me)
        assert row is not None
        give_answer(session, row, queue, me, str(as_shown(choice, row.is_swapped)))
        return row.id


def pick(verdicts: VerdictSet, outcome: str | None, split: str = "train") -> int:
    """A pair with this verdict on this split."""
    with reading() as session:
        return session.exec(
            select(Verdict.pair_id)
            .join(Pair, col(Pair.id) == col(Verdict.pair_id))
            .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
            .where(Verdict.verdict_set_id == verdicts.id, Prompt.split == split)
            .where(col(Verdict.outcome).is_(None) if outcome is None else Verdict.outcome == outcome)
            .limit(1)
        ).one()


def freeze(project: Project, verdicts: VerdictSet) -> tuple[Snapshot, list[dict[str, Any]], Path]:
    """A snapshot, its rows and its file."""
    run = do(project, SnapshotRecipe(verdict_set=verdicts.id))
    with reading() as session:
        row = session.exec(select(Snapshot).where(Snapshot.run_id == run.id)).one()
        assert session.exec(select(RunIo.sha256).where(RunIo.run_id == run.id, RunIo.is_output)).one() == row.sha256
    path = settings().data_path / row.path
    return row, [json.loads(line) for line in path.read_text().splitlines()], path


def test_snapshot_holds_preferences_of_train_and_dev_only(project: Project, verdicts: VerdictSet) -> None:
    snapshot, rows, path = freeze(project, verdicts)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == snapshot.sha256
    assert {row["split"] for row in rows} == {"train", "dev"}
    with reading() as session:
        expected = {}
        for verdict in session.exec(select(Verdict).where(Verdict.verdict_set_id == verdicts.id)):
            pair = get(session, Pair, verdict.pair_id)
            if SPLITS[pair.position % 7] in {"train", "dev"} and verdict.outcome in {"a", "b"}:
                a, b = get(session, Completion, pair.a_id).text, get(session, Completion, pair.b_id).text
                expected[pair.id] = (a, b) if verdict.outcome == "a" else (b, a)
    assert {row["pair"]: (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows} == expected
    assert rows[0]["prompt"][0]["role"] == "user" and rows[0]["reference"].startswith("City")
    counts = snapshot.counts
    assert snapshot.n_train + snapshot.n_dev == len(rows) == counts["train"] + counts["dev"]
    assert counts["pairs"] == 70 == len(rows) + counts["held_out"] + counts["ties"] + counts["unreadable"]
    assert counts["held_out"] == 20
    read = read_preferences(path, snapshot.sha256)  # as the trainers read it
    assert (len(read.train), len(read.dev)) == (snapshot.n_train, snapshot.n_dev)
    groups = [{row["group"] for row in rows if row["split"] == split} for split in ("train", "dev")]
    assert not groups[0] & groups[1]


def test_the_same_labels_freeze_to_the_same_bytes(project: Project, verdicts: VerdictSet) -> None:
    assert freeze(project, verdicts)[0].sha256 == freeze(project, verdicts)[0].sha256


def test_overrides_beat_verdicts_and_are_counted(project: Project, verdicts: VerdictSet) -> None:
    before = freeze(project, verdicts)[0]
    turned, unreadable, bad, tied = (
        pick(verdicts, "a"), pick(verdicts, None), pick(verdicts, "b"), pick(verdicts, "tie")
    )  # fmt: skip
    for pair, choice in ((turned, "b"), (unreadable, "a"), (bad, "both_bad"), (tied, "b")):
        answer(verdicts, pair, choice)
    with transaction() as session:  # chosen on one side of a pair, rejected on the other
        for pair_id, side in ((turned, "b_id"), (tied, "a_id")):
            get(session, Completion, getattr(get(session, Pair, pair_id), side)).stop_reason = "length"
    after, rows, _ = freeze(project, verdicts)
    assert (before.counts["cut"], after.counts["cut"]) == (0, 1)
    by_pair = {row["pair"]: row for row in rows}
    assert by_pair[turned]["chosen"][0]["content"].endswith("says b.")
    assert by_pair[unreadable]["chosen"][0]["content"].endswith("says a.")
    assert by_pair[tied]["chosen"][0]["content"].endswith("says b.")
    assert bad not in by_pair
    assert (after.counts["overridden"], after.counts["both_bad"]) == (4, 1)
    assert after.counts["unreadable"] == before.counts["unreadable"] - 1
    assert after.counts["ties"] == before.counts["ties"] - 1
    assert after.labels_version == 4
    with reading() as session:
        assert count_changed_labels(session, get(session, Snapshot, before.id)) == 4
        assert count_changed_labels(session, get(session, Snapshot, after.id)) == 0


def test_pairs_on_which_people_split_evenly_are_not_trained_on(project: Project, verdicts: VerdictSet) -> None:
    pair, before = pick(verdicts, "a"), freeze(project, verdicts)[0]
    with transaction() as session:
        people = [make_person(session, project, name, "grader")[0].id for name in ("one", "two", "three")]
        queue = Queue(project_id=project.id, name="q", verdict_set_id=verdicts.id, kind="repair", n=1, overlap=3)
        session.add(queue)
        session.flush()
        session.add_all(Answer(queue_id=queue.id, pair_id=pair, place=place) for place in range(3))

    def say(who: int, choice: str) -> None:
        with transaction() as session:
            row = claim_place(session, queue, who)
            assert row is not None
            give_answer(session, row, queue, who, str(as_shown(choice, row.is_swapped)))

    say(people[0], "a")
    say(people[1], "b")
    after, rows, _ = freeze(project, verdicts)
    assert pair not in {row["pair"] for row in rows} and after.counts["unsettled"] == 1
    assert after.counts["overridden"] == 0 and after.n_train == before.n_train - 1
    with reading() as session:
        assert count_changed_labels(session, get(session, Snapshot, before.id)) == 1
        (changed,) = diff_snapshots(session, before, after).changed
        assert (changed.pair_id, changed.before, changed.after, changed.change) == (pair, "a", "unsettled", "removed")
    say(people[2], "b")  # a majority: settled against the verdict
    rows = freeze(project, verdicts)[1]
    assert next(row for row in rows if row["pair"] == pair)["chosen"][0]["content"].endswith("says b.")


def test_only_labels_that_are_trained_on_make_stale(project: Project, verdicts: VerdictSet) -> None:
    snapshot = freeze(project, verdicts)[0]
    answer(verdicts, pick(verdicts, "a", "test"), "b")  # never trained on
    with reading() as session:
        assert get(session, PairSet, verdicts.pair_set_id).labels_version == 1
        assert count_changed_labels(session, snapshot) == 0
    pair = pick(verdicts, "a")
    answer_id = answer(verdicts, pair, "b")
    with transaction() as session:
        assert count_changed_labels(session, snapshot) == 1
        row = get(session, Answer, answer_id)
        queue = get(session, Queue, row.queue_id)
        assert row.account_id is not None
        change_answer(session, row, queue, row.account_id, str(as_shown("a", row.is_swapped)))
        assert count_changed_labels(session, snapshot) == 0  # undone


def train_on(project: Project, snapshot: Snapshot) -> tuple[Run, Checkpoint]:
    """A training run as its rows would stand once it is done."""
    with transaction() as session:
        base = session.exec(select(Checkpoint).where(Checkpoint.method == "base")).first()
        if base is None:
            base = Checkpoint(project_id=project.id, name="base", method="base")
            session.add(base)
            session.flush()
        run = launch(session, SftRecipe(start=base.id, snapshot=snapshot.id, lr=0.01), project_id=project.id)
        run.status = "done"
        made = Checkpoint(project_id=project.id, name="sft", method="sft", run_id=run.id, parent_id=base.id)
        session.add(made)
        session.flush()
        session.add(RunIo(run_id=run.id, is_output=True, noun="checkpoint", ref_id=made.id))
        return run, made


def test_staleness_reaches_what_was_trained_on_it(project: Project, verdicts: VerdictSet) -> None:
    snapshot = freeze(project, verdicts)[0]
    run, made = train_on(project, snapshot)
    with transaction() as session:
        later = make_run(session, project, "ppo")
        policy = Checkpoint(project_id=project.id, name="ppo", method="ppo", run_id=later.id)
        session.add(policy)
        session.flush()
        session.add(RunIo(run_id=later.id, is_output=False, noun="checkpoint", ref_id=made.id))
        session.add(RunIo(run_id=later.id, is_output=True, noun="checkpoint", ref_id=policy.id))
        assert stale_rows(session, project.id) == {"snapshot": {}, "run": {}, "checkpoint": {}}
    answer(verdicts, pick(verdicts, "a"), "b")
    with reading() as session:
        assert stale_rows(session, project.id) == {
            "snapshot": {snapshot.id: 1}, "run": {run.id: 1, later.id: 1}, "checkpoint": {made.id: 1, policy.id: 1}
        }  # fmt: skip


def test_staleness_goes_from_snapshot_to_reward_model_to_ppo(project: Project, verdicts: VerdictSet) -> None:
    snapshot = freeze(project, verdicts)[0]
    with transaction() as session:
        base = Checkpoint(project_id=project.id, name="base", method="base")
        session.add(base)
        session.flush()
        scoring = launch(session, RewardRecipe(start=base.id, snapshot=snapshot.id), project_id=project.id)
        reward = Checkpoint(project_id=project.id, name="rm", method="reward", role="reward", run_id=scoring.id)
        session.add(reward)
        session.flush()
        session.add(RunIo(run_id=scoring.id, is_output=True, noun="checkpoint", ref_id=reward.id))
        prompts = get(session, PairSet, verdicts.pair_set_id).prompt_set_id
        recipe = PpoRecipe(start=base.id, reference=base.id, reward=reward.id, prompt_set=prompts)
        improving = launch(session, recipe, project_id=project.id)
        policy = Checkpoint(project_id=project.id, name="ppo", method="ppo", run_id=improving.id, parent_id=base.id)
        session.add(policy)
        session.flush()
        session.add(RunIo(run_id=improving.id, is_output=True, noun="checkpoint", ref_id=policy.id))
    answer(verdicts, pick(verdicts, "a"), "b")
    answer(verdicts, pick(verdicts, "b"), "a")
    with reading() as session:
        assert stale_rows(session, project.id) == {
            "snapshot": {snapshot.id: 2}, "run": {scoring.id: 2, improving.id: 2},
            "checkpoint": {reward.id: 2, policy.id: 2},
        }  # fmt: skip  # the base itself learned from no label


def make_card(verdicts: VerdictSet, is_passed: bool | None) -> JudgeCard:
    """A finished card of the verdicts' judge under their constitution."""
    line = {"key": "flip", "name": "Position flips", "value": 0.4, "low": 0.3, "high": 0.5, "n": 200, "limit": 0.2,
            "is_at_least": False, "is_gated": True, "is_passed": is_passed,
            "state": {True: "passed", False: "failed", None: "undecided"}[is_passed], "more": None,
            "explanation": ""}  # fmt: skip
    with transaction() as session:
        card = JudgeCard(
            project_id=verdicts.project_id, judge_id=verdicts.judge_id, constitution_id=verdicts.constitution_id,
            pair_set_id=verdicts.pair_set_id, lines=[line], n=500, is_passed=is_passed,
        )  # fmt: skip
        session.add(card)
        session.flush()
        return card


def test_a_failed_judges_labels_need_a_reason(project: Project, verdicts: VerdictSet) -> None:
    freeze(project, verdicts)  # no card: nothing is asked
    make_card(verdicts, None)
    freeze(project, verdicts)  # undecided: nothing is asked either
    card = make_card(verdicts, False)
    for waiver in ("", "because", "          because          "):
        with (
            transaction() as session,
            pytest.raises(Invalid, match=r"failed its Judge Card .*flips 0.40 \[0.30, 0.50\]") as e,
        ):
            launch(session, SnapshotRecipe(verdict_set=verdicts.id, waiver=waiver), project_id=project.id)
        assert str(card.id) in e.value.fields["waiver"][0]
    make_card(verdicts, None)  # an undecided card undoes nothing
    with transaction() as session, pytest.raises(Invalid):
        launch(session, SnapshotRecipe(verdict_set=verdicts.id), project_id=project.id)
    why = "  To show what position flips do to DPO.  "
    run = do(project, SnapshotRecipe(verdict_set=verdicts.id, waiver=why))
    with reading() as session:
        assert session.exec(select(Snapshot).where(Snapshot.run_id == run.id)).one().waiver == why.strip()
    make_card(verdicts, True)
    freeze(project, verdicts)  # the newest that decided has passed


def test_a_card_that_fails_after_the_launch_still_holds_the_gate(project: Project, verdicts: VerdictSet) -> None:
    with transaction() as session:
        run_id = launch(session, SnapshotRecipe(verdict_set=verdicts.id), project_id=project.id).id
    make_card(verdicts, False)
    with pytest.raises(AssertionError, match="failed its Judge Card"):
        do_run(run_id)
    with reading() as session:
        assert session.exec(select(Snapshot)).all() == []


def test_the_judges_probability_goes_along_unless_a_person_has_spoken(project: Project, verdicts: VerdictSet) -> None:
    sure, against, mended = pick(verdicts, "a"), pick(verdicts, "b"), pick(verdicts, "tie")
    with transaction() as session:
        for pair, p_a in ((sure, 0.9), (against, 0.25), (mended, 0.5)):
            row = session.exec(
                select(Verdict).where(Verdict.verdict_set_id == verdicts.id, Verdict.pair_id == pair)
            ).one()
            row.p_a = p_a
    answer(verdicts, mended, "a")
    by_pair = {row["pair"]: row for row in freeze(project, verdicts)[1]}
    assert (by_pair[sure]["p_chosen"], by_pair[against]["p_chosen"]) == (0.9, 0.75)
    assert sum("p_chosen" in row for row in by_pair.values()) == 2


def test_verdicts_that_were_put_away_freeze_to_nothing(project: Project, verdicts: VerdictSet) -> None:
    with transaction() as session:
        get(session, VerdictSet, verdicts.id).archived_at = now()
    with transaction() as session, pytest.raises(Invalid, match="put away"):
        launch(session, SnapshotRecipe(verdict_set=verdicts.id), project_id=project.id)


def test_train_again_freezes_the_new_labels_and_waits_for_them(project: Project, verdicts: VerdictSet) -> None:
    snapshot = freeze(project, verdicts)[0]
    run, _ = train_on(project, snapshot)
    with transaction() as session, pytest.raises(Conflict, match="nothing new"):
        retrain(session, get(session, Run, run.id), 1)
    pair = pick(verdicts, "a")
    answer(verdicts, pair, "b")
    with transaction() as session:
        me = session.exec(select(Account.id)).one()
        again = retrain(session, get(session, Run, run.id), me)
        assert retrain(session, get(session, Run, run.id), me).id == again.id  # a double click is one training
        new = get(session, Snapshot, again.recipe["snapshot"])
        assert new.state == "writing" and new.run_id is not None
        assert {k: v for k, v in again.recipe.items() if k != "snapshot"} == {
            k: v for k, v in run.recipe.items() if k != "snapshot"
        }
        assert session.exec(select(RunNeed.needs_id).where(RunNeed.run_id == again.id)).all() == [new.run_id]
    do_run(new.run_id)
    with reading() as session:
        new = get(session, Snapshot, new.id)
        assert new.state == "ready" and new.counts["overridden"] == 1
        rows = [json.loads(line) for line in (settings().data_path / new.path).read_text().splitlines()]
        assert next(row for row in rows if row["pair"] == pair)["chosen"][0]["content"].endswith("says b.")
        assert len(session.exec(select(Snapshot)).all()) == 2
    with transaction() as session, pytest.raises(Invalid, match="reads no preferences"):
        retrain(session, make_run(session, project, "ppo"), me)


def test_a_set_without_preferences_is_refused(project: Project) -> None:
    with transaction() as session:
        empty = make_verdicts(session, project, make_pairs(session, project, 6), ["tie", None])
    with pytest.raises(AssertionError, match=r"gives no preference on the train split: .*3 ties, 3 unreadable"):
        do(project, SnapshotRecipe(verdict_set=empty.id))
    with transaction() as session:
        assert session.exec(select(Snapshot)).all() == []
        judging = session.exec(select(Run).where(Run.kind == "judge")).one()
        judging.status = "running"
    with pytest.raises(AssertionError, match="still being judged"):
        do(project, SnapshotRecipe(verdict_set=empty.id))


def test_labels_that_move_while_the_file_is_written_are_in_it(project: Project, verdicts: VerdictSet) -> None:
    pair = pick(verdicts, "a")
    writings = [0]

    def meddle(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "reference" in statement and "JOIN completion" in statement:
            writings[0] += 1
            if writings[0] == 1:
                answer(verdicts, pair, "b")

    sa.event.listen(engine(), "before_cursor_execute", meddle)
    snapshot, rows, _ = freeze(project, verdicts)
    assert writings[0] > 1 and snapshot.labels_version == 1
    assert next(row for row in rows if row["pair"] == pair)["chosen"][0]["content"].endswith("says b.")
