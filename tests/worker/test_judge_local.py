"""Local judges on a real small checkpoint, and an HTTP judge at another project's OpenAI-compatible server."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlmodel import select

from app import db
from app.accounts.logins import make_account
from app.checkpoints.models import Checkpoint
from app.constitutions.constitutions import PrincipleText, add_version
from app.errors import Invalid
from app.judging.material import read_guide, read_pairs, unjudged
from app.judging.models import CallText, Opinion, Verdict
from app.judging.pages import said_of_cuts
from app.judging.prompt import render_local_prompt
from app.judging.verdicts import sigmoid
from app.projects.models import Project
from app.projects.projects import make_project
from tests.chat_server import ChatServer
from tests.judging.rows import do, endpoint_judge, error_of, made, make_pairs, set_of
from tests.servers import free_port

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    with db.transaction() as session:
        return make_project(session, "demo", "Demo", make_account(session, "owner", "correct horse"))


@pytest.fixture
def stories(shared_data: Path) -> Path:
    return shared_data / "stories260k" / "hf"


def real_pairs(shared_data: Path, project: Project, n: int) -> int:
    """Short rows of PKU-SafeRLHF."""
    found = []
    with gzip.open(shared_data / "pku_saferlhf" / "pku_saferlhf_realign_dpo_5k.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if len(row["prompt"]) + sum(map(len, row["response"])) < 300:
                found.append((row["prompt"], row["response"][1], row["response"][0], None))
    assert len(found) >= n
    with db.transaction() as session:
        return make_pairs(session, project.id, found[:n]).id


def add_checkpoint(project: Project, folder: Path, role: str) -> int:
    with db.transaction() as session:
        row = Checkpoint(project_id=project.id, name=role, role=role, method="imported", source=str(folder))
        session.add(row)
        session.flush()
        return row.id


def test_a_local_checkpoint_judges_by_its_log_probabilities(demo: Project, shared_data: Path, stories: Path):
    from worker.llm import LocalModel
    from worker.loading import Weights

    pairs = real_pairs(shared_data, demo, 40)
    added = do(demo.id, kind="new_judge", judge_kind="checkpoint", checkpoint=add_checkpoint(demo, stories, "policy"))
    run = do(demo.id, kind="judge", pair_set=pairs, judge=made(added, "judge"))
    assert run.status == "done", run.error
    found = set_of(run)
    assert found.n == 40
    model = LocalModel(Weights(str(stories)))
    with db.reading() as session:
        first = read_pairs(session, unjudged(session, pairs, None, 1))[0]
        opinions = session.exec(select(Opinion).where(Opinion.pair_id == first.id)).all()
        verdict = session.exec(select(Verdict).where(Verdict.pair_id == first.id)).one()
        guide = read_guide(session, None)
        verdicts = session.exec(select(Verdict)).all()
    assert sorted(one.is_swapped for one in opinions) == [False, True]
    for one in opinions:
        log_a, log_b = model.log_probs(render_local_prompt(guide, first.text, one.is_swapped), ["A", "B"])
        p_first = sigmoid(log_a - log_b)
        assert one.p_a == pytest.approx(1 - p_first if one.is_swapped else p_first, abs=1e-4)
    assert verdict.p_a == pytest.approx(sum(one.p_a or 0 for one in opinions) / 2)
    assert found.n_flip == sum(one.is_flip for one in verdicts) == sum(one.outcome == "tie" for one in verdicts)
    assert run.cost["judge_calls"] == 80


def test_pairs_too_long_for_the_judge_stop_the_run(demo: Project, stories: Path):
    with db.transaction() as session:
        long = make_pairs(session, demo.id, [("why?", "because " * 400, "so", None)] * 3).id
    added = do(demo.id, kind="new_judge", judge_kind="checkpoint", checkpoint=add_checkpoint(demo, stories, "policy"))
    run = do(demo.id, kind="judge", pair_set=long, judge=made(added, "judge"))
    assert run.status == "failed"
    assert "6 of 6 readings were truncated" in error_of(run)
    allowed = do(demo.id, kind="judge", pair_set=long, judge=made(added, "judge"), max_truncated=1, max_null=1)
    with db.reading() as session:
        said = said_of_cuts(session, set_of(allowed))
    assert said == "6 of 6 readings (100%) were cut to fit the judge's context."


def test_a_reward_model_judges_by_its_scores(demo: Project, shared_data: Path, stories: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(stories, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path / "rm")
    pairs = real_pairs(shared_data, demo, 10)
    reward = add_checkpoint(demo, tmp_path / "rm", "reward")
    wrong = do(demo.id, kind="new_judge", judge_kind="checkpoint", checkpoint=reward)
    assert "is a reward; this judge needs a policy" in error_of(wrong)
    added = do(demo.id, kind="new_judge", judge_kind="reward", checkpoint=reward)
    run = do(demo.id, kind="judge", pair_set=pairs, judge=made(added, "judge"), max_truncated=1)
    assert run.status == "done", run.error
    from worker.llm import RewardScorer
    from worker.loading import Weights

    scorer = RewardScorer(Weights(str(tmp_path / "rm")))
    with db.reading() as session:
        for verdict in session.exec(select(Verdict)).all():
            text = read_pairs(session, [verdict.pair_id])[0].text
            a, b = scorer.score([text.messages] * 2, [text.a, text.b])
            assert verdict.p_a == pytest.approx(sigmoid(a - b), abs=1e-4)
            assert verdict.outcome == ("a" if a > b else "b")


def test_a_panel_mixes_all_kinds_and_a_checkpoint_answers_by_principle(
    demo: Project, shared_data: Path, stories: Path, tmp_path: Path
):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(stories, num_labels=1).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path / "rm")
    pairs = real_pairs(shared_data, demo, 6)
    with db.transaction() as session:
        principles = [PrincipleText("honest", "It is true.", 2.0), PrincipleText("kind", "It is kind.", 1.0)]
        constitution = add_version(session, demo.id, "two", "", principles).id
    makings = [
        {"judge_kind": "checkpoint", "checkpoint": add_checkpoint(demo, stories, "policy")},
        {"judge_kind": "reward", "checkpoint": add_checkpoint(demo, tmp_path / "rm", "reward")},
        {"judge_kind": "rule", "answer_weight": 0},
    ]
    local, reward, rule = (made(do(demo.id, kind="new_judge", **one), "judge") for one in makings)
    asked = {"pair_set": pairs, "constitution": constitution, "principle_calls": "separate", "overall": "weighted"}
    with ChatServer() as server:
        endpoint = endpoint_judge(demo.id, server.origin)
        panel = made(do(demo.id, kind="new_judge", judge_kind="panel", rule="mean",
                        members=[endpoint, local, reward, rule]), "judge")  # fmt: skip
        run = do(demo.id, kind="judge", judge=panel, max_truncated=1, max_null=1, timeout_s=5, **asked)
    assert (run.status, run.queue) == ("done", "gpu"), run.error
    with db.reading() as session:
        opinions = session.exec(select(Opinion)).all()
        verdicts = session.exec(select(Verdict)).all()
    assert Counter(one.judge_id for one in opinions) == {endpoint: 24, local: 24, reward: 6, rule: 6}
    assert {one.principle for one in opinions if one.judge_id == local} == {"honest", "kind"}
    for verdict in verdicts:
        members = verdict.votes["by_judge"]
        said = [one["p_a"] if one["p_a"] is not None else {"a": 1, "tie": 0.5, "b": 0}[one["outcome"]]
                for one in members.values()]  # fmt: skip
        assert verdict.p_a == pytest.approx(sum(said) / 4)
        assert set(members[str(local)]["by_principle"]) == {"honest", "kind"} < set(verdict.by_principle)
    with pytest.raises(Invalid, match="one question at a time"):
        do(demo.id, kind="judge", judge=local, **{**asked, "principle_calls": "joint"})


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """`transformers serve` of a directory on loopback; gives its base URL once it answers."""
    port = free_port()
    binary = Path(sys.executable).parent / "transformers"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(binary), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    log = folder.parent / "serve.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=sink, env=env)
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_server_of_another_project_judges_real_pairs(demo: Project, shared_data: Path, stories: Path, tmp_path: Path):
    """A 260k-parameter story teller reads no constitution: what is shown is the request's shape, NULLs and reasons."""
    folder = tmp_path / "stories"
    shutil.copytree(stories, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    pairs = real_pairs(shared_data, demo, 20)
    with transformers_serve(folder) as origin:
        added = do(demo.id, kind="new_endpoint", origin=origin, model=str(folder))
        judge = do(demo.id, kind="new_judge", judge_kind="endpoint", endpoint=made(added, "endpoint"))
        settings = {"concurrency": 2, "max_tokens": 24, "max_null": 1, "max_truncated": 1, "timeout_s": 60}
        run = do(demo.id, kind="judge", pair_set=pairs, judge=made(judge, "judge"), **settings)
    assert run.status == "done", run.error
    found = set_of(run)
    assert found.n == 20
    with db.reading() as session:
        texts = session.exec(select(CallText)).all()
        reasons = {one.reason for one in session.exec(select(Verdict).where(Verdict.outcome == None))}  # noqa: E711
    assert len(texts) == run.cost["judge_calls"] == 40
    assert found.n_null == 20
    assert all("token limit" in reason or "nonce" in reason for reason in reasons), reasons
    assert any(text.raw for text in texts), "the server really wrote something"
