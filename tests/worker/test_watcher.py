"""What watches a run: judges of every kind as held-out scorers, of which family they are, and when they fall silent."""

from typing import Any

import pytest
from sqlmodel import select

from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.errors import Invalid
from app.judging.judges import make_judge
from app.judging.models import VerdictSet
from app.judging.recipes import NewJudgeRecipe
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import Prompt
from app.recipes import read_recipe
from app.runs.models import LogLine, Run
from app.runs.queue import launch
from app.training.judge_calls import say_judge_calls
from app.training.models import Snapshot
from app.training.recipes import DpoRecipe, PpoRecipe
from app.training.scorers import describe_watcher, say_signal
from tests.chat_server import ChatServer, Fault, Request
from tests.judging.rows import endpoint_judge, start
from tests.worker.test_judge_reward import demo, online  # noqa: F401  fixtures
from tests.worker.test_rate import completion_of, scores
from tests.worker.tiny import STRICT
from worker.job import Job
from worker.watcher import watcher_of

PPO: dict[str, Any] = {"kind": "ppo", "rule_weight": 1.0, "iterations": 1, "rollouts": 2}


def judge_of(project: Project, **recipe: Any) -> int:
    with transaction() as session:
        return make_judge(session, project.id, NewJudgeRecipe(**recipe)).id


def liking_long(request: Request) -> str:
    """10 for what is long, else 1."""
    return scores(request, long=10 if len(completion_of(request)) > 20 else 1, strict=1)


def watching(project: Project, fields: dict[str, Any], **more: Any) -> tuple[Job, list[dict[str, str]], str | None]:
    """A claimed run that is watched; a dev prompt of it and its gold answer."""
    known = {name: value for name, value in fields.items() if name != "constitution"}
    run = start(project.id, **{**PPO, **known, **more})
    with reading() as session:
        row = session.exec(select(Prompt).where(Prompt.split == "dev")).first()
    assert row is not None
    return Job(run.id, run.attempt), row.messages, row.reference


def test_the_rule_an_endpoint_and_a_panel_of_both_score_from_0_to_1(demo: Project, online: dict[str, Any]) -> None:  # noqa: F811
    rule = judge_of(demo, judge_kind="rule", format_weight=3, answer_weight=1, flip_rate=0.4)
    with ChatServer(liking_long) as server:
        asked = endpoint_judge(demo.id, server.origin, usd_per_million_in=1.0)
        panel = judge_of(demo, judge_kind="panel", members=[rule, asked], weights=[f"{rule} = 3"])
        by = {"judge": endpoint_judge(demo.id, "http://127.0.0.1:9/v1"), "rule_weight": 0.0}
        rubric = online["constitution"]
        job, prompt, gold = watching(
            demo, online, **by, constitution=rubric, held_out_judge=panel, held_out_constitution=rubric
        )
        texts = [STRICT.format(gold), STRICT.format("nonsense"), "no"]
        watcher = watcher_of(job)
        assert watcher is not None
        found = watcher.score([prompt] * 3, texts)
        n = len(server.requests)
        assert watcher.score([prompt] * 3, texts) == found and len(server.requests) == n  # nothing is asked twice
    by_endpoint = [(10 + 3 * 1) / 4, (10 + 3 * 1) / 4, 1.0]  # the principles weigh 1 and 3
    by_rule = [1.0, 0.75, 0.0]  # without the errors that its labels are given on purpose
    wanted = [(3 * rule + (one - 1) / 9) / 4 for rule, one in zip(by_rule, by_endpoint, strict=True)]
    assert found == pytest.approx(wanted)
    with reading() as session:
        run = session.get_one(Run, job.run_id)
        said = session.exec(select(LogLine.text).where(LogLine.run_id == run.id)).all()
    assert (
        run.cost["recorder_calls"] == run.cost["judge_calls"] == 3 and run.cost["recorder_usd"] == run.cost["usd"] > 0
    )
    assert any("watches this run: " in one and "of another family than what trains it" in one for one in said)


