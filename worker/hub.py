"""The Hugging Face hub as a source: pinned to a commit, never run as code, refused with the remedy.

Data sets are streamed by the library `datasets` into the run's folder; checkpoints are fetched by hub_model.py. The
token is HF_TOKEN of the worker's environment; HF_ENDPOINT names another hub.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

from app.errors import Invalid
from app.prompts.files import MAX_DECODED
from app.prompts.hub_names import HubName, read_hub_name
from app.prompts.sources import peeked
from worker.job import Job

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # would tell another host what is read

READERS = {"parquet", "json", "csv", "text", "arrow"}  # of `datasets`: those of rows; none runs what a file holds
PEEKED = 1_000  # rows, as many as a look reads
MOST_PEEKED = 64 * 2**20
TIMEOUT_S = 30.0


def fetch_hub(job: Job, recipe: Any) -> Any:
    """The recipe itself; where it names a data set on the hub, one that names the copy in the run's folder."""
    if recipe.format != "hub":
        return recipe
    copy = job.folder / "hub.jsonl"
    if not copy.exists():
        _fetch_rows(job, recipe.path, 2 * recipe.limit + 1000 if recipe.limit else None, MAX_DECODED, copy)
    return recipe.model_copy(update={"path": str(copy.resolve()), "format": "jsonl"})


def source_of(job: Job, recipe: Any) -> str:
    """Where an import's rows come from; of a data set on the hub with the commit that was read."""
    if recipe.format != "hub":
        return str(recipe.path)
    return str(json.loads((job.folder / "hub.json").read_text(encoding="utf-8"))["name"])


def peek_hub(job: Job) -> None:
    """Fetches a data set's first rows to where the page that shows them looks."""
    part = job.folder / "peek.jsonl"
    name = _fetch_rows(job, job.recipe.path, PEEKED, MOST_PEEKED, part)
    shutil.move(part, peeked(name))


def _fetch_rows(job: Job, text: str, most: int | None, largest: int, copy: Path) -> str:
    """Writes a data set's rows as JSONL and, beside them, what was read; returns its name with commit and split."""
    asked = read_hub_name(text)
    import httpx2
    from datasets.exceptions import DatasetsError

    part = copy.with_suffix(".partial")
    try:
        name, rows = _open(job, asked)
        n = _write(job, _limited(rows, str(name), most, largest), part)
    # What the libraries raise for a missing set, a split, a broken file or the network.
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx2.HTTPError) as error:
        raise _bad(explain(error, asked.id, "dataset")) from error
    if not n:
        raise _bad(f"{name} has no rows: name another split.")
    note = {"name": str(name), "rows": n, "is_whole": most is None or n < most}
    (job.folder / "hub.json").write_text(json.dumps(note), encoding="utf-8")
    part.replace(copy)
    job.log(f"{n:,} rows of {name}" + ("" if note["is_whole"] else "; there may be more"))
    return str(name)


def _open(job: Job, asked: HubName) -> tuple[HubName, Iterable[Any]]:
    """The name with what it left open filled in, and the rows, streamed."""
    job.log(f"asking the hub for {asked}")
    pinned = job.folder / "hub-commit"  # an attempt that goes on reads what the first one began with
    info = pin(asked.id, pinned.read_text() if pinned.exists() else asked.revision, "dataset")
    pinned.write_text(info.sha)
    script = f"{info.id.rpartition('/')[2]}.py"
    if any(file.rfilename == script for file in info.siblings or []):
        raise _bad(
            f"{asked.id} is made by code of its own ({script}), which is never run: choose the hub's copy in Parquet, "
            f"{info.id}@refs/convert/parquet, or a data set of plain files."
        )
    builder = _builder(info.id, asked.config, info.sha)
    files = dict(builder.config.data_files or {})  # by split; the library takes none from outside the repository
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in READERS:
        raise _bad(f"{asked.id} is read by “{reader}”, not as rows of {', '.join(sorted(READERS))}: choose another.")
    split = asked.split or ("train" if "train" in files or len(files) != 1 else next(iter(files)))
    if split not in files:
        raise _bad(f"{asked.id} has no split “{split}”: name one of its own, such as {_first(files, asked)}.")
    rows = builder.as_streaming_dataset(split=split)
    name = HubName(info.id, asked.config, info.sha, split)
    return name, rows.decode(False) if rows.features else rows


