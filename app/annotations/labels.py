"""The labels of a set in memory, whose they are, and the pairs of labels that a comparison counts.

A side of a comparison is written as in a URL: "people" is every person's label, "majority" what most people said of the
item, "longer" the longer text, "*:NAME" every label of one annotator, "0:NAME" or "1:NAME" only those of that place
(for a judge that saw both orders, place 0 is the item's own order, place 1 the other one, turned back).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.annotations.models import Annotation, AnnotationItem, AnnotationSet

Label = str | float | None
PAIRWISE = ("pairwise3", "pairwise5")
TIE = "tie"


@dataclass(slots=True)
class Said:
    """One label of one annotator; None where what they wrote is no label."""

    annotator: str
    place: int
    label: Label


@dataclass(slots=True)
class Item:
    """What was labelled, and what everybody said of it in the order of the file."""

    grp: str
    category: str
    longer: str | None = None  # a, b, tie; None where the file has no texts
    said: list[Said] = field(default_factory=list)


@dataclass(frozen=True)
class Labelled:
    """A whole set."""

    row: AnnotationSet
    people: list[str]
    judges: list[str]
    places: dict[str, int]  # annotator → how many places they fill
    items: list[Item]

    @property
    def is_score(self) -> bool:
        """Whether the labels are numbers."""
        return self.row.kind == "score"

    @property
    def is_pairwise(self) -> bool:
        """Whether the labels compare two completions."""
        return self.row.kind in PAIRWISE

    @property
    def has_lengths(self) -> bool:
        """Whether “prefers longer” can be told."""
        return self.is_pairwise and any(item.longer is not None for item in self.items)


@dataclass(frozen=True)
class Paired:
    """The pairs of labels two sides gave to the same items; None is unreadable."""

    one: list[Label]
    other: list[Label]
    prompts: list[str]
    categories: list[str]
    items: list[int]
    n_split: int  # items without a majority
    n_unlabelled: int  # labels of people that are none: left out, since no judge is to blame for them


def read_labelled(session: Session, row: AnnotationSet) -> Labelled:
    """Reads a set whole."""
    items: dict[int, Item] = {}
    columns = [col(AnnotationItem.id), col(AnnotationItem.grp), col(AnnotationItem.category)]
    is_pairwise = row.kind in PAIRWISE
    query = sa.select(*columns, *([col(AnnotationItem.texts)] if is_pairwise else []))
    for one in session.execute(
        query.where(col(AnnotationItem.set_id) == row.id).order_by(col(AnnotationItem.position))
    ):
        items[one.id] = Item(one.grp, one.category, _longer(one.texts) if is_pairwise else None)
    places: dict[str, int] = dict.fromkeys(row.annotators, 0)
    said = sa.select(
        col(Annotation.item_id), col(Annotation.annotator), col(Annotation.place), col(Annotation.label),
        col(Annotation.value),
    ).where(col(Annotation.set_id) == row.id)  # fmt: skip
    for one in session.execute(said.order_by(col(Annotation.id))):
        label = one.value if row.kind == "score" else one.label
        items[one.item_id].said.append(Said(one.annotator, one.place, label))
        places[one.annotator] = max(places.get(one.annotator, 0), one.place + 1)
    people = [name for name, known in row.annotators.items() if known["is_person"]]
    judges = [name for name, known in row.annotators.items() if not known["is_person"]]
    return Labelled(row, people, judges, places, list(items.values()))


def _longer(texts: dict[str, Any]) -> str | None:
    if "a" not in texts or "b" not in texts:
        return None
    a, b = len(str(texts["a"])), len(str(texts["b"]))
    return "a" if a > b else "b" if b > a else TIE


def side_names(labelled: Labelled) -> dict[str, str]:
    """Every side there is to compare: how it is written, and how a page says it."""
    sides = {}
    if len(labelled.people) > 1:
        sides["people"] = "people, each label"
        if not labelled.is_score:
            sides["majority"] = "people’s majority"
    for name in [*sorted(labelled.judges, key=_natural), *sorted(labelled.people, key=_natural)]:
        sides[f"*:{name}"] = name
        if labelled.places.get(name, 0) > 1:
            orders = ("own order", "other order") if name in labelled.judges else ("first label", "second label")
            sides |= {f"{place}:{name}": f"{name}, {orders[place]}" for place in (0, 1)}
    if labelled.has_lengths:
        sides["longer"] = "prefers the longer text"
    return sides


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts “vote 2” before “vote 10”."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]


def pair_labels(labelled: Labelled, one: str, other: str) -> Paired:
    """All pairs of a label of one side with a label of the other on the same item.

    The same side twice: each two of its labels on an item once. Nobody is paired with the very same label.
    """
    found = Paired([], [], [], [], [], 0, 0)
    n_split = n_unlabelled = 0
    for number, item in enumerate(labelled.items):
        n_split += "majority" in (one, other) and _majority(labelled, item) is None
        for x, y in _pairs_of(labelled, item, one, other):
            if any(said.label is None and said.annotator in labelled.people for said in (x, y)):
                n_unlabelled += 1
                continue
            found.one.append(x.label)
            found.other.append(y.label)
            found.prompts.append(item.grp)
            found.categories.append(item.category)
            found.items.append(number)
    return Paired(found.one, found.other, found.prompts, found.categories, found.items, n_split, n_unlabelled)


def _pairs_of(labelled: Labelled, item: Item, one: str, other: str) -> Iterator[tuple[Said, Said]]:
    left, right = _side(labelled, item, one), _side(labelled, item, other)
    for i, x in enumerate(left):
        for y in right[i + 1 :] if one == other else right:
            if (x.annotator, x.place) != (y.annotator, y.place):
                yield x, y


def _side(labelled: Labelled, item: Item, side: str) -> list[Said]:
    if side == "people":
        return [said for said in item.said if said.annotator in labelled.people]
    if side == "majority":
        label = _majority(labelled, item)
        return [] if label is None else [Said("", -1, label)]
    if side == "longer":
        return [] if item.longer is None else [Said("", -2, item.longer)]
    place, _, name = side.partition(":")
    return [said for said in item.said if said.annotator == name and place in ("*", str(said.place))]


def _majority(labelled: Labelled, item: Item) -> Label:
    """What more people said than anything else; None at a split."""
    counts = Counter(said.label for said in _side(labelled, item, "people") if said.label is not None).most_common(2)
    return counts[0][0] if counts and (len(counts) == 1 or counts[0][1] > counts[1][1]) else None


def people_labels(labelled: Labelled) -> list[dict[str, str | float]]:
    """Each item's labels by person, the first of each: what the alternative-annotator test reads."""
    known = set(labelled.people)
    return [
        {
            said.annotator: said.label
            for said in reversed(item.said)
            if said.annotator in known and said.label is not None
        }
        for item in labelled.items
    ]


def judge_labels(labelled: Labelled, judge: str) -> list[str | float | None]:
    """A judge's label of each item in the item's own order; None where there is none or it is unreadable."""
    return [
        next((said.label for said in item.said if said.annotator == judge and said.place == 0), None)
        for item in labelled.items
    ]