def test_who_cannot_be_asked_any_more_falls_silent_and_the_log_says_so(
    demo: Project,  # noqa: F811
    online: dict[str, Any],  # noqa: F811
) -> None:
    with ChatServer(lambda _: Fault(401)) as server:
        judge = endpoint_judge(demo.id, server.origin)
        held_out = {"held_out_judge": judge, "held_out_constitution": online["constitution"]}
        job, prompt, _ = watching(demo, online, **held_out)
        watcher = watcher_of(job)
        assert watcher is not None and watcher.score([prompt], ["text"]) == [None]
        n = len(server.requests)
        assert watcher.score([prompt], ["other"]) == [None] and len(server.requests) == n
    with reading() as session:
        warned = session.exec(
            select(LogLine.text).where(LogLine.run_id == job.run_id, LogLine.level == "warning")
        ).all()
    assert "from here on nothing held out watches this run" in warned[-1]


def rows(project: Project) -> dict[str, int]:
    """Two bases, a reward model on each (that on `a` taught by judge `teacher`), judges, and a snapshot."""
    asked = {name: endpoint_judge(project.id, "http://127.0.0.1:9/v1", name=name) for name in ("teacher", "twin")}
    found: dict[str, int] = dict(asked)
    found["stranger"] = endpoint_judge(project.id, "http://127.0.0.1:10/v1", name="stranger")
    with transaction() as session:
        sets = PairSet(project_id=project.id, name="p", prompt_set_id=1)
        session.add(sets)
        session.flush()
        verdicts = VerdictSet(project_id=project.id, name="v", pair_set_id=sets.id, judge_id=asked["teacher"])
        session.add(verdicts)
        session.flush()
        snapshot = Snapshot(project_id=project.id, name="s", pair_set_id=sets.id, verdict_set_id=verdicts.id,
                            labels_version=0, state="ready")  # fmt: skip
        session.add(snapshot)
        session.flush()
        run = Run(project_id=project.id, kind="reward", queue="gpu", status="done", recipe_sha256="0",
                  recipe={"kind": "reward", "snapshot": snapshot.id})  # fmt: skip
        session.add(run)
        session.flush()
        for name, role, above, made in (
            ("a", "policy", None, None), ("b", "policy", None, None), ("on_a", "reward", "a", run.id),
            ("again_on_a", "reward", "a", None), ("on_b", "reward", "b", None),
        ):  # fmt: skip
            row = Checkpoint(project_id=project.id, name=name, role=role, method="base" if above is None else "reward",
                             source=f"hub/{name}" if above is None else "", parent_id=found.get(above or ""),
                             run_id=made)  # fmt: skip
            session.add(row)
            session.flush()
            found[name] = row.id
        found["snapshot"] = snapshot.id
    return found


FAMILIES: list[tuple[dict[str, str], dict[str, str], str, str]] = [
    ({"reward": "on_a"}, {"held_out": "on_b"}, "other", "base hub/b; of another family than what trains it"),
    ({"reward": "on_a"}, {"held_out": "again_on_a"}, "family", "not of another family: “on_a” comes from there too"),
    ({"reward": "on_a"}, {"held_out_judge": "stranger"}, "other", "127.0.0.1:10"),
    ({"reward": "on_a"}, {"held_out_judge": "teacher"}, "labels", "its own labels are behind what trains it"),
    ({"judge": "teacher"}, {"held_out_judge": "twin"}, "same", "it is what trains (“endpoint: teacher”)"),
    ({"snapshot": "snapshot"}, {"held_out_judge": "twin"}, "same", "not held out"),
    ({"snapshot": "snapshot"}, {"held_out": "on_b"}, "other", "base hub/b"),
]


