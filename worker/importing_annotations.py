"""Import of annotations: items and what annotators said of them, validated into a spool before one row is stored.

The rules of places, empty cells and turned sides stand at the top of app/annotations/fields.py. Labels are named as
what they are: somebody else's. Nothing here becomes a verdict.
"""

import hashlib
import json
import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlmodel import col, select

from app.annotations.fields import AnnotationDraft, Said, labels_of
from app.annotations.layouts import fill, read_annotations
from app.annotations.models import Annotation, AnnotationItem, AnnotationSet
from app.annotations.recipes import ImportAnnotationsRecipe
from app.checkpoints.naming import store_named
from app.db import get
from app.prompts.files import BadRow, resolve_path
from app.prompts.sources import set_name
from worker.compact_map import CompactMap, hash64
from worker.hub import fetch_hub, source_of
from worker.importing import Rejects, count_rows, read_facts, read_lines, store_rows
from worker.job import Job

COLUMNS = ("annotator", "place", "label", "value", "reason")


def import_annotations(job: Job) -> None:
    """Reads a file or a folder of labels into an annotation set."""
    given: ImportAnnotationsRecipe = job.recipe
    items, labels = job.folder / "items.jsonl", job.folder / "labels.jsonl"
    if not labels.exists():
        recipe = fill(fetch_hub(job, given))
        job.log(f"layout {recipe.layout.replace('_', ' ')}, labels {recipe.scale}")
        _validate(job, recipe, items, labels)
    facts = read_facts(labels)
    set_id = _start_set(job, given, facts)
    _store_items(job, items, set_id, facts["n"])
    _store_labels(job, labels, set_id, facts["n_labels"])
    with job.write() as session:
        row = get(session, AnnotationSet, set_id)
        row.state = "ready"
        job.made(session, "annotation_set", set_id, row.sha256)
    job.log(
        f"{facts['n']:,} items, {facts['n_labels']:,} labels by {len(facts['annotators'])} annotators; "
        f"{facts['n_unreadable']:,} are no label and stored as NULL with the reason"
    )


class AnnotationSpool:
    """Validated items and labels, a line each. Rows about the same item are merged; their sides turned to its own."""

    def __init__(self, items: Path, labels: Path, recipe: ImportAnnotationsRecipe) -> None:
        self.items, self.labels, self.recipe = items, labels, recipe
        self.n = self.n_labels = self.n_unreadable = 0
        self.known = CompactMap()  # item → its position, and whether its sides stand in reverse order of their names
        self.places = CompactMap()  # item and annotator → labels so far
        self.taken = CompactMap()  # item, annotator and place
        self.columns = set(recipe.columns().values())
        self.people: dict[str, bool] = {}
        self.counts = Counter[str]()
        self.seen: set[str] = set()
        self._digest = 0
        self._items, self._labels = (
            path.with_suffix(".partial").open("w", encoding="utf-8") for path in (items, labels)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._items.close()
        self._labels.close()

    def add(self, draft: AnnotationDraft) -> None:
        """Adds a row's item, unless it stands, and its labels."""
        is_reversed = bool(draft.sides and draft.sides[0] > draft.sides[1])
        key = hash64(draft.key)
        frame = is_reversed and self.recipe.sides == "first_seen"
        before = self.known.setdefault(key, self.n * 2 + frame)
        place, is_item_reversed = divmod(self.n * 2 + frame if before is None else before, 2)
        is_turned = draft.sides is not None and is_reversed != bool(is_item_reversed)
        if is_turned:
            draft.turn()
        if before is None:
            row = {"key": draft.key, "grp": draft.group, "category": draft.category, "texts": draft.texts}
            self._items.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.n += 1
        for said in draft.said:
            self._add_label(place, said, is_turned)

    def _add_label(self, item: int, said: Said, is_turned: bool) -> None:
        number = self.places.count(hash64(str(item), said.annotator))
        if self.recipe.annotator_field and said.annotator in self.columns and number and not said.reason:
            content = hash64(str(item), said.annotator, "same", str(said.label), str(said.value))
            if self.taken.get(content) is not None:
                return  # one judge's label of the item, repeated on the row of each person
        if not said.annotator:  # nobody is named: votes are numbered
            said.annotator, number = f"vote {number + 1}", 0
        if said.place is None:
            said.place = int(is_turned) if self.recipe.order_is_place else number
        while self.taken.setdefault(hash64(str(item), said.annotator, str(said.place)), 1) is not None:
            said.place += 1
        self.taken.setdefault(hash64(str(item), said.annotator, "same", str(said.label), str(said.value)), 1)
        self.people.setdefault(said.annotator, not said.is_judge)
        self.counts[said.annotator] += 1
        self.n_labels += 1
        self.n_unreadable += bool(said.reason)
        if said.label is not None:
            self.seen.add(said.label)
        row = [item, said.annotator, said.place, said.label, said.value, said.reason]
        self._labels.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self, n_rejected: int) -> None:
        """Writes what the set's row says, then gives the spools their names, the labels last."""
        self.__exit__()
        annotators = {name: {"is_person": self.people[name], "n": n} for name, n in self.counts.items()}
        facts = {
            "kind": "categorical" if self.recipe.label_names_side else self.recipe.scale, "n": self.n,
            "n_labels": self.n_labels, "n_unreadable": self.n_unreadable, "n_rejected": n_rejected,
            "labels": labels_of(self.recipe, self.seen), "annotators": annotators, "sha256": self._sha256(),
        }  # fmt: skip
        self.labels.with_suffix(".facts").write_text(json.dumps(facts))
        for path in (self.items, self.labels):
            os.replace(path.with_suffix(".partial"), path)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for path in (self.items, self.labels):
            with path.with_suffix(".partial").open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()


