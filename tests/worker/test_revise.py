"""Red team, critique and revision, and what they hand over, by the real worker functions."""

import copy
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlmodel import Session, col, select
from transformers import AutoModelForSequenceClassification

from app.checkpoints.endpoints import make_endpoint
from app.checkpoints.models import Arm, Checkpoint
from app.config import settings
from app.db import get, reading, transaction
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.projects.models import Project
from app.prompts.models import Prompt, PromptSet, RejectedRow
from app.revising.models import Revision, RevisionSet
from app.revising.recipes import ReviseRecipe
from app.runs.models import QUEUES, Run, RunIo
from app.runs.queue import claim, resume
from app.training.models import Snapshot
from app.training.recipes import DemoBaseRecipe
from tests.benchmarks.rows import demo_prompts, fresh_project, stored_checkpoint, tiny_checkpoint
from tests.chat_server import ChatServer, Fault, Request
from tests.prompts.rows import again, do, made, start
from tests.revising.rows import make_constitution, make_originals, make_revisions, revisions_of
from tests.worker.tiny import tiny_model
from worker.checkpoints import weights_of
from worker.child import work
from worker.demo_base import train_base
from worker.llm import RewardScorer
from worker.revise import Book, Item
from worker.saving import save_folder, write_model

SHORT = {"max_new_tokens": 12}
FENCED = re.compile(r"<<<(\w+) completion begins>>>\n(.*?)\n<<<\1 completion ends>>>", re.DOTALL)


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about models, not about databases."""
    return fresh_project()


def long_checkpoint(project: Project, seed: int = 1) -> int:
    """A tiny Llama with room for a critique's request."""
    recipe = DemoBaseRecipe(steps=2, batch_size=4, hidden=32, mlp=64, layers=1, heads=2, vocabulary=400, positions=1024)
    folder = settings().folder("tiny", f"long-{seed}") / "model"
    place, _ = save_folder(folder, lambda at: write_model(*train_base(recipe, seed, lambda step, values: None), at))
    return stored_checkpoint(project, Path(place))


def endpoint_at(project: Project, server: ChatServer) -> int:
    with transaction() as session:
        return make_endpoint(session, project.id, origin=server.origin, model="reviser", usd_per_million_out=1e6).id


def originals(project: Project, n: int = 6, samples: int = 1) -> dict[str, Any]:
    """The fields of a recipe that revises n prompts' completions."""
    with transaction() as session:
        prompts, arm = make_originals(session, project, n, samples)
        constitution = make_constitution(session, project)
        return {"prompt_set": prompts.id, "arm": arm.id, "constitution": constitution.id, "samples": samples}


def set_of(run: Run) -> tuple[RevisionSet, list[Revision]]:
    with reading() as session:
        key = made(run, "revision_set")
        return get(session, RevisionSet, key), revisions_of(session, key)


def texts_of(run: Run) -> list[tuple[str, str]]:
    """(original, revision or reason) of a run."""
    with reading() as session:
        return [
            (
                get(session, Completion, one.original_id).text,
                get(session, Completion, one.revised_id).text if one.revised_id else one.reason,
            )
            for one in set_of(run)[1]
        ]


def as_reviser(request: Request) -> str:
    """Criticises what is rude and makes it friendly, as the prompt asks."""
    last = request["messages"][-1]["content"]
    text = FENCED.search(
        next(m for m in reversed(request["messages"]) if "completion begins" in m["content"])["content"]
    )
    assert text is not None
    if last.startswith("Now write"):
        return text[2].replace("Rude", "Friendly") + " Polite."
    return f"“{text[2]}” is rude."


# ------------------------------------------------------------------------------------------------------------- revise


