"""Rows of data sets on the Hugging Face hub that lie in the data folder: which, how large, used by whom; deleting them.

The first rows of a set, which pages show, lie once for all projects; a whole copy, which an import reads, lies in its
run's folder, and so does what was cut off while it was fetched. Whatever is deleted can be fetched again, at the same
commit.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.config import settings
from app.errors import Conflict, Invalid, NotFound
from app.prompts.hub_names import read_hub_name
from app.prompts.sources import peeked
from app.runs.models import LIVE, Run

KINDS = ("peek_hub", "import_prompts", "import_pairs", "import_annotations")
COPIES = {"hub.jsonl": "whole copy", "hub.partial": "cut off", "peek.partial": "cut off"}


@dataclass(frozen=True)
class Fetched:
    """One file."""

    key: str  # in addresses and on the command line
    name: str  # of the data set, with its commit; empty where no run's note tells it
    what: str
    run_ids: tuple[int, ...]  # that fetched it
    path: Path
    size: int  # bytes
    fetched_at: datetime
    used_by: tuple[int, ...]  # live runs that read it, or fetch the same data set

    @property
    def megabytes(self) -> float:
        """Its size as pages and commands show it."""
        return self.size / 1e6


def list_fetched(session: Session, project_id: int | None = None) -> list[Fetched]:
    """What lies there, the largest first; with a project, what its runs have fetched and what no run knows."""
    data = settings().data_path
    names = {int(note.parent.name): _read_name(note) for note in _in_runs(data, "hub.json")}
    runs = session.exec(select(Run.id, Run.project_id, Run.recipe, Run.status).where(col(Run.kind).in_(KINDS))).all()
    live = {run_id: _asked(recipe) for run_id, _, recipe, status in runs if status in LIVE}
    found = [*_first_rows(data, names, live), *_copies(data, names, live)]
    if project_id is not None:
        of_project = {run_id for run_id, owner, _, _ in runs if owner == project_id}
        found = [
            replace(one, run_ids=tuple(sorted(of_project.intersection(one.run_ids))))
            for one in found
            if not one.run_ids or of_project.intersection(one.run_ids)
        ]
    return sorted(found, key=lambda one: (-one.size, one.key))


def delete_fetched(session: Session, key: str, project_id: int | None = None) -> Fetched:
    """Deletes one file. Raises NotFound, and Conflict while a live run uses it."""
    one = next((one for one in list_fetched(session, project_id) if one.key == key), None)
    if one is None:
        raise NotFound(f"Nothing called {key[:80]} has been fetched from the hub, or it is gone already.")
    if one.used_by:
        raise Conflict(
            f"Run {one.used_by[0]} uses {one.name or 'it'} just now: wait until it has ended, or cancel it, and delete "
            "it then."
        )
    one.path.unlink(missing_ok=True)
    return one


def delete_unused(session: Session, project_id: int | None = None) -> list[Fetched]:
    """Deletes all that no live run uses."""
    found = [one for one in list_fetched(session, project_id) if not one.used_by]
    for one in found:
        one.path.unlink(missing_ok=True)
    return found


def _in_runs(data: Path, file: str) -> list[Path]:
    return [path for path in data.glob(f"runs/*/{file}") if path.parent.name.isdecimal()]


def _asked(recipe: Mapping[str, Any]) -> str:
    """The id of the data set on the hub that a run asks for; empty for a file."""
    if recipe.get("kind") != "peek_hub" and recipe.get("format") != "hub":
        return ""
    return _id_of(str(recipe.get("path")))


def _id_of(name: str) -> str:
    try:
        return read_hub_name(name).id if name else ""
    except Invalid:
        return ""


def _read_name(note: Path) -> str:
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _first_rows(data: Path, names: dict[int, str], live: dict[int, str]) -> Iterator[Fetched]:
    by_file: dict[str, list[int]] = {}
    for run_id, name in names.items():
        by_file.setdefault(peeked(name).name, []).append(run_id)
    for path in data.glob("hub/*.jsonl"):
        run_ids = tuple(sorted(by_file.get(path.name, ())))
        name = names[run_ids[0]] if run_ids else ""
        used_by = tuple(run_id for run_id, asked in live.items() if asked and asked == _id_of(name))
        yield from _look_at(f"first-{path.stem}", name, "first rows", run_ids, path, used_by)


def _copies(data: Path, names: dict[int, str], live: dict[int, str]) -> Iterator[Fetched]:
    for file, what in COPIES.items():
        for path in _in_runs(data, file):
            run_id = int(path.parent.name)
            used_by = (run_id,) if run_id in live else ()
            key = f"{file.replace('.', '-')}-{run_id}"
            yield from _look_at(key, names.get(run_id, ""), what, (run_id,), path, used_by)


def _look_at(
    key: str, name: str, what: str, run_ids: tuple[int, ...], path: Path, used_by: tuple[int, ...]
) -> Iterator[Fetched]:
    try:
        stat = path.stat()
    except FileNotFoundError:  # deleted by somebody else at this moment
        return
    yield Fetched(key, name, what, run_ids, path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC), used_by)
