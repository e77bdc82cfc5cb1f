"""Imports of prompts and of ready-made preferences: every row is validated into a spool before one is stored.

A first pass reads the whole file, writes what is good into the run's folder and names what is bad. Only then are rows
stored, in chunks, under a prompt set that says `importing` until the last one stands. A resumed run goes on from the
spool: the file is not read twice.
"""

import gc
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.naming import store_named
from app.db import clean_text, get, insert_plain
from app.errors import Invalid
from app.prompts.demo_corpus import list_prompts
from app.prompts.fields import BadField, Draft, pick_split, read_prompt
from app.prompts.files import BadRow, Rows
from app.prompts.models import SPLITS, Prompt, PromptSet, RejectedRow
from app.prompts.recipes import ImportPromptsRecipe
from app.prompts.sources import open_rows, set_name
from worker.compact_map import CompactMap, hash64
from worker.hub import fetch_hub, source_of
from worker.hygiene import check_set
from worker.job import Job

CHUNK = 4_000
encode = json.JSONEncoder(ensure_ascii=False).encode  # one encoder for all rows: json.dumps would make one a row
KEPT_REJECTED = 10_000  # rows of a hopeless file that are stored; the rest is only counted


class Rejects:
    """The bad rows of a first pass."""

    def __init__(self, job: Job) -> None:
        self.job, self.n, self.n_read, self.rows = job, 0, 0, [BadRow(0, "")][:0]

    def add(self, line: int, reason: str) -> None:
        """Notes a bad row."""
        self.n += 1
        if self.n <= KEPT_REJECTED:
            self.rows.append(BadRow(line, clean_text(reason[:1000])))  # it may quote what no database stores

    def settle(self, n_good: int, may_reject: bool) -> None:
        """Stores the bad rows; raises Invalid when there are any and none was allowed, or when nothing is left."""
        with self.job.write() as session:
            session.execute(sa.delete(RejectedRow).where(col(RejectedRow.run_id) == self.job.run_id))
            session.add_all(RejectedRow(run_id=self.job.run_id, line=one.line, reason=one.reason) for one in self.rows)
        if self.n:
            self.job.progress(self.n_read - self.n if n_good else 0, self.n_read, "rows that can be used")
        first = "; ".join(f"line {one.line}: {one.reason}" for one in self.rows[:3])
        if not n_good:
            raise Invalid(f"No row can be used. {first or 'The file is empty: choose another one.'}")
        if self.n and not may_reject:
            raise Invalid(
                f"{self.n:,} of {self.n_read:,} rows cannot be used, so nothing was imported. {first}. Mend them, "
                "or tick “Import the good rows although some are bad”."
            )


def import_prompts(job: Job) -> None:
    """Reads a file (or the shipped demo set) into a prompt set."""
    recipe: ImportPromptsRecipe = job.recipe
    gc.freeze()  # what the libraries made stays anyway: millions of rows need not have it looked through again
    spool = job.folder / "prompts.jsonl"
    if not spool.exists():
        _validate_prompts(job, recipe, spool)
    facts = read_facts(spool)
    wanted = recipe.name or (f"{recipe.shipped} prompts" if recipe.shipped else set_name(recipe.path, recipe.format))
    set_id = start_prompt_set(job, wanted, facts, recipe.shipped or source_of(job, recipe))
    store_prompts(job, spool, set_id, facts["n"])
    check_set(job, set_id)
    with job.write() as session:
        finish_prompt_set(session, job, set_id)


def _validate_prompts(job: Job, recipe: ImportPromptsRecipe, spool: Path) -> None:
    if recipe.shipped:
        rows: Rows = iter(enumerate(list_prompts(), 1))
    else:
        found = fetch_hub(job, recipe)
        rows = open_rows(found.path, found.format)
    with PromptSpool(spool, recipe.dev_share, recipe.test_share, set(recipe.ood_categories)) as writer:
        rejects = Rejects(job)
        _read_prompts(job, recipe, rows, writer, rejects)
        rejects.settle(writer.n, recipe.may_reject)
        writer.finish(rejects.n)


