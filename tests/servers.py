"""Real servers for the tests: a throw-away Postgres and Redis, found on this machine or visibly skipped."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


def skip_or_fail(name: str, why: str) -> None:
    """Skips, unless PREFLAB_REQUIRE lists this: then the lack of it is a failure."""
    if name in os.environ.get("PREFLAB_REQUIRE", "").split(","):
        pytest.fail(f"PREFLAB_REQUIRE asks for {name}: {why}")
    pytest.skip(why)


def free_port() -> int:
    """A TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_postgres() -> Path | None:
    """The folder with initdb and postgres: Debian keeps it off PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return folders[-1].parent if folders else None


def as_other_user() -> list[str]:
    """Postgres refuses to run as root: the words that run it as somebody else."""
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


@contextmanager
def run_postgres() -> Iterator[str]:
    """A fresh Postgres on a free port; gives a URL that lacks only the database's name."""
    binaries = find_postgres()
    if binaries is None:
        skip_or_fail("postgres", "no Postgres server here (Debian: apt install postgresql)")
    assert binaries is not None
    user = as_other_user()
    folder = Path(tempfile.mkdtemp(prefix="preflab-pg-"))
    port = free_port()
    try:
        if user:
            shutil.chown(folder, user=user[1].removeprefix("--reuid="))
        initdb = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "preflab", "-A", "trust", "--no-sync"]
        subprocess.run([*user, *initdb, "-E", "UTF8", "--locale=C"], check=True, capture_output=True, cwd="/")
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            command = [*user, str(binaries / "postgres"), "-D", str(folder / "data"), *flags]
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        try:
            await_postgres(server, port, Path(log.name))
            yield f"postgresql://preflab@127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(timeout=20)
            Path(log.name).unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def await_postgres(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns once the server takes connections."""
    for _ in range(200):
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(f"postgresql://preflab@127.0.0.1:{port}/postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError(f"Postgres did not come up:\n{log.read_text()}")


@contextmanager
def run_redis() -> Iterator[str]:
    """A real redis-server on a free port; gives its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        skip_or_fail("redis", "no redis-server here (Debian: apt install redis-server)")
    assert binary is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="preflab-redis-") as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(timeout=20)
