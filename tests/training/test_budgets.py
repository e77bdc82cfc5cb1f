"""What an arm has cost: summed over lineage, each run once, shared runs told, labels counted once."""

import pytest
from sqlmodel import Session

from app.db import reading, transaction
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import Run, RunIo
from app.training.budgets import compare_labels, cost_of, read_budgets, runs_behind
from app.training.models import Snapshot


def add_run(
    session: Session, kind: str, cost: dict[str, float], reads: list[tuple[str, int]], makes: list[tuple[str, int]]
) -> int:
    queue = "io" if kind == "judge" else "gpu"
    run = Run(project_id=1, kind=kind, queue=queue, recipe={"kind": kind}, recipe_sha256="0", status="done", cost=cost)
    session.add(run)
    session.flush()
    for is_output, rows in ((False, reads), (True, makes)):
        session.add_all(RunIo(run_id=run.id, is_output=is_output, noun=noun, ref_id=key) for noun, key in rows)
    return run.id


@pytest.fixture
def study(database: str) -> dict[str, int]:
    """base → pairs → verdicts → snapshot → reward → ppo, and snapshot → dpo."""
    with transaction() as session:
        session.add(Project(id=1, slug="demo", name="Demo"))
        session.flush()
        session.add(PromptSet(id=1, project_id=1, name="p", state="ready"))
        session.add(Judge(id=1, project_id=1, name="rule", kind="rule"))
        session.flush()
        session.add(PairSet(id=1, project_id=1, name="pairs", prompt_set_id=1))
        session.flush()
        session.add(VerdictSet(id=1, project_id=1, name="v", pair_set_id=1, judge_id=1))
        session.flush()
        session.add(
            Snapshot(id=1, project_id=1, name="s", pair_set_id=1, verdict_set_id=1, labels_version=0, n_train=90)
        )
        session.flush()
        arm = ("arm", 9)  # noted by whoever meets it: joins nothing
        return {
            "base": add_run(
                session, "demo_base", {"trained_tokens": 1000, "wall_seconds": 30}, [], [("checkpoint", 1)]
            ),
            "pairs": add_run(
                session,
                "generate",
                {"generated_tokens": 500, "wall_seconds": 5},
                [("checkpoint", 1)],
                [("pair_set", 1), arm],
            ),
            "verdicts": add_run(
                session,
                "judge",
                {"judge_calls": 100, "labels": 100, "wall_seconds": 7, "usd": 0.5},
                [("pair_set", 1)],
                [("verdict_set", 1)],
            ),
            "snapshot": add_run(session, "snapshot", {}, [("verdict_set", 1)], [("snapshot", 1)]),
            "reward": add_run(
                session,
                "reward",
                {"labels": 90, "trained_tokens": 200, "wall_seconds": 9},
                [("checkpoint", 1), ("snapshot", 1)],
                [("checkpoint", 2)],
            ),
            "ppo": add_run(
                session,
                "ppo",
                {"generated_tokens": 700, "trained_tokens": 5600, "wall_seconds": 20},
                [("checkpoint", 1), ("checkpoint", 2)],
                [("checkpoint", 3)],
            ),
            "dpo": add_run(
                session,
                "dpo",
                {"labels": 90, "trained_tokens": 200, "wall_seconds": 11},
                [("checkpoint", 1), ("snapshot", 1)],
                [("checkpoint", 4)],
            ),
            "scored": add_run(session, "benchmark", {"generated_tokens": 9999}, [("checkpoint", 4)], [arm]),
        }


def test_a_budget_is_the_sum_over_lineage_with_each_run_once(study: dict[str, int]) -> None:
    with reading() as session:
        found = read_budgets(session, [study["ppo"], study["dpo"]])
        behind = runs_behind(session, [study["ppo"]])[study["ppo"]]
    assert behind == {study[name] for name in ("base", "pairs", "verdicts", "snapshot", "reward", "ppo")}
    ppo, dpo = found[study["ppo"]], found[study["dpo"]]
    assert ppo.total == {
        "labels": 90, "judge_calls": 100, "generation_calls": 0, "generated_tokens": 1200,
        "trained_tokens": 1000 + 200 + 5600,
        "device_seconds": 30 + 5 + 9 + 20, "cpu_seconds": 0, "usd": 0.5,
    }  # fmt: skip
    assert (dpo.total["generated_tokens"], dpo.total["device_seconds"]) == (500, 46)
    assert dpo.own["trained_tokens"] == 200 and dpo.labels == ppo.labels == 90


@pytest.mark.parametrize(
    "cost",
    [{"judge_calls": 24, "judge_tokens": 900, "usd": 0.1}, {"generation_calls": 24, "usd": 0.1},
     {"generation_calls": 4, "judge_calls": 20, "usd": 0.1}],
    ids=["an early version", "this version", "begun by one and ended by the other"],
)  # fmt: skip
def test_calls_that_revise_are_no_judge_s(study: dict[str, int], cost: dict[str, float]) -> None:
    with transaction() as session:
        revised = add_run(session, "revise", cost, [("checkpoint", 1)], [("pair_set", 7)])
        trained = add_run(session, "sft", {"trained_tokens": 5}, [("pair_set", 7)], [("checkpoint", 8)])
    with reading() as session:
        total = read_budgets(session, [trained])[trained].total
        assert (total["judge_calls"], total["generation_calls"], total["usd"]) == (0, 24, 0.1)
        run = session.get(Run, revised)
        assert run is not None and run.spent["generation_calls"] == 24 and "judge_calls" not in run.spent


