"""A checkpoint on the Hugging Face hub: looked through before its weights are fetched, then fetched at one commit.

Pickles and code are never fetched. What has arrived whole stays in huggingface_hub's cache, so that an attempt that
goes on asks for the rest only.
"""

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from app.errors import Invalid
from worker.hub import explain, pin
from worker.job import Job

HUB_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
INDEX = "model.safetensors.index.json"
WHOLE = ("model.safetensors", "adapter_model.safetensors")
BESIDES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}  # files of configuration and tokenizer
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CODE = ("config.json", "tokenizer_config.json")  # what may ask for code


def fetch_model(job: Job, repo: str, revision: str) -> tuple[Path, str]:
    """A folder, called as the repository is, with what is needed of it, and its commit; raises Invalid."""
    if not HUB_ID.fullmatch(repo):
        raise _bad(f"{repo} is no directory on the server and no Hugging Face id such as owner/name.")
    import httpx2
    from huggingface_hub.errors import RevisionResolutionError

    try:
        snapshot = _fetch(job, repo, revision)
    except (OSError, ValueError, RuntimeError, RevisionResolutionError, httpx2.HTTPError) as error:
        why = explain(error, repo, "model")
        raise _bad(f"{repo} is no directory on the server. {why}") from error
    named = job.folder / repo.rpartition("/")[2]
    named.unlink(missing_ok=True)
    named.symlink_to(snapshot)
    return named, snapshot.name


def _fetch(job: Job, repo: str, revision: str) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    pinned = job.folder / "hub-commit"  # an attempt that goes on fetches what the first one began with
    asked = pinned.read_text() if pinned.exists() else revision
    sizes: dict[str, int] = {}
    small = [f"*{suffix}" for suffix in sorted(BESIDES)]
    job.log(f"asking {ENDPOINT} for {repo}")
    commit = HfApi().resolve_revision(repo, revision=asked or None).resolved  # the cache notes it for use offline
    if not is_offline_mode():  # else what the cache holds is taken, if it is whole
        info = pin(repo, commit, "model")
        pinned.write_text(commit)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
        _check_names(repo, set(sizes))
        small = [name for name in sizes if Path(name).suffix in BESIDES]
    folder = _snapshot(job, repo, commit, small, sum(sizes.get(name, 0) for name in small))
    _check_code(repo, folder)
    weights = _weights(folder, sizes)
    missing = [name for name in weights if sizes and name not in sizes]
    if missing or not weights:
        raise _bad(f"{repo} lacks {', '.join(missing[:3]) or 'its weights'}: choose another revision.")
    total = sum(sizes.get(name, 0) for name in weights)
    if total:
        _check_space(folder, total)
        job.log(f"{repo} at {commit}: {len(weights):,} weight files of {total / 1e6:,.1f} MB")
    return _snapshot(job, repo, commit, [*small, *weights], total)


def _check_names(repo: str, names: set[str]) -> None:
    if names & {INDEX, *WHOLE}:
        return
    pickle = next((name for name in sorted(names) if name.endswith(PICKLES)), "")
    if pickle:
        raise _bad(f"{repo} has its weights as pickles only ({pickle}), which can run code: choose one in safetensors.")
    raise _bad(f"{repo} holds no model.safetensors: choose a repository that a model was saved to by transformers.")


def _check_code(repo: str, folder: Path) -> None:
    """Before gigabytes are fetched for nothing."""
    for name in CODE:
        if not (folder / name).is_file():
            continue
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise _bad(f"{name} of {repo} is no JSON ({error}): choose another revision.") from error
        if isinstance(found, dict) and found.get("auto_map"):
            raise _bad(
                f"{repo} asks for code of its own ({name}: auto_map), which is never run: choose a model that "
                "transformers knows."
            )


def _weights(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Names of the weight files a loader would read."""
    if (folder / INDEX).is_file():
        try:
            found = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _bad(f"{INDEX} names no weight files ({error}): choose another revision.") from error
        return sorted({Path(str(shard)).name for shard in found})
    if sizes:
        return [next(name for name in WHOLE if name in sizes)]
    return [next((name for name in WHOLE if (folder / name).is_file()), WHOLE[0])]


def _check_space(folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if total > free:
        raise _bad(f"The weights need {total / 1e9:,.1f} GB where {folder.anchor}… has {free / 1e9:,.1f} GB free: free "
                   "some, or let HF_HOME of the worker's environment name a larger disk.")  # fmt: skip


def _snapshot(job: Job, repo: str, commit: str, names: list[str], total: int) -> Path:
    """Files of a repository at a commit, in huggingface_hub's cache; the run's bar shows the bytes as they arrive."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    arrived = [0]

    class Counter(tqdm):
        """Counts the bytes of the one bar over all files, and draws nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.is_counted = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            arrived[0] += int(n or 0) if self.is_counted else 0

    found: list[str] = []
    failed: list[BaseException] = []

    def fetch() -> None:
        try:
            found.append(
                snapshot_download(
                    repo, revision=commit or None, allow_patterns=names, ignore_patterns=["*/*"], tqdm_class=Counter
                )
            )
        except BaseException as error:  # noqa: BLE001  raised again below, in the run's own thread
            failed.append(error)

    thread = threading.Thread(target=fetch, daemon=True)  # a cancel does not wait for it
    since = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        megabytes, seconds = arrived[0] / 1e6, time.monotonic() - since
        note = f"fetching: {megabytes:,.1f} of {total / 1e6:,.1f} MB, {megabytes / seconds:,.1f} MB/s"
        job.progress(min(arrived[0], total), total, note)
    if failed:
        raise failed[0]
    job.progress(total, total, f"fetched: {total / 1e6:,.1f} MB")  # what was in the cache has not been counted
    return Path(found[0])


def _bad(message: str) -> Invalid:
    return Invalid(message, {"source": [message]})
