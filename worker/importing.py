"""Imports of prompts and of ready-made preferences: every row is validated into a spool before one is stored.

A first pass reads the whole file, writes what is good into the run's folder and names what is bad. Only then are rows
stored, in chunks, under a prompt set that says `importing` until the last one stands. A resumed run goes on from the
spool: the file is not read twice.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.naming import store_named
from app.db import get
from app.errors import Invalid
from app.prompts.demo_corpus import list_prompts
from app.prompts.fields import BadField, Draft, pick_split, read_prompt
from app.prompts.files import BadRow, Rows, find_file, read_rows
from app.prompts.models import SPLITS, Prompt, PromptSet, RejectedRow
from app.prompts.recipes import ImportPromptsRecipe
from worker.job import Job

CHUNK = 500
KEPT_REJECTED = 10_000  # rows of a hopeless file that are stored; the rest is only counted


class Rejects:
    """The bad rows of a first pass."""

    def __init__(self, job: Job) -> None:
        self.job, self.n, self.rows = job, 0, [BadRow(0, "")][:0]

    def add(self, line: int, reason: str) -> None:
        """Notes a bad row."""
        self.n += 1
        if self.n <= KEPT_REJECTED:
            self.rows.append(BadRow(line, reason[:1000]))

    def settle(self, n_good: int, may_reject: bool) -> None:
        """Stores the bad rows; raises Invalid when there are any and none was allowed, or when nothing is left."""
        with self.job.write() as session:
            session.execute(sa.delete(RejectedRow).where(col(RejectedRow.run_id) == self.job.run_id))
            session.add_all(RejectedRow(run_id=self.job.run_id, line=one.line, reason=one.reason) for one in self.rows)
        first = "; ".join(f"line {one.line}: {one.reason}" for one in self.rows[:3])
        if not n_good:
            raise Invalid(f"No row can be used. {first or 'The file is empty: choose another one.'}")
        if self.n and not may_reject:
            raise Invalid(
                f"{self.n:,} of {self.n + n_good:,} rows cannot be used, so nothing was imported. {first}. Mend them, "
                "or tick “Import the good rows although some are bad”."
            )


def import_prompts(job: Job) -> None:
    """Reads a file (or the shipped demo set) into a prompt set."""
    recipe: ImportPromptsRecipe = job.recipe
    spool = job.folder / "prompts.jsonl"
    if not spool.exists():
        _validate_prompts(job, recipe, spool)
    facts = read_facts(spool)
    wanted = recipe.name or (f"{recipe.shipped} prompts" if recipe.shipped else Path(recipe.path).name.split(".")[0])
    set_id = start_prompt_set(job, wanted, facts, recipe.shipped or recipe.path)
    store_prompts(job, spool, set_id, facts["n"])
    with job.write() as session:
        finish_prompt_set(session, job, set_id)


def _validate_prompts(job: Job, recipe: ImportPromptsRecipe, spool: Path) -> None:
    rows: Rows = (
        iter(enumerate(list_prompts(), 1)) if recipe.shipped else read_rows(find_file(recipe.path), recipe.format)
    )
    with PromptSpool(spool, recipe.dev_share, recipe.test_share, set(recipe.ood_categories)) as writer:
        rejects = Rejects(job)
        _read_prompts(job, recipe, rows, writer, rejects)
        rejects.settle(writer.n, recipe.may_reject)
        writer.finish(rejects.n)


def _read_prompts(job: Job, recipe: ImportPromptsRecipe, rows: Rows, writer: "PromptSpool", rejects: Rejects) -> None:
    n_long = 0
    for number, row in enumerate(rows, 1):
        if number % 200 == 0:
            job.progress(number, 0, f"reading: {number:,} rows")
        if isinstance(row, BadRow):
            rejects.add(row.line, row.reason)
            continue
        line, value = row
        try:
            draft = read_prompt(value, recipe)
            if recipe.max_chars and draft.n_chars > recipe.max_chars:
                n_long += 1
                continue
            writer.add(draft, line)
        except BadField as error:
            rejects.add(line, str(error))
        if recipe.limit and writer.n >= recipe.limit:
            break
    if n_long:
        job.log(f"left out {n_long:,} prompts longer than {recipe.max_chars:,} characters")
    if not writer.n and n_long and not rejects.n:
        raise Invalid(f"All {n_long:,} prompts are longer than {recipe.max_chars} characters: allow longer ones.")


class PromptSpool:
    """Validated prompts, a line each; duplicates merged, and splits fixed once all groups are known."""

    def __init__(self, path: Path, dev_share: float, test_share: float, ood_categories: set[str]) -> None:
        self.path, self.dev_share, self.test_share, self.ood = path, dev_share, test_share, ood_categories
        self.n = self.n_merged = 0
        self.places: dict[str, int] = {}  # hash → position
        self.own: dict[str, tuple[str, int]] = {}  # group → the split a row brought, and its line
        self.moved: set[str] = set()  # groups that hold an out-of-distribution category
        self._pending = path.with_suffix(".partial")
        self._file = self._pending.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add(self, draft: Draft, line: int) -> int:
        """The prompt's position in the set; raises BadField when its group already stands in another split."""
        found = self.places.get(draft.sha256)
        if found is not None:
            self.n_merged += 1
            return found
        if draft.split:
            split, at = self.own.setdefault(draft.group, (draft.split, line))
            if split != draft.split:
                raise BadField(
                    f"its group “{draft.group[:60]}” stands in {split} (line {at}) and here in {draft.split}: a group "
                    "belongs to one split"
                )
        if draft.category in self.ood:
            self.moved.add(draft.group)
        self.places[draft.sha256] = self.n
        self._file.write(json.dumps({**vars(draft), "sha256": draft.sha256}, ensure_ascii=False) + "\n")
        self.n += 1
        return self.n - 1

    def split_of(self, group: str) -> str:
        """The whole group's split: out of distribution, else the one it brought, else by its hash."""
        if group in self.moved:
            return "ood"
        return self.own[group][0] if group in self.own else pick_split(group, self.dev_share, self.test_share)

    def finish(self, n_rejected: int) -> None:
        """Writes the splits and what the set's row says, then gives the spool its name."""
        self._file.close()
        final = self.path.with_suffix(".final")
        digest, counts = hashlib.sha256(), Counter[str]()
        with self._pending.open(encoding="utf-8") as rows, final.open("w", encoding="utf-8") as out:
            for line in rows:
                row = json.loads(line)
                row["split"] = self.split_of(row["group"])
                counts[row["split"]] += 1
                digest.update(f"{row['sha256']} {row['split']} {row['group']}\n".encode())
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        facts = {
            "n": self.n, "n_merged": self.n_merged, "n_rejected": n_rejected, "sha256": digest.hexdigest(),
            "counts": {split: counts[split] for split in SPLITS if counts[split]},
        }  # fmt: skip
        self.path.with_suffix(".facts").write_text(json.dumps(facts))
        os.replace(final, self.path)
        self._pending.unlink()