def test_what_other_arms_grew_from_too_is_told(study: dict[str, int]) -> None:
    with reading() as session:
        both = read_budgets(session, [study["ppo"], study["dpo"]])[study["ppo"]]
        alone = read_budgets(session, [study["ppo"]])[study["ppo"]]
        beside = read_budgets(session, [study["ppo"]], others=[study["dpo"]])[study["ppo"]]
    assert {one.run.id for one in both.spent if one.shared_with} == {
        study[name] for name in ("base", "pairs", "verdicts", "snapshot")
    }
    assert both.shared["trained_tokens"] == 1000 and both.shared["judge_calls"] == 100
    assert beside.shared == both.shared and alone.shared["trained_tokens"] == 0


def test_labels_frozen_twice_are_counted_once(study: dict[str, int]) -> None:
    """One arm is trained by SFT on the first freezing and by DPO on the second, beside one on the first alone."""
    with transaction() as session:
        again = Snapshot(
            id=2, project_id=1, name="again", pair_set_id=1, verdict_set_id=1, labels_version=1, n_train=95
        )
        session.add(again)
        session.flush()
        frozen = add_run(session, "snapshot", {}, [("verdict_set", 1)], [("snapshot", 2)])
        sft = add_run(session, "sft", {"labels": 90}, [("checkpoint", 1), ("snapshot", 1)], [("checkpoint", 21)])
        both = add_run(session, "dpo", {"labels": 95}, [("checkpoint", 21), ("snapshot", 2)], [("checkpoint", 22)])
    with reading() as session:
        found = read_budgets(session, [both, study["dpo"]])
        runs = [session.get_one(Run, key) for key in (study["verdicts"], frozen, sft, both, study["dpo"])]
        together = cost_of(session, runs)
    assert found[both].labels == found[both].total["labels"] == 95 and found[study["dpo"]].labels == 90
    assert (
        found[both].shared["labels"] == 0
    )  # they share base, pairs, verdicts and a freezing, which trained on nothing
    assert (together["labels"], together["judge_calls"]) == (95, 100)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"dpo": 90, "ppo": 90}, "Labels are equal: each trained arm could learn from 90."),
        ({"dpo": 1100, "grpo": 0}, "Labels are not equal: dpo 1,100, grpo none."),
        ({"dpo": 90, "ppo": 30}, "Labels are not equal: dpo 90, ppo 30."),
        ({"grpo": 0}, ""),
        ({"dpo": 90}, ""),
    ],
)
def test_unequal_labels_are_said(labels: dict[str, int], said: str) -> None:
    assert compare_labels(labels).startswith(said) and bool(compare_labels(labels)) == bool(said)


def test_what_only_watches_or_is_compared_with_is_not_counted(study: dict[str, int]) -> None:
    with transaction() as session:
        session.add(VerdictSet(id=2, project_id=1, name="w", pair_set_id=1, judge_id=1))
        session.flush()
        session.add(
            Snapshot(id=2, project_id=1, name="other", pair_set_id=1, verdict_set_id=2, labels_version=0, n_train=50)
        )
        judged = add_run(
            session, "judge", {"judge_calls": 10}, [("pair_set", 1), ("verdict_set", 1)], [("verdict_set", 2)]
        )
        session.get_one(Run, judged).recipe = {"kind": "judge", "pair_set": 1, "judge": 1, "compare_with": 1}
        frozen = add_run(session, "snapshot", {}, [("verdict_set", 2)], [("snapshot", 2)])
        add_run(session, "reward", {"trained_tokens": 77}, [("checkpoint", 1), ("snapshot", 1)], [("checkpoint", 12)])
        watched = add_run(
            session, "dpo", {"labels": 50}, [("checkpoint", 1), ("snapshot", 2), ("checkpoint", 12)],
            [("checkpoint", 13)],
        )  # fmt: skip
        session.get_one(Run, watched).recipe = {"kind": "dpo", "start": 1, "snapshot": 2, "held_out": 12}
    with reading() as session:
        found = read_budgets(session, [watched])[watched]
    assert {one.run.id for one in found.spent} == {study["base"], study["pairs"], judged, frozen, watched}
    assert (found.labels, found.total["judge_calls"], found.total["trained_tokens"]) == (50, 10, 1000)


def test_labels_that_were_too_long_are_counted_with_no_arm(study: dict[str, int]) -> None:
    """The reward model reads 70 of the 90 that were frozen; DPO, beside it, all of them."""
    with transaction() as session:
        reward = session.get_one(Run, study["reward"])
        reward.cost = {**reward.cost, "labels": 70, "row_limit": 512, "left_out_rows": 20, "left_out_dev_rows": 2}
    with reading() as session:
        found = read_budgets(session, [study["ppo"], study["dpo"]])
        ppo, dpo = found[study["ppo"]], found[study["dpo"]]
        assert cost_of(session, [session.get_one(Run, study["reward"])])["labels"] == 70
    assert (ppo.labels, ppo.frozen, ppo.has_left_out, ppo.total["labels"]) == (70, 90, True, 70)
    assert (dpo.labels, dpo.frozen, dpo.has_left_out) == (90, 90, False)
    assert compare_labels({"PPO": ppo.labels, "DPO": dpo.labels}).startswith("Labels are not equal: PPO 70, DPO 90.")