def test_a_watcher_s_family_is_told_from_what_trains(demo: Project, online: dict[str, Any]) -> None:  # noqa: F811
    known = rows(demo)
    base = {"start": online["start"], "reference": online["start"]}
    for trains, watches, relation, said in FAMILIES:
        fields: dict[str, Any] = {name: known[one] for name, one in {**trains, **watches}.items()}
        rubrics = {"held_out_judge": "held_out_constitution", "judge": "constitution"}
        fields |= {of: online["constitution"] for name, of in rubrics.items() if name in fields}
        recipe: PpoRecipe | DpoRecipe = DpoRecipe(**base, **fields) if "snapshot" in fields else PpoRecipe(
            **base, prompt_set=online["prompt_set"], **fields
        )  # fmt: skip
        with transaction() as session:
            found = describe_watcher(session, recipe.stored())
            assert found is not None and (found.relation, said in found.said) == (relation, True), found
            if relation == "same" and isinstance(recipe, PpoRecipe):
                with pytest.raises(Invalid, match="is not held out: it is what rewards this run"):
                    launch(session, recipe, project_id=demo.id)
            else:
                recipe.check(session, demo.id)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"held_out": 1, "held_out_judge": 1}, "one of the two"),
        ({"held_out_constitution": 1}, "needs a held-out judge"),
        ({"is_paused_at_turn": True}, "nothing watches"),
    ],
)
@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_two_watchers_or_half_a_one_are_refused(kind: str, fields: dict[str, Any], said: str) -> None:
    source = {"prompt_set": 1, "rule_weight": 1.0} if kind == "ppo" else {"snapshot": 1}
    with pytest.raises(Invalid, match=said):
        read_recipe({"kind": kind, "start": 1, "reference": 1, **source, **fields})
    assert read_recipe({"kind": kind, "start": 1, "reference": 1, **source, "held_out_judge": 1})


def test_a_judge_that_cannot_score_alone_is_refused(demo: Project, online: dict[str, Any]) -> None:  # noqa: F811
    known = rows(demo)
    reward = judge_of(demo, judge_kind="reward", checkpoint=known["on_b"])
    panel = judge_of(demo, judge_kind="panel", members=[reward, known["stranger"]])
    given = {name: value for name, value in online.items() if name != "constitution"}
    with reading() as session:
        for judge, said in ((known["stranger"], "choose one"), (panel, "no scale in common")):
            with pytest.raises(Invalid, match=said):
                PpoRecipe(**given, rule_weight=1.0, held_out_judge=judge).check(session, demo.id)
        PpoRecipe(**given, rule_weight=1.0, held_out_judge=reward).check(session, demo.id)


def test_what_rewards_is_said_alike_for_the_same_scale() -> None:
    names = {("checkpoint", 3): "RM", ("judge", 2): "GPT"}
    ppo = PpoRecipe(start=1, reference=1, prompt_set=1, reward=3, rule_weight=0.5, missing_end_penalty=1).stored()
    assert say_signal(ppo, names) == "reward model “RM” + 0.5 × the rule − 1 where it did not end"
    grpo = {"kind": "grpo", "reward_by": "judge", "judge": 2, "judge_weight": 2.0, "rule_weight": 1.0}
    assert say_signal(grpo, names) == "2 × judge “GPT”"
    assert say_signal({"kind": "dpo"}, names) == ""


@pytest.mark.parametrize(
    ("recipe", "values", "n", "said"),
    [
        (PpoRecipe, {"held_out_judge": "2", "iterations": "20", "sample_every": "10"}, 1, "up to 256 dev samples"),
        (PpoRecipe, {"held_out_judge": "2", "judge": "3", "budget_usd": "1"}, 2, "where it is an endpoint."),
        (DpoRecipe, {"held_out_judge": "2"}, 1, "16 dev samples at each look"),
        (DpoRecipe, {"held_out_judge": ""}, 0, ""),
    ],
)
def test_what_watching_asks_is_known_before(recipe: Any, values: dict[str, str], n: int, said: str) -> None:
    found = say_judge_calls(recipe, values)
    assert len(found) == n and said in "".join(found[-1:])
    assert all(("No cost is set" in one) == ("budget_usd" not in values) for one in found)