def read_facts(spool: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(spool.with_suffix(".facts").read_text())
    return found


def read_lines(spool: Path, start: int = 0) -> Iterator[Any]:
    """The spool's rows from a position on."""
    with spool.open(encoding="utf-8") as lines:
        for place, line in enumerate(lines):
            if place >= start:
                yield json.loads(line)


def start_prompt_set(job: Job, wanted: str, facts: dict[str, Any], source: str) -> int:
    """The set this run fills: the one an earlier attempt began, else a new one, `importing`."""
    with job.write() as session:
        row = session.exec(select(PromptSet).where(PromptSet.run_id == job.run_id)).first()
        if row is None:
            row = PromptSet(project_id=job.project_id, name="", run_id=job.run_id, source=source[:500], **facts)
            store_named(session, row, wanted)
        return row.id


def store_prompts(job: Job, spool: Path, set_id: int, total: int) -> None:
    """Stores the spool's prompts in chunks, going on after those that stand already."""
    with job.read() as session:
        done = count_rows(session, col(Prompt.set_id) == set_id)
    pending: list[Prompt] = []
    for position, row in enumerate(read_lines(spool, done), done):
        row["grp"] = row.pop("group")
        pending.append(Prompt(set_id=set_id, position=position, **row))
        if len(pending) == CHUNK:
            _store_chunk(job, pending, position + 1, total)
            pending = []
    _store_chunk(job, pending, total, total)


def _store_chunk(job: Job, rows: list[Prompt], done: int, total: int) -> None:
    with job.write() as session:
        session.add_all(rows)
    job.progress(done, total, "storing prompts")


def count_rows(session: Session, condition: Any) -> int:
    """How many rows of the condition's table fit it."""
    return int(session.execute(sa.select(sa.func.count()).where(condition)).scalar_one())


def finish_prompt_set(session: Session, job: Job, set_id: int) -> PromptSet:
    """The set is whole: from now on others may use it."""
    row = get(session, PromptSet, set_id)
    row.state = "ready"
    session.add(row)
    job.made(session, "prompt_set", row.id, row.sha256)
    return row
