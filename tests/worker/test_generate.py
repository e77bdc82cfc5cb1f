"""Generation by the real worker function: resumed runs, truncation, every way of pairing, two arms, an endpoint."""

import html
import itertools
import random
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import col, select

from app.checkpoints.endpoints import make_endpoint
from app.checkpoints.models import Arm, Checkpoint
from app.db import get, reading, transaction
from app.errors import Invalid
from app.pairs.models import Completion, Pair, PairSet
from app.pairs.recipes import GenerateRecipe
from app.projects.models import Project
from app.prompts.models import Prompt
from app.runs.models import QUEUES, Run, Sampled
from app.runs.queue import claim, outputs, resume
from tests.benchmarks.rows import demo_prompts, fresh_project, tiny_checkpoint
from tests.chat_server import ChatServer, Fault
from tests.prompts.rows import again, do, made, start
from worker.child import work
from worker.generate import pick_pairs
from worker.job import Job

SHORT = {"max_new_tokens": 16}


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about models, not about databases."""
    return fresh_project()


def prompt_set(project: Project, n: int = 12, split: str = "train") -> int:
    with transaction() as session:
        return demo_prompts(session, project, n, split).id


def written(run: Run) -> list[Completion]:
    with reading() as session:
        mine = select(Completion).where(Completion.run_id == run.id)
        return list(
            session.exec(mine.order_by(col(Completion.prompt_id), col(Completion.arm_id), col(Completion.sample)))
        )


def texts(run: Run) -> list[str]:
    return [one.text for one in written(run)]


def pairs_of(run: Run) -> list[tuple[Completion, Completion]]:
    with reading() as session:
        rows = session.exec(select(Pair).where(Pair.pair_set_id == made(run, "pair_set")).order_by(col(Pair.position)))
        return [(get(session, Completion, p.a_id), get(session, Completion, p.b_id)) for p in rows]


def test_a_pair_set_from_one_arm(project: Project) -> None:
    values = {
        "prompt_set": prompt_set(project), "checkpoint": tiny_checkpoint(project), "samples": 3, "pairs_per_prompt": 2,
        "decoding": SHORT, "batch_size": 8, "name": "first pairs",
    }  # fmt: skip
    run = do(project.id, "generate", **values)
    assert run.status == "done", run.error
    completions, pairs = written(run), pairs_of(run)
    assert len(completions) == 36
    assert run.cost["generated_tokens"] == sum(one.n_tokens for one in completions)
    assert all(a.prompt_id == b.prompt_id and a.text != b.text for a, b in pairs)
    with reading() as session:
        row = get(session, PairSet, made(run, "pair_set"))
        assert (row.name, row.n) == ("first pairs", len(pairs))
        arm = get(session, Arm, made(run, "arm"))
        assert (arm.method, arm.name) == ("base", "base · T=1")
    second = do(project.id, "generate", **values)
    assert texts(second) == texts(run), "the same recipe writes the same texts"
    assert [(a.text, b.text) for a, b in pairs_of(second)] == [(a.text, b.text) for a, b in pairs]
    other = do(project.id, "generate", **values, seed=2)
    assert texts(other) != texts(run)


def test_a_killed_run_writes_what_it_would_have_written(demo: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "prompt_set": prompt_set(demo, 20), "checkpoint": tiny_checkpoint(demo), "samples": 2, "decoding": SHORT,
        "batch_size": 6,
    }  # fmt: skip
    whole = do(demo.id, "generate", **values)
    run = start(demo.id, "generate", **values)
    real, calls = Job.spend, []

    def die(job: Job, **amounts: float) -> None:
        calls.append(amounts)
        if len(calls) == 4:
            raise OSError("the machine went away")
        real(job, **amounts)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "spend", die)
        work(run.id, run.attempt)
    assert again(run.id).status == "failed" and 0 < len(written(run)) < 40
    with transaction() as session:
        resume(session, get(session, Run, run.id))
    with transaction() as session:
        second = claim(session, QUEUES, "test", None)
    assert second is not None
    work(second.id, second.attempt)
    assert again(run.id).status == "done", again(run.id).error
    assert texts(run) == texts(whole)
    assert [(a.text, b.text) for a, b in pairs_of(run)] == [(a.text, b.text) for a, b in pairs_of(whole)]


def test_across_two_arms_and_a_system_message(demo: Project) -> None:
    first, second = tiny_checkpoint(demo, 1, "one"), tiny_checkpoint(demo, 2, "two", "sft")
    run = do(
        demo.id, "generate", prompt_set=prompt_set(demo), checkpoint=first, other_checkpoint=second, pairing="across",
        samples=1, decoding=SHORT, system="Be brief.",
    )  # fmt: skip
    assert run.status == "done", run.error
    for a, b in pairs_of(run):
        assert a.arm_id != b.arm_id
    with reading() as session:
        arms = [get(session, Arm, key) for key in outputs(session, run.id, "arm")]
    assert [arm.method for arm in arms] == ["in_context", "sft"]
    assert [arm.preamble for arm in arms] == [[{"role": "system", "content": "Be brief."}]] * 2
    same = do(
        demo.id, "generate", prompt_set=prompt_set(demo, 3, "dev"), checkpoint=first, other_checkpoint=first,
        pairing="across", samples=1,
    )  # fmt: skip
    assert same.status == "failed" and "are the same" in str(same.error)


def test_samples_of_a_dialogue_say_who_speaks(client: TestClient, project: Project) -> None:
    said = [("system", "Be brief."), ("user", "Where is Rome?"), ("assistant", "In Italy."), ("user", "And <Paris>?")]
    with transaction() as session:
        prompts = demo_prompts(session, project, 2, "train")
        first = session.exec(select(Prompt).where(Prompt.set_id == prompts.id).order_by(col(Prompt.position))).first()
        assert first is not None
        first.messages = [{"role": role, "content": text} for role, text in said]
        set_id = prompts.id
    run = do(project.id, "generate", prompt_set=set_id, checkpoint=tiny_checkpoint(project), samples=2, decoding=SHORT)
    assert run.status == "done", run.error
    page = client.get(f"/p/demo/runs/{run.id}/samples").text
    turns = re.findall(r'<span class="speaker">(\w+)</span><div class="said">([^<]*)</div>', page)
    asked = [(role, html.escape(text)) for role, text in said]
    assert [turn for turn in turns if turn[0] != "completion"] == asked * 2
    assert [turn[0] for turn in turns].count("completion") == 2
    assert page.count("And &lt;Paris&gt;?") == 2  # and not once more, without its role
    with reading() as session:
        details = session.exec(select(Sampled.detail).where(Sampled.run_id == run.id)).all()
    assert sum(not detail for detail in details) == 2  # one message is shown as it was
    assert "4 messages" in client.get(f"/p/demo/pairs/{made(run, 'pair_set')}").text


def test_examples_before_the_prompt_make_another_arm(demo: Project) -> None:
    values = {"prompt_set": prompt_set(demo), "checkpoint": tiny_checkpoint(demo), "decoding": SHORT, "pairing": "none"}
    plain = do(demo.id, "generate", **values)
    shown = do(demo.id, "generate", **values, few_shot=["What is it?", "It is tea."])
    assert shown.status == "done", shown.error
    with reading() as session:
        arm = get(session, Arm, made(shown, "arm"))
    assert arm.id != made(plain, "arm") and arm.method == "in_context"
    assert [(turn["role"], turn["content"]) for turn in arm.preamble] == [
        ("user", "What is it?"), ("assistant", "It is tea."),
    ]  # fmt: skip
    assert texts(shown) != texts(plain)
    with pytest.raises(Invalid, match="in twos"):
        start(demo.id, "generate", **values, few_shot=["alone"])


def test_too_many_truncated_prompts_stop_the_run_before_it_writes(demo: Project) -> None:
    values = {
        "prompt_set": prompt_set(demo), "checkpoint": tiny_checkpoint(demo), "decoding": {"max_new_tokens": 100},
        "system": "Please " * 60,
    }  # fmt: skip
    run = do(demo.id, "generate", **values)
    assert run.status == "failed" and written(run) == []
    assert "12 of 12 prompts (100%) do not fit the context of 128 tokens" in str(run.error)
    allowed = do(demo.id, "generate", **values, max_truncated=1.0)
    assert allowed.status == "done", allowed.error
    assert all(one.is_prompt_truncated for one in written(allowed))


def test_only_the_asked_splits_are_read(demo: Project) -> None:
    checkpoint, key = tiny_checkpoint(demo), prompt_set(demo, 6, "test")
    refused = do(demo.id, "generate", prompt_set=key, checkpoint=checkpoint)
    assert refused.status == "failed" and "has no prompt in train, dev" in str(refused.error)
    run = do(demo.id, "generate", prompt_set=key, checkpoint=checkpoint, splits=["test"], pairing="none", limit=4,
             samples=1, decoding=SHORT)  # fmt: skip
    assert run.status == "done", run.error
    assert len(written(run)) == 4
    with reading() as session:
        assert outputs(session, run.id, "pair_set") == []


def test_a_reward_model_writes_nothing(demo: Project) -> None:
    scorer = tiny_checkpoint(demo)
    with transaction() as session:
        get(session, Checkpoint, scorer).role = "reward"
    run = do(demo.id, "generate", prompt_set=prompt_set(demo, 3), checkpoint=scorer)
    assert run.status == "failed" and "choose a policy" in str(run.error)


def test_greedy_twins_make_no_pair(demo: Project) -> None:
    run = do(
        demo.id, "generate", prompt_set=prompt_set(demo, 3), checkpoint=tiny_checkpoint(demo),
        decoding={"temperature": 0, "max_new_tokens": 8},
    )  # fmt: skip
    assert run.status == "failed" and "No pair could be made" in str(run.error)


def test_an_endpoint_writes_what_is_missing_and_nothing_twice(demo: Project) -> None:
    numbers = itertools.count()
    refused = {"system": 0}

    def answer(request: dict[str, Any]) -> str | Fault:
        if "France" in request["messages"][-1]["content"] and refused["system"] < 2:
            refused["system"] += 1
            return Fault(400, {}, '{"error": {"message": "not today"}}')
        return f"answer {next(numbers)}"

    with ChatServer(answer) as server:
        with transaction() as session:
            endpoint = make_endpoint(
                session, demo.id, origin=server.origin, model="m", key="sk-0123456789abcdef", usd_per_million_out=1e6
            ).id
        values = {"prompt_set": prompt_set(demo, 6), "endpoint": endpoint, "system": "Be brief."}
        run = do(demo.id, "generate", **values)
        assert run.status == "failed"
        assert "2 of 12 calls failed" in str(run.error) and "not today" in str(run.error)
        assert len(written(run)) == 10
        with transaction() as session:
            resume(session, get(session, Run, run.id))
        with transaction() as session:
            second = claim(session, QUEUES, "test", None)
        assert second is not None
        work(second.id, second.attempt)
        run = again(run.id)
        assert run.status == "done", run.error
        assert len(server.requests) == 14, "only the two that failed were asked again"
    body = server.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["temperature"], body["model"]) == (128, 1.0, "m")
    assert server.headers[0]["Authorization"] == "Bearer sk-0123456789abcdef"
    assert len(written(run)) == 12 and len(pairs_of(run)) == 6
    assert run.cost["usd"] == pytest.approx(run.cost["generated_tokens"]) and run.cost["usd"] > 0
    with reading() as session:
        assert get(session, Arm, made(run, "arm")).kind == "endpoint"


def completions(*said: str, arm: int = 1) -> list[Completion]:
    return [
        Completion(id=100 * arm + place, prompt_id=1, arm_id=arm, run_id=1, sample=place, text=text)
        for place, text in enumerate(said)
    ]


def recipe(**values: Any) -> GenerateRecipe:
    return GenerateRecipe(prompt_set=1, checkpoint=1, other_checkpoint=2, samples=4, **values)


def test_pairing() -> None:
    side = completions("a", "b", "b ", "c")
    scores = {one.id: score for one, score in zip(side, (0.5, 2.0, 2.0, -1.0), strict=True)}
    best = pick_pairs([side], recipe(pairing="best_worst", pairs_per_prompt=2), scores, random.Random(1))
    assert [{a.text, b.text} for a, b in best] == [{"b", "c"}, {"b ", "a"}]
    flat = pick_pairs([side], recipe(pairing="best_worst"), {one.id: 1.0 for one in side}, random.Random(1))
    assert flat == [], "equal scores say nothing"
    every = pick_pairs([side], recipe(pairing="random", pairs_per_prompt=9), {}, random.Random(1))
    assert sorted(sorted({a.text.strip(), b.text.strip()}) for a, b in every) == [["a", "b"], ["a", "c"], ["b", "c"]]
    other = completions("a", "d", arm=2)
    across = pick_pairs([side, other], recipe(pairing="across", pairs_per_prompt=9), {}, random.Random(1))
    assert all({a.arm_id, b.arm_id} == {1, 2} and a.text.strip() != b.text.strip() for a, b in across)
    first = [
        pick_pairs([side], recipe(pairing="best_worst"), scores, random.Random(seed))[0][0].text.strip()
        for seed in range(40)
    ]
    assert 8 < first.count("b") < 32, "the better one stands on either side"
