"""The playground: streamed from endpoints and local checkpoints into rows, and out of them as server-sent events."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import col, select

from app.checkpoints.arms import find_or_make_arm
from app.checkpoints.chat import redact
from app.db import reading, transaction
from app.errors import AppError
from app.pairs.playing import read_players
from app.projects.models import Project
from app.runs.models import Run, Sampled
from app.runs.queue import cancel, finish, resume
from tests.benchmarks.rows import stored_checkpoint, tiny_checkpoint
from tests.chat_server import ChatServer, Fault, Request
from tests.judging.rows import claim_next, do, made, read, start
from tests.worker.test_ppo import write_reward
from tests.worker.tiny import write_tiny
from worker.child import work
from worker.job import Cancelled, Job
from worker.play import Board, _Endpoints, play

Rows = dict[str, Sampled]
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def echo(request: Request) -> str:
    return "You said: " + request["messages"][-1]["content"] + " — Grüße"


def endpoint(project: Project, origin: str, **more: Any) -> int:
    return made(do(project.id, kind="new_endpoint", origin=origin, model="m", **more), "endpoint")


def rows_of(run_id: int) -> Rows:
    with reading() as session:
        found = session.exec(select(Sampled).where(Sampled.run_id == run_id).order_by(col(Sampled.place))).all()
    return {row.detail["player"]: row for row in found}


def ask(project: Project, said: str = "hello there", **more: Any) -> Run:
    return do(project.id, kind="play", said=said, decoding={"max_new_tokens": 12, "temperature": 1.0}, **more)


def test_all_players_answer_and_a_second_turn_goes_on_from_their_own_words(
    client: TestClient, project: Project
) -> None:
    policy = tiny_checkpoint(project)
    with ChatServer(echo) as server, ChatServer(echo, ignores=["stream"]) as plain:
        ends = [endpoint(project, one.origin, usd_per_million_out=1e6) for one in (server, plain)]
        with transaction() as session:
            arm = find_or_make_arm(session, project.id, checkpoint=policy, system="Be brief.", decoding={}).id
        run = ask(project, checkpoints=[policy], endpoints=ends, arms=[arm])
        assert run.status == "done" and run.queue == "gpu", run.error
        rows = rows_of(run.id)
        assert list(rows) == [f"checkpoint:{policy}", *(f"endpoint:{one}" for one in ends), f"arm:{arm}"]
        assert all(row.text for row in rows.values())
        assert rows[f"endpoint:{ends[0]}"].text == rows[f"endpoint:{ends[1]}"].text == "You said: hello there — Grüße"
        assert server.requests[-1]["stream"] is True and server.requests[-1]["seed"] == 1
        n_words = rows[f"endpoint:{ends[0]}"].detail["n_tokens"]
        assert n_words == 6 and run.cost["usd"] == pytest.approx(12)  # six words of a dollar each, from two
        local = rows[f"checkpoint:{policy}"]
        assert run.cost["generated_tokens"] == 12 + local.detail["n_tokens"] + rows[f"arm:{arm}"].detail["n_tokens"]
        assert rows_of(ask(project, checkpoints=[policy]).id)[f"checkpoint:{policy}"].text == local.text  # same seed
        assert rows_of(ask(project, checkpoints=[policy], seed=2).id)[f"checkpoint:{policy}"].text != local.text

        again = ask(project, "and now?", checkpoints=[policy], endpoints=[ends[0]], after=run.id)
        assert again.status == "done", again.error
        told = server.requests[-1]["messages"]
        assert [one["role"] for one in told] == ["user", "assistant", "user"]
        assert told[1]["content"] == rows[f"endpoint:{ends[0]}"].text
        page = client.get(f"/p/demo/checkpoints/playground?run={again.id}").text
        assert "hello there" in page and "and now?" in page and page.count("You said:") == 3
        events = client.get(f"/p/demo/checkpoints/playground/{again.id}/stream")
        assert events.headers["content-type"].startswith("text/event-stream")
        assert "event: said" in events.text and events.text.endswith("event: end\ndata: {}\n\n")


@ON_SQLITE
def test_words_arrive_one_by_one_and_stop_keeps_them(client: TestClient, project: Project) -> None:
    with ChatServer(lambda _: "w " * 400, piece_s=0.02) as server:
        key = endpoint(project, server.origin)
        run = start(project.id, kind="play", said="count", endpoints=[key], decoding={"max_new_tokens": 1000})
        assert run.queue == "io"
        thread = threading.Thread(target=work, args=(run.id, run.attempt))
        thread.start()
        lengths: list[int] = []
        while len(set(lengths)) < 4:
            rows = rows_of(run.id)
            lengths += [len(row.text) for row in rows.values()]
            time.sleep(0.05)
        page = client.get(f"/p/demo/checkpoints/playground?run={run.id}").text
        assert "data-stream" in page and "writing" in page
        told = client.post(f"/p/demo/checkpoints/playground/{run.id}/stop", follow_redirects=False)
        assert told.headers["location"].endswith(f"playground?run={run.id}#newest")
        thread.join(20)
    assert lengths == sorted(lengths)
    stopped = read(Run, run.id)
    (row,) = rows_of(run.id).values()
    assert stopped.status == "cancelled" and row.text.startswith("w w ") and len(row.text) < 800
    page = client.get(f"/p/demo/checkpoints/playground?run={run.id}").text
    assert "stopped" in page and "data-stream" not in page


@ON_SQLITE
def test_a_local_text_grows_too_and_who_finished_is_not_asked_again(
    client: TestClient, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.play.STORED_EVERY_S", 0.0)  # every token
    policy = tiny_checkpoint(project)
    with ChatServer(echo) as server:
        key = endpoint(project, server.origin)
        fields: dict[str, Any] = {"kind": "play", "said": "hi", "checkpoints": [policy], "endpoints": [key]}
        fields["decoding"] = {"max_new_tokens": 40}
        whole = rows_of(do(project.id, **fields).id)
        assert len(whole[f"checkpoint:{policy}"].text) > 8
        run = start(project.id, **fields)
        seen: list[str] = []

        class Stops(Job):
            def progress(self, done: int, total: int, note: str = "") -> None:
                seen.extend(row.text for row in rows_of(self.run_id).values() if row.detail["player"][0] == "c")
                if seen[-1]:
                    with transaction() as session:
                        cancel(session, session.get_one(Run, self.run_id))
                    self._checked = 0.0
                super().progress(done, total, note)

        with pytest.raises(Cancelled):
            play(Stops(run.id, run.attempt))
        assert 0 < len(seen[-1]) < len(whole[f"checkpoint:{policy}"].text)
        assert whole[f"checkpoint:{policy}"].text.startswith(seen[-1])
        with transaction() as session:
            finish(session, run.id, run.attempt, "cancelled")
            resume(session, session.get_one(Run, run.id))
        n = len(server.requests)
        again = claim_next()
        work(again.id, again.attempt)
        assert len(server.requests) == n
    assert {key: row.text for key, row in rows_of(run.id).items()} == {key: row.text for key, row in whole.items()}


def test_no_part_of_a_key_is_told_where_a_message_is_cut() -> None:
    key = "sk-" + "K" * 60
    assert redact(f"bad {key}.", key) == "bad [key]."
    assert redact(f"Incorrect API key provided: {key}"[:50], key) == "Incorrect API key provided: [key]"
    assert redact("a task", key) == "a task" and redact("HTTP 500", "") == redact("HTTP 500", None) == "HTTP 500"


@ON_SQLITE
def test_who_fails_says_why_in_its_place(client: TestClient, project: Project) -> None:
    with (
        ChatServer(lambda _: Fault(500)) as broken,
        ChatServer(lambda _: "one two three four", breaks_after=2) as cut,
        ChatServer(lambda _: "a b c") as good,
    ):
        keys = [endpoint(project, one.origin, name=name) for one, name in ((broken, "b"), (cut, "c"), (good, "g"))]
        run = ask(project, endpoints=keys)
        alone = ask(project, endpoints=keys[:1])
        states = [row.detail["state"] for row in rows_of(run.id).values()]
        rows = list(rows_of(run.id).values())
        page = client.get(f"/p/demo/checkpoints/playground?run={run.id}").text
        silent = client.post("/p/demo/checkpoints/playground", data={"said": "x", "after": run.id, "endpoints": keys})
    assert run.status == "done" and states == ["failed", "failed", "stop"]
    assert "HTTP 500" in rows[0].detail["why"] and rows[1].text == "one two " and "HTTP 500" in page
    assert alone.status == "failed" and "Nobody could answer" in (alone.error or "")
    assert silent.status_code == 422 and "said nothing in the turn before" in silent.text


def test_the_form_sends_a_message_once_and_says_what_is_wrong(client: TestClient, project: Project) -> None:
    assert "Nobody to ask yet" in client.get("/p/demo/checkpoints/playground").text
    with ChatServer(echo) as server:
        key = endpoint(project, server.origin)
        page = client.get(f"/p/demo/checkpoints/playground?endpoints={key}&said=why%3F").text
        assert "why?" in page and f'name="endpoints" value="{key}" checked' in page
        form = {"said": "hi", "endpoints": str(key), "form_key": "k", "decoding.temperature": "0.5"}
        sent = [client.post("/p/demo/checkpoints/playground", data=form, follow_redirects=False) for _ in range(2)]
        assert sent[0].headers["location"] == sent[1].headers["location"]
        work(claim_next().id, 1)
        assert server.requests[-1]["temperature"] == 0.5
        page = client.get(sent[0].headers["location"]).text
        assert "You said: hi" in page and 'name="after"' in page
        for wrong, why in (({}, "choose one to 12"), ({"endpoints": "999"}, "no endpoint 999"),
                           ({"endpoints": str(key), "said": ""}, "said")):  # fmt: skip
            answer = client.post("/p/demo/checkpoints/playground", data={"said": "typed", **wrong})
            assert (
                answer.status_code == 422 and why in answer.text.lower() and ("said" in wrong or "typed" in answer.text)
            )
    for bad in ("999", "0", "99999999999999999999"):
        assert client.get(f"/p/demo/checkpoints/playground?run={bad}").status_code in (404, 422)


@ON_SQLITE
def test_what_writes_nothing_is_refused(client: TestClient, project: Project, tmp_path: Path) -> None:
    reward = write_reward(tmp_path / "reward", write_tiny(tmp_path / "base"), False)
    key = stored_checkpoint(project, Path(reward.place), role="reward")
    with pytest.raises(AppError, match="writes nothing"):
        start(project.id, kind="play", said="x", checkpoints=[key])
    assert "Nobody to ask yet" in client.get("/p/demo/checkpoints/playground").text


@ON_SQLITE
def test_a_turn_that_is_stopped_at_once_does_not_wait_for_its_endpoints(project: Project) -> None:
    with ChatServer(echo) as server:
        run = start(project.id, kind="play", said="hello", endpoints=[endpoint(project, server.origin)])
        job = Job(run.id, run.attempt)
        with job.read() as session:
            players = read_players(session, job.recipe)
        server.delay_s = 5
        distant = _Endpoints(job, Board(job, players), players, {0: [{"role": "user", "content": "hello"}]})
        since = time.monotonic()
        distant.stop()
        assert time.monotonic() - since < 3