def _validate(job: Job, recipe: ImportAnnotationsRecipe, items: Path, labels: Path) -> None:
    judges = set(recipe.judges)
    with AnnotationSpool(items, labels, recipe) as spool:
        rejects = Rejects(job)
        n_rows = 0
        for number, one in enumerate(read_annotations(recipe), 1):
            rejects.n_read = number
            if number % 2_000 == 0:
                job.progress(number, 0, f"reading: {number:,} rows")
            if isinstance(one, BadRow):
                rejects.add(one.line, one.reason)
                continue
            spool.add(one[1])
            n_rows += 1
            if recipe.limit and n_rows >= recipe.limit:
                break
        rejects.settle(spool.n, recipe.may_reject)
        missing = sorted(judges - set(spool.counts))
        if missing and recipe.layout == "rows":
            job.log(f"no label is by {', '.join(missing[:5])}, named as judges", "warning")
        spool.finish(rejects.n)


def _source(job: Job, recipe: ImportAnnotationsRecipe) -> str:
    """What somebody typed, and of a data set on the hub also its commit."""
    if recipe.format != "hub":
        return recipe.source or recipe.path
    return "; ".join(one for one in (recipe.source, source_of(job, recipe)) if one)


def _start_set(job: Job, recipe: ImportAnnotationsRecipe, facts: dict[str, Any]) -> int:
    """The set this run fills: the one an earlier attempt began, else a new one, `importing`."""
    with job.write() as session:
        row = session.exec(select(AnnotationSet).where(AnnotationSet.run_id == job.run_id)).first()
        if row is None:
            row = AnnotationSet(
                project_id=job.project_id, name="", run_id=job.run_id,
                source=_source(job, recipe)[:500],
                licence=recipe.licence, **facts,
            )  # fmt: skip
            path = recipe.path if recipe.format == "hub" else resolve_path(recipe.path).name
            store_named(session, row, recipe.name or set_name(path, recipe.format))
        return row.id


def _store_items(job: Job, spool: Path, set_id: int, total: int) -> None:
    with job.read() as session:
        done = count_rows(session, col(AnnotationItem.set_id) == set_id)
    rows = (
        {"set_id": set_id, "position": position, **row} for position, row in enumerate(read_lines(spool, done), done)
    )
    store_rows(job, AnnotationItem, rows, (done, total), "storing items")


def _store_labels(job: Job, spool: Path, set_id: int, total: int) -> None:
    with job.read() as session:
        found = sa.select(col(AnnotationItem.id)).where(col(AnnotationItem.set_id) == set_id)
        ids = array("q", session.execute(found.order_by(col(AnnotationItem.position))).scalars())
        done = count_rows(session, col(Annotation.set_id) == set_id)
    rows = (
        {"set_id": set_id, "item_id": ids[item], **dict(zip(COLUMNS, rest, strict=True))}
        for item, *rest in read_lines(spool, done)
    )
    store_rows(job, Annotation, rows, (done, total), "storing labels")