def _read_prompts(job: Job, recipe: ImportPromptsRecipe, rows: Rows, writer: "PromptSpool", rejects: Rejects) -> None:
    n_long = 0
    for number, row in enumerate(rows, 1):
        rejects.n_read = number
        if number % 2_000 == 0:
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
    """Validated prompts, a line each; duplicates merged, and splits fixed once all groups are known.

    What is kept of each row is a hash (compact_map.py): a file of any length needs little memory.
    """

    def __init__(self, path: Path, dev_share: float, test_share: float, ood_categories: set[str]) -> None:
        self.path, self.dev_share, self.test_share, self.ood = path, dev_share, test_share, ood_categories
        self.n = self.n_merged = 0
        self.places = CompactMap()  # prompt → position
        self.own = CompactMap()  # group → the line that brought its split, and the split
        self.moved: set[int] = set()  # groups that hold an out-of-distribution category
        self.n_bare = 0  # prompts that brought no split of their own
        self.digest, self.counts = hashlib.sha256(), Counter[str]()
        self._pending = path.with_suffix(".partial")
        self._file = self._pending.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add(self, draft: Draft, line: int) -> int:
        """The prompt's position in the set; raises BadField when its group already stands in another split."""
        sha256 = draft.sha256
        key = int(sha256[:16], 16) or 1
        group = hash64(draft.group)
        if draft.split:
            self._claim(draft, group, line)
        found = self.places.get(key)
        if found is not None:
            self.n_merged += 1
            return found
        self.n_bare += not draft.split
        if draft.category in self.ood:
            self.moved.add(group)
        self.places.setdefault(key, self.n)
        split = self._split_of(draft.group, group)
        self._count(sha256, split, draft.group)
        row = [
            split, sha256, draft.group, draft.messages, draft.follow_ups, draft.reference, draft.category,
            draft.source, draft.licence,
        ]  # fmt: skip
        self._file.write(encode(row) + "\n")
        self.n += 1
        return self.n - 1

    def _claim(self, draft: Draft, group: int, line: int) -> None:
        known = self.own.setdefault(group, line * 4 + SPLITS.index(draft.split))
        if known is not None and SPLITS[known % 4] != draft.split:
            raise BadField(
                f"its group “{draft.group[:60]}” stands in {SPLITS[known % 4]} (line {known // 4}) and here in "
                f"{draft.split}: a group belongs to one split"
            )

    def _split_of(self, group: str, key: int) -> str:
        """The whole group's split: out of distribution, else the one it brought, else by its hash."""
        if key in self.moved:
            return "ood"
        own = self.own.get(key) if len(self.own) else None
        return SPLITS[own % 4] if own is not None else pick_split(group, self.dev_share, self.test_share)

    def _count(self, sha256: str, split: str, group: str) -> None:
        self.counts[split] += 1
        self.digest.update(f"{sha256} {split} {group}\n".encode())

    def finish(self, n_rejected: int) -> None:
        """Fixes the splits and writes what the set's row says, then gives the spool its name."""
        self._file.close()
        if self.moved or (len(self.own) and self.n_bare):  # a later row may have decided the split of an earlier one
            self._split_again()
        facts = {
            "n": self.n, "n_merged": self.n_merged, "n_rejected": n_rejected, "sha256": self.digest.hexdigest(),
            "counts": {split: self.counts[split] for split in SPLITS if self.counts[split]},
        }  # fmt: skip
        self.path.with_suffix(".facts").write_text(json.dumps(facts))
        os.replace(self._pending, self.path)

    def _split_again(self) -> None:
        final = self.path.with_suffix(".final")
        self.digest, self.counts = hashlib.sha256(), Counter[str]()
        with self._pending.open(encoding="utf-8") as rows, final.open("w", encoding="utf-8") as out:
            for line in rows:
                row = json.loads(line)
                row[0] = self._split_of(row[2], hash64(row[2]))
                self._count(row[1], row[0], row[2])
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(final, self._pending)


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


COLUMNS = ("split", "sha256", "grp", "messages", "follow_ups", "reference", "category", "source", "licence")


def store_prompts(job: Job, spool: Path, set_id: int, total: int) -> None:
    """Stores the spool's prompts in chunks, going on after those that stand already."""
    with job.read() as session:
        done = count_rows(session, col(Prompt.set_id) == set_id)
    rows = (
        {"set_id": set_id, "position": position, "overlaps": "", **dict(zip(COLUMNS, row, strict=True))}
        for position, row in enumerate(read_lines(spool, done), done)
    )
    store_rows(job, Prompt, rows, (done, total), "storing prompts")


def store_rows(job: Job, table: Any, rows: Iterator[dict[str, Any]], counts: tuple[int, int], note: str) -> int:
    """Stores rows, a chunk a transaction; returns how many stand then. Plain inserts: no object is made of a row."""
    done, total = counts
    while chunk := list(islice(rows, CHUNK)):
        with job.write() as session:
            insert_plain(session, table, chunk)
        done += len(chunk)
        job.progress(done, total, note)
    return done


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
