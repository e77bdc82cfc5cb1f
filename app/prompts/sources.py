"""Where rows come from: one file, or a folder that the library `datasets` saved (Arrow streams, one a split)."""

import json
from pathlib import Path
from typing import Any

from app.errors import Invalid
from app.prompts.files import MAX_DECODED, BadRow, Rows, find_file, limit_rows, read_rows, resolve_path, row_problem

BATCH = 64


def open_rows(source: str, fmt: str = "auto") -> Rows:
    """(number, row) or BadRow for every row of a file or a saved data set; raises Invalid keyed by `path`."""
    if fmt == "hub":
        raise Invalid(
            f"{source} is a name on huggingface.co: the worker fetches it when the import runs, not before.",
            {"path": ["is fetched by the import itself"]},
        )
    path = resolve_path(source) if "\x00" not in source else find_file(source)
    if not path.is_dir():
        return read_rows(find_file(source), "auto" if fmt == "arrow" else fmt)
    return limit_rows(read_arrow(path), MAX_DECODED)


def list_arrow(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, all its splits; raises Invalid where the folder is none."""
    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        folders = [folder / Path(str(split)).name for split in splits]
    files: list[Path] = []
    for one in folders:
        state = one / "state.json"
        if not state.is_file():
            message = (
                f"{folder.name} is no regular file, and no folder that the library datasets saved: it has no "
                f"{state.name}. Give a file, or such a folder."
            )
            raise Invalid(message, {"path": [message]})
        listed = json.loads(state.read_text(encoding="utf-8")).get("_data_files", [])
        files += [one / Path(str(file.get("filename"))).name for file in listed]
    return files


def read_arrow(folder: Path) -> Rows:
    """Rows of a saved data set, memory-mapped: a batch is decoded at a time."""
    import pyarrow as pa

    number = 0
    for file in list_arrow(folder):
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for whole in stream:
                    for start in range(0, whole.num_rows, BATCH):
                        for row in whole.slice(start, BATCH).to_pylist():
                            number += 1
                            problem = row_problem(row)
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