def test_an_endpoint_criticises_and_revises_round_by_round(demo: Project) -> None:
    with ChatServer(as_reviser) as server:
        run = do(demo.id, "revise", **originals(demo), endpoint=endpoint_at(demo, server), rounds=2, name="kinder")
        assert len(server.requests) == 6 * 4
    assert run.status == "done", run.error
    found, revisions = set_of(run)
    assert (found.name, found.n, len(revisions)) == ("kinder", 6, 6)
    assert texts_of(run)[0] == ("Rude answer 0.0", "Friendly answer 0.0 Polite. Polite.")
    for one in revisions:
        assert [step["principle"] for step in one.steps] in (["honest", "kind"], ["kind", "honest"])
        assert one.steps[0]["critique"].endswith("is rude.") and "Polite" in one.steps[1]["critique"]
        assert one.state == "proposed"
    with reading() as session:
        arm = get(session, Arm, found.arm_id or 0)
        assert arm.kind == "imported" and "reviser" in arm.name and arm.id != found.original_arm_id
    assert run.cost["usd"] > 0 and run.cost["generated_tokens"] > 0
    assert run.cost["generation_calls"] == 24 and "judge_calls" not in run.cost


def test_a_local_run_that_was_killed_writes_what_it_would_have_written(
    demo: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**originals(demo, 6), "checkpoint": long_checkpoint(demo), "decoding": SHORT, "batch_size": 2}
    whole = do(demo.id, "revise", **values)
    assert whole.status == "done", whole.error
    assert {len(one.steps) for one in set_of(whole)[1]} == {1}
    run = start(demo.id, "revise", **values)
    real, calls = Book.write, []

    def die(book: Book, session: Session, items: Sequence[Item]) -> None:
        real(book, session, items)
        calls.append(items)
        if len(calls) == 2:
            raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(Book, "write", die)
        work(run.id, run.attempt)
    assert again(run.id).status == "failed" and 0 < len(set_of(run)[1]) < 6
    with transaction() as session:
        resume(session, get(session, Run, run.id))
    with transaction() as session:
        second = claim(session, QUEUES, "test", None)
    assert second is not None
    work(second.id, second.attempt)
    assert again(run.id).status == "done", again(run.id).error
    assert texts_of(run) == texts_of(whole)
    assert set_of(run)[0].n == len(set_of(run)[1]) == 6


def test_calls_that_fail_leave_the_rest_stored_and_a_resume_asks_for_what_is_missing(demo: Project) -> None:
    with ChatServer(as_reviser, faults=[None, None, Fault(400)]) as server:
        values = {**originals(demo, 4), "endpoint": endpoint_at(demo, server), "concurrency": 1}
        run = do(demo.id, "revise", **values)
        assert run.status == "failed" and "resume this run" in str(run.error)
        assert len(set_of(run)[1]) == 3
        assert [len(asked["messages"]) for asked in server.requests[:4]] == [2, 2, 4, 4], (
            "what was begun is ended first"
        )
        with transaction() as session:
            resume(session, get(session, Run, run.id))
        with transaction() as session:
            second = claim(session, QUEUES, "test", None)
        assert second is not None
        work(second.id, second.attempt)
        assert again(run.id).status == "done"
        assert len(server.requests) == 4 * 2 + 1
        same = do(demo.id, "revise", **values)
        assert same.status == "done" and len(server.requests) == 4 * 2 + 1, "what was asked before is not asked again"
        assert texts_of(same) == texts_of(run)
    assert [text for _, text in texts_of(run)] == [f"Friendly answer {k}.0 Polite." for k in range(4)]


def test_why_there_is_no_revision_is_said(demo: Project) -> None:
    def answer(request: Request) -> str:
        said = FENCED.findall(request["messages"][1]["content"])[0][1]
        is_revision = len(request["messages"]) > 2
        if "0.0" in said:
            return said if is_revision else "fine as it is"
        if "1.0" in said:
            return "" if is_revision else "bad"
        if "2.0" in said:
            return " ".join(["word"] * 50) if is_revision else "bad"
        return "A friendly answer." if is_revision else " ".join(["long"] * 50)

    with ChatServer(answer) as server:
        run = do(
            demo.id, "revise", **originals(demo, 4), endpoint=endpoint_at(demo, server), decoding={"max_new_tokens": 20}
        )
    assert run.status == "done", run.error
    assert [text for _, text in texts_of(run)] == [
        "the revision equals the original", "the revision is empty", "the revision ran out of tokens",
        "A friendly answer.",
    ]  # fmt: skip
    assert [one.steps[0]["is_critique_cut"] for one in set_of(run)[1]] == [False, False, False, True]


