"""Set up .venv from the lock: `python3 scripts/setup.py [--dev]`. Standard library only."""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = ROOT / ".setup.log"
TORCH = "2.13.0"
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROME_ON_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


class StepError(Exception):
    """A step failed; the message says what to do."""


def run_logged(*command: str | Path, remedy: str) -> None:
    """Run one command with its output in the log; on failure, show the log's end and the remedy."""
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with LOG.open("ab") as log:  # beside .venv, which one of the steps clears
        start = log.tell()
        done = subprocess.run([str(part) for part in command], stdout=log, stderr=log, env=env, check=False)
    if done.returncode:
        with LOG.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        shown = [line for line in lines if not line.startswith("WARNING")][-12:]
        raise StepError("\n".join([*("    " + line for line in shown), f"  What to do: {remedy}"]))


@contextmanager
def told(name: str) -> Iterator[None]:
    """Print the step's name, a sign of life every 15 seconds, and how long it took."""
    start = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(15):
            print(f"    … {time.monotonic() - start:.0f} s", flush=True)

    print(f"set-up: {name}", flush=True)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    print(f"    done in {time.monotonic() - start:.0f} s", flush=True)


def check_machine() -> None:
    """Refuse a Python or a platform that the lock was not made for."""
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        raise StepError(
            f"  Python {platform.python_version()} cannot run PrefLab.\n"
            "  What to do: install Python 3.11 to 3.14 and run `make PYTHON=python3.12 …`"
        )
    if (platform.system(), platform.machine()) not in PLATFORMS:
        raise StepError(
            f"  The lock has no packages for {platform.system()} {platform.machine()}.\n"
            "  What to do: use Linux (x86_64, aarch64) or macOS (arm64)."
        )


def ask(*command: str | Path) -> str | None:
    """What a command prints, or None if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


def make_venv() -> None:
    """Create .venv, again if an earlier attempt was cut off."""
    if PYTHON.exists() and ask(PYTHON, "-m", "pip", "--version"):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    run_logged(
        *(sys.executable, "-m", "venv", "--clear", VENV),
        remedy=f"on Debian or Ubuntu `sudo apt install python{version}-venv`; then run it again.",
    )


def install_lock(lock: Path) -> None:
    """Install exactly what the lock says, nothing else, hashes checked."""
    run_logged(
        *(PYTHON, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", lock),
        remedy=f"check the network and the free disk space (2 GB), then run it again; the log is {LOG}.",
    )


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver sees a GPU."""
    return bool(shutil.which("nvidia-smi")) and bool(ask("nvidia-smi", "-L"))


def install_torch(build: str) -> None:
    """The build of torch asked for; "auto": CUDA with an NVIDIA GPU, else the small CPU one where it can be had."""
    found = ask(PYTHON, "-c", "import importlib.metadata as m; print(m.version('torch'))") or ""
    if found.split("+")[0] == TORCH:
        return
    pip = (PYTHON, "-m", "pip", "install")
    wants_cpu = build == "cpu" or (build == "auto" and not has_nvidia_gpu())
    if platform.system() == "Linux" and wants_cpu:
        try:
            run_logged(*pip, "--no-deps", f"torch=={TORCH}+cpu", remedy="")
            return
        except StepError:
            print("    your package index has no CPU-only build: taking the full one, gigabytes more", flush=True)
            print("    (to avoid it: Ctrl-C, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index, start again)", flush=True)
    remedy = "check the network and the free disk space (8 GB on Linux), then run it again."
    run_logged(*pip, f"torch=={TORCH}", remedy=remedy)


def check_packages() -> None:
    """Let pip say whether everything fits together."""
    run_logged(PYTHON, "-m", "pip", "check", remedy="remove .venv (rm -rf .venv) and run it again.")


def install_project() -> None:
    """Make `.venv/bin/preflab` and the import of app and worker work from anywhere."""
    run_logged(
        *(PYTHON, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", ROOT),
        remedy="remove .venv (rm -rf .venv) and run it again.",
    )


def find_chromium() -> str | None:
    """A Chromium or Chrome on this machine, Playwright's own included."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    if CHROME_ON_MAC.exists():
        return str(CHROME_ON_MAC)
    code = (
        "from playwright.sync_api import sync_playwright\n"
        "with sync_playwright() as p: print(p.chromium.executable_path)"
    )
    path = ask(PYTHON, "-c", code)
    return path if path and Path(path).exists() else None


def get_browser() -> None:
    """A browser for the tests: the one on PATH, else Debian's, else Playwright's download."""
    if find_chromium():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        run_logged("apt-get", "update", "-qq", remedy="check the network.")
        run_logged(
            *("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"),
            remedy="install a Chromium or Chrome by hand, so that it is on PATH.",
        )
        return
    run_logged(
        *(PYTHON, "-m", "playwright", "install", "chromium"),
        remedy="install Chromium or Chrome by hand (`sudo apt install chromium`), so that it is on PATH.",
    )


def lock_stamp(lock: Path) -> str:
    """What the finished set-up depends on: the lock, this script, this Python and this folder."""
    parts = [lock.read_bytes(), Path(__file__).read_bytes()]
    parts += [sys.version.encode(), sysconfig.get_platform().encode(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def list_steps(lock: Path, is_done: bool, is_dev: bool, torch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The steps that are still to do, in order."""
    if not is_done:
        yield "check the machine", check_machine
        yield "make .venv", make_venv
        yield f"install packages from {lock.relative_to(ROOT)} (about 2 minutes)", lambda: install_lock(lock)
        yield f"install torch {TORCH}", lambda: install_torch(torch)
        yield "install PrefLab itself", install_project
        yield "check that the packages fit together", check_packages
    if is_dev and not find_chromium():
        yield "get a browser for the tests", get_browser


def main() -> int:
    """Run what is not done yet; say which step failed and what to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also what the tests need, a browser included")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="which build of torch")
    args = parser.parse_args()
    is_dev = args.dev
    lock = ROOT / "requirements" / ("dev.lock" if is_dev else "runtime.lock")
    stamp = VENV / ("dev.stamp" if is_dev else "runtime.stamp")
    is_done = stamp.exists() and stamp.read_text() == lock_stamp(lock)
    for name, step in list_steps(lock, is_done, is_dev, args.torch):
        try:
            with told(name):
                step()
        except StepError as error:
            print(f"set-up failed at the step: {name}\n{error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"set-up stopped at the step: {name}; start it again to go on", file=sys.stderr)
            return 130
    stamp.write_text(lock_stamp(lock))
    return 0


if __name__ == "__main__":
    sys.exit(main())