def _builder(repo: str, config: str, commit: str) -> Any:
    from datasets import get_dataset_config_names, load_dataset_builder

    place = f"hf://datasets/{repo}"  # without this, a folder of that name on the server would be read
    try:
        return load_dataset_builder(place, config or None, revision=commit)
    except ValueError as error:
        names = get_dataset_config_names(place, revision=commit)
        if len(names) < 2 or config in names:
            raise
        said = f"has no configuration “{config}”" if config else "has several configurations"
        listed = ", ".join(f"{repo}/{name}" for name in names[:8]) + (", …" if len(names) > 8 else "")
        raise _bad(f"{repo} {said}: name one of {listed}.") from error


def _first(files: dict[str, Any], asked: HubName) -> str:
    return ", ".join(str(asked._replace(split=split)) for split in list(files)[:5]) or "none: it has no data files"


def _limited(rows: Iterable[Any], name: str, most: int | None, largest: int) -> Iterator[str]:
    """A line of JSON a row, until there are enough."""
    size = 0
    for number, row in enumerate(rows, 1):
        line = _as_json(row)
        size += len(line)
        if size > largest:
            if most is not None and number > 1:
                return  # a look needs no more
            raise _bad(f"{name} holds more than {largest // 2**20:,} MB of text: name a smaller split.")
        yield line
        if number == most:
            return


def _as_json(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:  # tables say NaN where nothing stands; JSON says null
        return json.dumps(_finite(row), ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """What JSON has no word for. Bytes (pictures, sound) are named, not kept."""
    if isinstance(value, date | datetime):
        return value.isoformat()
    return f"({len(value):,} bytes, no text)" if isinstance(value, bytes) else str(value)


def _write(job: Job, lines: Iterator[str], part: Path) -> int:
    number = 0
    with part.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for number, line in enumerate(lines, 1):
            file.write(line + "\n")
            if number % 200 == 0:
                job.progress(number, 0, f"fetching: {number:,} rows")
    return number


def pin(repo: str, revision: str, kind: str) -> Any:
    """What the hub says of a repository at a revision, with its commit; raises what huggingface_hub raises."""
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.repo_info(
        repo, revision=revision or None, repo_type=kind, files_metadata=kind == "model", timeout=TIMEOUT_S
    )
    if info.gated:
        api.auth_check(repo, repo_type=kind)  # its page is public, its files are not
    return info


def explain(error: BaseException, repo: str, kind: str) -> str:
    """Why the hub did not give a repository, and what to do about it."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT.partition("://")[2]
    causes = list(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    answers = [one.response.status_code for one in causes if isinstance(one, HfHubHTTPError)]
    token = "the HF_TOKEN of the worker's environment"
    if is_any(OfflineModeIsEnabled) or constants.is_offline_mode():
        return (f"HF_HUB_OFFLINE is set in the worker's environment, and {repo} is not whole in its cache: unset it, "
                "or download what is needed elsewhere and give the file or folder.")  # fmt: skip
    if is_any(GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        return f"{repo} is gated: ask for access on {page}, then let {token} be one of the account that was given it."
    if is_any(RepositoryNotFoundError):
        return f"{hub} has no {repo}, or it is private: check the id, or let {token} be one that may read it."
    if is_any(RevisionNotFoundError):
        return f"{repo} has no such revision: name a branch, a tag or a commit of it."
    if 401 in answers or 403 in answers:
        return f"{hub} does not accept {token} for {repo}: make a new one that may read, and start the worker with it."
    if 429 in answers:
        return f"{hub} answers that there were too many requests: wait a few minutes and press Resume."
    if any(status >= 500 for status in answers):
        return f"{hub} answers with an error of its own ({max(answers)}): press Resume later."
    if is_any(httpx2.TransportError, ConnectionError):
        return (f"{hub} cannot be reached from the worker: check its network (HTTPS_PROXY, or a mirror by HF_ENDPOINT) "
                f"and press Resume, or download {repo} elsewhere and give the file or folder.")  # fmt: skip
    said = " ".join(str(error).split()).rpartition(" on the Hugging Face Hub either: ")[2][:300]
    said = said or type(error).__name__
    return f"{repo} cannot be read from {hub} ({said}): check it, or download it and give a file."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _bad(message: str) -> Invalid:
    return Invalid(message, {"path": [message]})