def test_a_reviser_with_too_little_room_is_refused_before_it_starts(demo: Project) -> None:
    values = {**originals(demo, 2), "checkpoint": long_checkpoint(demo), "decoding": {"max_new_tokens": 1000}}
    run = do(demo.id, "revise", **values)
    assert run.status == "failed" and "do not fit the context" in str(run.error)


# ----------------------------------------------------------------------------------------------------------- red team


def prompts_of(run: Run) -> tuple[PromptSet, list[Prompt]]:
    with reading() as session:
        key = made(run, "prompt_set")
        rows = session.exec(select(Prompt).where(Prompt.set_id == key).order_by(col(Prompt.position)))
        return get(session, PromptSet, key), list(rows)


def test_attack_templates_need_no_model_and_keep_splits_honest(demo: Project) -> None:
    with transaction() as session:
        seeds, _ = make_originals(session, demo, 6, splits=("train", "dev", "test"))
    run = do(demo.id, "red_team", prompt_set=seeds.id, n=500)
    assert run.status == "done" and run.queue == "cpu", run.error
    found, prompts = prompts_of(run)
    assert found.n == len(prompts) == 4 * 10, "every attack on each seed of train and dev"
    assert found.counts == {"train": 20, "dev": 20} and found.source == "red team of questions"
    groups = {one.grp: one.split for one in prompts}
    assert groups == {f"group-{k}": ("train", "dev")[k % 3] for k in (0, 1, 3, 4)}
    assert {one.category for one in prompts} == {"safety", "tea"}
    assert all(re.fullmatch(r"red team: attack template \w+ around seed prompt \d", one.source) for one in prompts)
    wrapped = next(one for one in prompts if "prefix_injection" in one.source)
    assert "Question" in wrapped.text and wrapped.text.endswith("asked for:”.")
    again_ = do(demo.id, "red_team", prompt_set=seeds.id, n=500)
    assert [one.text for one in prompts_of(again_)[1]] == [one.text for one in prompts]
    none = do(demo.id, "red_team", prompt_set=seeds.id, categories=["chess"])
    assert none.status == "failed" and "No seed prompt carries one of these categories: chess" in str(none.error)


def test_a_model_writes_by_principle_and_copies_are_dropped_and_counted(demo: Project) -> None:
    said = iter(
        ["Tell me a lie about Paris, please!", "Tell me a lie about paris please", "Question 0 about topic 0", "",
         "x" * 300, "How do I trick my neighbour?"]
    )  # fmt: skip
    with ChatServer(lambda _: next(said)) as server:
        with transaction() as session:
            seeds, _ = make_originals(session, demo, 5)
            constitution = make_constitution(session, demo)
        run = do(
            demo.id, "red_team", prompt_set=seeds.id, way="model", endpoint=endpoint_at(demo, server), n=3,
            constitution=constitution.id, max_chars=200, concurrency=1,
        )  # fmt: skip
        first = server.requests[0]["messages"]
    assert run.status == "done", run.error
    assert "honest: It invents nothing." in first[1]["content"] and first[1]["content"].count("begins>>>") == 4
    fence = re.findall(r"<<<(\w+) prompt 1 begins", first[1]["content"])[0]
    assert fence in first[0]["content"], "the model is told which code fences the material"
    found, prompts = prompts_of(run)
    assert [(one.text, one.category) for one in prompts] == [
        ("Tell me a lie about Paris, please!", "honest"), ("How do I trick my neighbour?", "kind"),
    ]  # fmt: skip
    assert all(one.grp.startswith("group-") and "written by reviser" in one.source for one in prompts)
    with reading() as session:
        rejected = session.exec(select(RejectedRow).where(RejectedRow.run_id == run.id)).all()
    assert Counter(one.reason.split(":")[0].split(" to ")[0] for one in rejected) == Counter(
        {"equal": 2, "empty": 1, "300 characters, more than 200": 1}
    )
    assert found.n_rejected == 4


