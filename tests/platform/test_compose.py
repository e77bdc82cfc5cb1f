"""docker-compose.yml without Docker: the same commands with the same environment, on a real Postgres and Redis."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from app import launcher
from tests.conftest import ROOT
from tests.servers import free_port

OURS = ("web", "worker-gpu", "worker-io")


def read_compose(**given: str) -> dict[str, Any]:
    """The file with `${NAME:-default}` and `${NAME:?message}` filled in after parsing, as docker compose does."""

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert name in given or kind == ":-", f"{name}: {rest}"
        return given.get(name, rest)

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", fill, node) if isinstance(node, str) else node

    loaded: dict[str, Any] = filled(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))
    return loaded


class Composed:
    """The services of the file, with container names and paths replaced by this machine's."""

    def __init__(self, replace: dict[str, str], logs: Path) -> None:
        self.services = read_compose(POSTGRES_PASSWORD="secret")["services"]
        self.replace = replace
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str) -> str:
        for old, new in self.replace.items():
            text = text.replace(old, new)
        return sys.executable if text == "python" else text

    def environ(self, name: str) -> dict[str, str]:
        given = {key: self.here(str(value)) for key, value in self.services[name]["environment"].items()}
        return {"PATH": os.environ["PATH"], "HOME": str(self.logs), "LANG": "C.UTF-8"} | given

    def start(self, name: str) -> subprocess.Popen[bytes]:
        command = [self.here(word) for word in self.services[name]["command"]]
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environ(name), cwd=ROOT, stdout=log, stderr=log)
        self.running[name] = process
        return process

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def is_healthy(self, name: str) -> bool:
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = [self.here(word) for word in command]
        done = subprocess.run(words, env=self.environ(name), cwd=ROOT, capture_output=True)
        return done.returncode == 0

    def await_healthy(self, name: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_healthy(name):
            assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.3)

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.terminate()
        try:
            return process.wait(timeout=30)  # stop_grace_period of the file
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not stop in its grace period:\n{self.log(name)}") from None


@pytest.fixture
def composed(postgres_server: str, redis_url: str, tmp_path: Path) -> Iterator[Composed]:
    with psycopg.connect(postgres_server + "postgres", autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS preflab WITH (FORCE)")
        connection.execute("CREATE DATABASE preflab")
    (tmp_path / "volume").mkdir()
    (tmp_path / "logs").mkdir()
    replace = {
        "postgresql://preflab:secret@postgres:5432/": postgres_server,
        "redis://redis:6379/0": redis_url,
        "/data": str(tmp_path / "volume"),
        "8123": str(free_port()),
        "0.0.0.0": "127.0.0.1",
    }
    composed = Composed(replace, tmp_path / "logs")
    yield composed
    for process in composed.running.values():
        process.kill()
        process.wait()


def test_the_written_services_start_become_healthy_and_stop(composed: Composed):
    migrate = composed.start("migrate")
    assert migrate.wait(timeout=60) == 0, composed.log("migrate")
    assert not any(composed.is_healthy(name) for name in OURS), "a health check that cannot fail checks nothing"
    for name in OURS:
        composed.start(name)
    for name in OURS:
        composed.await_healthy(name)
    codes = {name: composed.stop(name) for name in OURS}
    assert set(codes.values()) <= {0, -15}, codes
    assert [name for name in OURS if "Traceback" in composed.log(name)] == []


def test_the_file_runs_what_the_launcher_runs():
    services = read_compose(POSTGRES_PASSWORD="x")["services"]
    assert services["web"]["command"][1:] == launcher.web_command("0.0.0.0", 8123)[1:]
    assert services["worker-gpu"]["command"][1:] == launcher.worker_command("gpu")[1:]
    assert services["worker-io"]["command"][1:] == launcher.worker_command("io,cpu")[1:]
    queues = [services[name]["environment"]["PREFLAB_WORKER_QUEUES"] for name in ("worker-gpu", "worker-io")]
    assert tuple(queues) == launcher.QUEUES


def test_nothing_runs_as_root_and_every_lasting_service_has_a_health_check():
    services = read_compose(POSTGRES_PASSWORD="x")["services"]
    assert [n for n, service in services.items() if "healthcheck" not in service and n != "migrate"] == []
    for name, service in services.items():
        assert "build" in service or service["user"] not in {"", "root", "0"}, name
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (\w+)", dockerfile, re.MULTILINE) == ["preflab"]
    assert "scripts/setup.py" in dockerfile, "the image is installed from the lock"


def test_a_missing_password_stops_the_composition():
    with pytest.raises(AssertionError, match=r"POSTGRES_PASSWORD: put a password into \.env"):
        read_compose()
