"""TRL 1.12's PPOTrainer as a peer, in an environment of its own: made in the cache folder, or named by its Python."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

from app.errors import AppError

PEER = "trl==1.12.*"
SCRIPT = Path(__file__).with_name("peer_ppo.py")


def peer_python(given: Path | None) -> Path:
    """The Python that has the peer. Without one, an environment is made once in the user's cache folder."""
    if given is not None:
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "preflab" / "trl-1.12"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making an environment for the peer in {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", f"torch=={torch.__version__}", PEER, "peft"], check=False
        )
        if done.returncode:
            raise AppError(f"The peer could not be installed: see pip's words above, or name a Python with {PEER}.")
        (folder / "ready").touch()
    return python


def peer_command(python: Path, given: dict[str, Any]) -> list[str]:
    """The command that trains with the peer, what it is given as JSON."""
    return [str(python), str(SCRIPT), json.dumps(given)]


def peer_script(python: Path, given: dict[str, Any]) -> str:
    """What the peer printed."""
    return subprocess.run(peer_command(python, given), stdout=subprocess.PIPE, check=True, text=True).stdout