def test_a_base_model_continues_the_seeds_and_a_torn_line_is_written_again(demo: Project) -> None:
    with transaction() as session:
        seeds = demo_prompts(session, demo, 8, "train").id
    values = {
        "prompt_set": seeds, "way": "model", "checkpoint": long_checkpoint(demo), "n": 3, "batch_size": 4,
        "decoding": SHORT, "categories": ["a trap: it asks for a lie"],
    }  # fmt: skip
    whole = do(demo.id, "red_team", **values)
    assert whole.status == "done", whole.error
    notes = settings().folder("runs", whole.id) / "written.jsonl"
    assert len(notes.read_text().splitlines()) == 3
    run = start(demo.id, "red_team", **values)
    torn = settings().folder("runs", run.id) / "written.jsonl"
    torn.write_text(notes.read_text()[:-5])
    work(run.id, run.attempt)
    assert again(run.id).status == "done", again(run.id).error
    assert torn.read_text().splitlines()[:2] == notes.read_text().splitlines()[:2]
    assert [json.loads(line)["text"] for line in torn.read_text().splitlines()][-3:] == [
        json.loads(line)["text"] for line in notes.read_text().splitlines()
    ]
    assert [one.text for one in prompts_of(run)[1]] == [one.text for one in prompts_of(whole)[1]]


# ---------------------------------------------------------------------------------------------------------- hand over


def decide_all(made_set: RevisionSet, states: list[str]) -> None:
    with transaction() as session:
        for one, state in zip(revisions_of(session, made_set.id), states, strict=False):
            one.state = state
            session.add(one)


def labelled(run: Run) -> list[tuple[str, str]]:
    """(preferred, other) of the pairs a run made."""
    with reading() as session:
        rows = session.exec(select(Pair).where(Pair.pair_set_id == made(run, "pair_set")).order_by(col(Pair.position)))
        verdicts = {
            one.pair_id: one.outcome
            for one in session.exec(select(Verdict).where(Verdict.verdict_set_id == made(run, "verdict_set")))
        }
        found = []
        for pair in rows:
            a, b = get(session, Completion, pair.a_id).text, get(session, Completion, pair.b_id).text
            found.append((a, b) if verdicts[pair.id] == "a" else (b, a))
        return found


@pytest.mark.parametrize(("which", "n"), [("accepted", 2), ("not_rejected", 8)])
def test_revisions_become_preferences_and_a_snapshot(project: Project, which: str, n: int) -> None:
    with transaction() as session:
        made_set = make_revisions(session, project, 10)
    decide_all(made_set, ["accepted", "rejected", "accepted"])
    run = do(project.id, "hand_over", revision_set=made_set.id, which=which)
    assert run.status == "done", run.error
    pairs = labelled(run)
    assert len(pairs) == n and pairs[0] == ("Friendly answer 0.0", "Rude answer 0.0")
    assert all(better.startswith("Friendly") and worse.startswith("Rude") for better, worse in pairs)
    with reading() as session:
        verdicts = get(session, VerdictSet, made(run, "verdict_set"))
        assert verdicts.n == n and verdicts.constitution_id == made_set.constitution_id
        judge = get(session, Judge, verdicts.judge_id)
        assert (judge.kind, judge.name) == ("imported", "revisions: kinder answers")
        assert get(session, RevisionSet, made_set.id).pair_set_id == get(session, PairSet, made(run, "pair_set")).id
        assert len(session.exec(select(Opinion).where(Opinion.verdict_set_id == verdicts.id)).all()) == n
        read = session.exec(select(RunIo).where(RunIo.run_id == run.id, col(RunIo.is_output).is_(False))).one()
        assert (read.noun, read.ref_id) == ("revision_set", made_set.id)
    frozen = do(project.id, "snapshot", verdict_set=verdicts.id)
    assert frozen.status == "done", frozen.error
    with reading() as session:
        snapshot = get(session, Snapshot, made(frozen, "snapshot"))
    lines = [json.loads(line) for line in (settings().data_path / snapshot.path).read_text().splitlines()]
    assert len(lines) == n and all(line["chosen"][0]["content"].startswith("Friendly") for line in lines)


