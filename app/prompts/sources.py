"""Where rows come from: one file, a folder that the library `datasets` saved (Arrow streams, one a split), or what a
worker has fetched of a data set on the Hugging Face hub."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.config import settings
from app.errors import Invalid
from app.prompts.files import MAX_DECODED, BadRow, Rows, find_file, limit_rows, read_rows, resolve_path, row_problem
from app.prompts.hub_names import HUB_NAME, read_hub_name
from app.prompts.models import SPLITS

BATCH = 64
OWN_SPLITS = {*SPLITS, "validation", "valid", "val", "eval"}  # as rows may call them, too


def peeked(name: str) -> Path:
    """Where the first rows of a data set on the hub lie once a worker has fetched them; the name is a pinned one."""
    return settings().folder("hub") / f"{sha256(name.strip().encode()).hexdigest()[:40]}.jsonl"


def is_unseen(name: str) -> bool:
    """Whether this names a data set on the hub of which no rows have been fetched."""
    return HUB_NAME.fullmatch(name) is not None and not peeked(str(read_hub_name(name))).is_file()


def fetched_name(run_id: int) -> str:
    """The pinned name of the data set whose first rows a run has fetched."""
    note = settings().folder("runs", run_id) / "hub.json"
    return str(json.loads(note.read_text(encoding="utf-8"))["name"])


def set_name(source: str, fmt: str = "auto") -> str:
    """What a set made from this source is called unless somebody names it."""
    return read_hub_name(source).id.rpartition("/")[2] if fmt == "hub" else Path(source).name.split(".")[0]


def open_rows(source: str, fmt: str = "auto") -> Rows:
    """(number, row) or BadRow for every row of a file or a saved data set; raises Invalid keyed by `path`.

    Of a data set on the hub these are the first rows that were fetched to be looked at; its import reads all of it.
    """
    if fmt == "hub":
        rows = peeked(str(read_hub_name(source)))
        if not rows.is_file():
            message = f"Nothing of {source} has been fetched from the hub yet: let its first rows be fetched."
            raise Invalid(message, {"path": [message]})
        return read_rows(rows, "jsonl")
    path = resolve_path(source) if "\x00" not in source else find_file(source)
    if not path.is_dir():
        return read_rows(find_file(source), "auto" if fmt == "arrow" else fmt)
    return limit_rows(read_arrow(path), MAX_DECODED)


def list_arrow(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, all its splits; raises Invalid where the folder is none."""
    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = _read_list(folder / "dataset_dict.json", "splits")
        folders = [folder / Path(str(split)).name for split in splits]
    files: list[Path] = []
    for one in folders:
        state = one / "state.json"
        if not state.is_file():
            message = (
                f"{folder.name} is no regular file, and no folder that the library datasets saved: it has no "
                f"{state.name}. Give one of its files, or such a folder. A folder of people's labels, such as "
                "MT-Bench's or LLMBar's, is imported as annotations."
            )
            raise Invalid(message, {"path": [message]})
        listed = [file.get("filename") if isinstance(file, dict) else "" for file in _read_list(state, "_data_files")]
        files += [one / Path(str(name)).name for name in listed]
    return files


def _read_list(file: Path, name: str) -> list[Any]:
    """A list in one of the small JSON files of a saved data set; raises Invalid."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = error
    if not isinstance(found, list):
        message = f"{file.parent.name}/{file.name} has no list “{name}”: save the data set again."
        raise Invalid(message, {"path": [message]})
    return found


def read_arrow(folder: Path) -> Rows:
    """Rows of a saved data set, memory-mapped: a batch is decoded at a time.

    Where it has train, test and such, a row that names no split of its own keeps its data set's: no test is trained on.
    """
    import pyarrow as pa

    number = 0
    for file in list_arrow(folder):
        known = {"split": file.parent.name} if file.parent.name in OWN_SPLITS and file.parent != folder else {}
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for whole in stream:
                    for start in range(0, whole.num_rows, BATCH):
                        for row in whole.slice(start, BATCH).to_pylist():
                            number += 1
                            problem = row_problem(row)
                            if "split" not in row:
                                row |= known
                            yield BadRow(number, problem) if problem else (number, row)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{file.name} is no readable Arrow file: {str(error)[:200]}") from error


def peek(source: str, fmt: str, n: int) -> list[tuple[int, Any] | BadRow]:
    """The first `n` rows, good and bad."""
    found = []
    for one in open_rows(source, fmt):
        found.append(one)
        if len(found) == n:
            break
    return found