def test_nothing_accepted_is_an_error_that_says_what_to_do(demo: Project) -> None:
    with transaction() as session:
        made_set = make_revisions(session, demo, 3)
    run = do(demo.id, "hand_over", revision_set=made_set.id)
    assert run.status == "failed" and "accept some on its page" in str(run.error)


# ---------------------------------------------------------------------------------------------------- best of several


def tiny_reward(project: Project) -> int:
    """A reward model of 30,000 random weights."""
    folder = settings().folder("tiny", "reward") / "model"
    model, tokenizer = tiny_model()
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(3)
    scorer = AutoModelForSequenceClassification.from_config(config)
    place, _ = save_folder(folder, lambda at: write_model(scorer, tokenizer, at))
    return stored_checkpoint(project, Path(place), "judge of taste", "reward", "reward")


def test_sft_learns_the_best_of_several_by_a_reward_model(demo: Project) -> None:
    base, reward = tiny_checkpoint(demo), tiny_reward(demo)
    with transaction() as session:
        prompts = demo_prompts(session, demo, 10, "train").id
    written = do(demo.id, "generate", prompt_set=prompts, checkpoint=base, samples=4, pairing="none", decoding=SHORT)
    assert written.status == "done", written.error
    run = do(demo.id, "best_of", prompt_set=prompts, arm=made(written, "arm"), reward=reward, name="best of 4")
    assert run.status == "done", run.error
    with reading() as session:
        scorer = RewardScorer(weights_of(session, reward))
        verdicts = get(session, VerdictSet, made(run, "verdict_set"))
        judge = get(session, Judge, verdicts.judge_id)
        assert (judge.kind, judge.checkpoint_id) == ("reward", reward) and judge.frozen_at
        for pair in session.exec(select(Pair).where(Pair.pair_set_id == verdicts.pair_set_id)).all():
            prompt = get(session, Prompt, pair.prompt_id)
            some = session.exec(select(Completion).where(Completion.prompt_id == prompt.id)).all()
            scores = dict(
                zip([one.id for one in some], scorer.score([prompt.messages] * 4, [o.text for o in some]), strict=True)
            )
            verdict = session.exec(select(Verdict).where(Verdict.pair_id == pair.id)).one()
            best, worst = (pair.a_id, pair.b_id) if verdict.outcome == "a" else (pair.b_id, pair.a_id)
            assert scores[best] == pytest.approx(max(scores.values()), abs=1e-5)
            assert scores[worst] == pytest.approx(min(scores.values()), abs=1e-5)
            assert verdict.p_a is not None and (verdict.p_a > 0.5) == (verdict.outcome == "a")
    judged = do(demo.id, "judge", pair_set=verdicts.pair_set_id, judge=judge.id)
    with reading() as session:
        second = get(session, VerdictSet, made(judged, "verdict_set"))
    assert (second.n_a, second.n_b) == (verdicts.n_a, verdicts.n_b), "the reward judge says the same of these pairs"
    frozen = do(demo.id, "snapshot", verdict_set=verdicts.id)
    trained = do(
        demo.id, "sft", start=base, snapshot=made(frozen, "snapshot"), lr=1e-3, max_length=96, max_steps=2, batch_size=4
    )
    assert trained.status == "done", trained.error
    with reading() as session:
        made_by_sft = get(session, Checkpoint, made(trained, "checkpoint"))
    assert made_by_sft.method == "sft" and made_by_sft.parent_id == base


def test_best_of_needs_several_completions(demo: Project) -> None:
    with transaction() as session:
        prompts, arm = make_originals(session, demo, 3)
    run = do(demo.id, "best_of", prompt_set=prompts.id, arm=arm.id, reward=tiny_reward(demo))
    assert run.status == "failed" and "sample more" in str(run.error)


def test_the_worker_needs_a_reviser() -> None:
    with pytest.raises(ValueError, match="one of the two"):
        ReviseRecipe(prompt_set=1, arm=1, constitution=1)
