"""One row of a file as an item and the labels it carries.

How places are used: an annotator's labels of one item have places 0, 1, … in the order of the file. Where a layout
holds a judge's answers in both orders of the sides, place 0 is the answer in the item's own order and place 1 the
answer in the swapped order; both are stored in the item's frame, so that place 0 = place 1 means consistent.

An empty cell of a person says that this person did not label the item. An empty cell of a judge, and any value that
is no label, is stored as NULL with the reason.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.annotations.recipes import LABELS, ImportAnnotationsRecipe
from app.prompts.fields import BadField, read_messages, split_dialogue

# What the kinds of pair labels are called in the wild, in small letters; a recipe's own map comes first.
WORDS = {
    "a": "a", "model_a": "a", "1": "a", "response1": "a", "first": "a", "a-is-better": "a",
    "b": "b", "model_b": "b", "2": "b", "response2": "b", "second": "b", "b-is-better": "b",
    "tie": "tie", "tie (bothbad)": "tie", "tie (inconsistent)": "tie", "both_bad": "tie", "c": "tie", "draw": "tie",
    "a-is-slightly-better": "a_slightly", "b-is-slightly-better": "b_slightly",
    "a_slightly": "a_slightly", "b_slightly": "b_slightly",
}  # fmt: skip
TO_THREE = {"a_slightly": "a", "b_slightly": "b"}
TURNED = {"a": "b", "b": "a", "a_slightly": "b_slightly", "b_slightly": "a_slightly"}
LONGEST = 120
JUDGES = ("gpt-", "gpt4", "claude-", '["gpt')  # annotators of such a name are judges, whatever the recipe lists


@dataclass(slots=True)
class Said:
    """One label. `place` None: the next free one of this annotator on this item."""

    annotator: str
    label: str | None = None
    value: float | None = None
    reason: str = ""
    place: int | None = None
    is_judge: bool = False


@dataclass(slots=True)
class AnnotationDraft:
    """An item as one row shows it, in the row's own order of sides."""

    key: str
    group: str
    category: str = ""
    texts: dict[str, Any] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    sides: tuple[str, str] | None = None  # the names of a and b; an item is then the two names in any order

    def turn(self) -> None:
        """Swaps the sides: labels and texts are in the other order's frame afterwards."""
        for one in self.said:
            one.label = TURNED.get(one.label, one.label) if one.label else one.label
        turned = {"a": "b", "b": "a", "a_name": "b_name", "b_name": "a_name"}
        self.texts = {turned.get(name, name): text for name, text in self.texts.items()}


def read_annotation(row: Any, line: int, recipe: ImportAnnotationsRecipe) -> AnnotationDraft:
    """A row as an item with its labels; raises BadField."""
    if not isinstance(row, dict):
        raise BadField("no object with named fields: write one {…} a row")
    sides = None
    if recipe.side_a_field:
        sides = _cell(row, recipe.side_a_field, "side a"), _cell(row, recipe.side_b_field, "side b")
        if sides[0] == sides[1]:
            raise BadField(f"both of its sides are “{sides[0][:60]}”: they must differ")
    texts = _texts(row, recipe)
    if sides:
        texts |= {"a_name": sides[0], "b_name": sides[1]}
    cells = [_cell(row, name, "item") for name in recipe.item_fields]
    if cells and not any(cells):
        raise BadField(f"nothing tells which item it is about: {' and '.join(recipe.item_fields)[:200]} is empty")
    # “1:2” and “3” are not “1” and “2:3”
    key = [cell.replace("\\", "\\\\").replace(":", "\\:") for cell in cells] or _own_key(recipe, texts, line)
    named = sorted(sides) if sides else []
    group = ":".join(_cell(row, name, "prompt") for name in recipe.group_fields) or _group_of(texts) or ":".join(key)
    category = _cell(row, recipe.category_field, "category") if recipe.category_field else ""
    draft = AnnotationDraft(
        short(":".join([*key, *named])), short(group), category[:LONGEST], texts, _labels(row, recipe, sides), sides
    )
    if not draft.said:
        raise BadField("it holds no label: fill one, or leave the row out")
    return draft


def _own_key(recipe: ImportAnnotationsRecipe, texts: Mapping[str, Any], line: int) -> list[str]:
    """Without fields that name it: rows with one label each are one item if their texts are, others each their own."""
    if not recipe.label_field:
        return [f"row {line}"]
    if not texts:
        raise BadField("nothing tells which item it is about: name the fields of the item")
    return [hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:32]]


def _labels(row: Mapping[str, Any], recipe: ImportAnnotationsRecipe, sides: tuple[str, str] | None) -> list[Said]:
    said = []
    judges = set(recipe.judges)
    if recipe.label_field:
        if recipe.label_field not in row:
            raise BadField(_lacks(row, recipe.label_field, "label"))
        who = _cell(row, recipe.annotator_field, "annotator")[:LONGEST] if recipe.annotator_field else ""
        said.append(read_label(who, row[recipe.label_field], recipe, sides))
    for column, name in recipe.columns().items():
        if column not in row:
            raise BadField(_lacks(row, column, "labels"))
        if name in judges or not is_empty(row[column]):
            said.append(read_label(name[:LONGEST], row[column], recipe, sides))
    return said


def read_label(
    who: str, raw: Any, recipe: ImportAnnotationsRecipe, sides: tuple[str, str] | None = None, place: int | None = None
) -> Said:
    """What one annotator wrote: a label of the scale, or NULL with the reason. Who has a place is a judge."""
    said = Said(who, place=place)
    said.is_judge = place is not None or who in recipe.judges or who.lower().startswith(JUDGES)
    if is_empty(raw):
        said.reason = "empty"
        return said
    text = as_text(raw).strip()
    if recipe.scale == "score":
        try:
            number = float(recipe.meanings().get(text.casefold(), text))
        except ValueError:
            number = math.nan
        said.value = number if math.isfinite(number) else None
        said.reason = "" if math.isfinite(number) else f"no number: {text[:200]}"
        return said
    found = _meaning(text, recipe)
    if found is None or len(found) > LONGEST:
        said.reason = f"no label: {text[:200]}"
    elif recipe.label_names_side and sides:
        said.label = {"a": sides[0], "b": sides[1]}.get(found, found)[:LONGEST]
    else:
        said.label = found
    return said


def _meaning(text: str, recipe: ImportAnnotationsRecipe) -> str | None:
    meanings, small = recipe.meanings(), text.casefold()
    if small in meanings:
        return meanings[small]
    if small.endswith(".0") and small[:-2] in meanings:  # a number that went through a spreadsheet
        return meanings[small[:-2]]
    if recipe.scale == "categorical" and not recipe.label_names_side:
        return None if meanings else text
    if meanings:
        return None
    word = WORDS.get(small)
    if word and recipe.scale != "pairwise5":
        word = TO_THREE.get(word, word)
    return word


def labels_of(recipe: ImportAnnotationsRecipe, seen: set[str]) -> list[str]:
    """The labels of a set in their order: the scale's own, the map's, then those that were only seen."""
    own = LABELS[recipe.scale] if recipe.scale != "auto" else []
    mapped = [] if recipe.label_names_side else list(dict.fromkeys(recipe.meanings().values()))
    known = own or mapped
    return [*known, *sorted(seen - set(known))]


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def as_text(value: Any) -> str:
    """A cell as text: what is no text, as JSON. Raises BadField for what no database stores."""
    if isinstance(value, bytes):  # as Parquet may hold texts
        value = value.decode("utf-8", "surrogateescape")
    if value is None or isinstance(value, bool | int | float | list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    if "\x00" in text:
        raise BadField("it holds a NUL character: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadField(f"it is broken Unicode at character {error.start + 1}: save the file as UTF-8") from error
    return text


def short(text: str) -> str:
    """A key that fits its column."""
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()


def _cell(row: Mapping[str, Any], name: str, what: str) -> str:
    if name not in row:
        raise BadField(_lacks(row, name, what))
    return "" if is_empty(row[name]) else as_text(row[name]).strip()


def _lacks(row: Mapping[str, Any], name: str, what: str) -> str:
    return f"it has no field “{name}” for the {what}; it has: {', '.join(map(str, row))[:200]}"


def _texts(row: Mapping[str, Any], recipe: ImportAnnotationsRecipe) -> dict[str, Any]:
    """What was labelled, where the file has it: messages, and a and b or one completion."""
    texts: dict[str, Any] = {}
    if recipe.prompt_field:
        texts["messages"] = as_messages(row.get(recipe.prompt_field))
    for name, column in (("a", recipe.a_field), ("b", recipe.b_field), ("completion", recipe.completion_field)):
        if column:
            texts[name], before = _completion(row.get(column))
            if before and "messages" not in texts:
                texts["messages"] = before
    return texts


def _completion(value: Any) -> tuple[str, list[dict[str, str]]]:
    """A completion's text, and the messages before it where the cell is a whole conversation."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        turns = read_messages(value, "conversation")
        return turns[-1]["content"], turns[:-1]
    return ("" if value is None else as_text(value)), []


def as_messages(value: Any) -> list[dict[str, str]]:
    """A prompt as messages: a text, a dialogue, or a list of messages."""
    if isinstance(value, list) and value:
        return read_messages(value, "prompt")
    text = "" if value is None else as_text(value)
    return split_dialogue(text) if text.startswith("\n\nHuman:") else [{"role": "user", "content": text}]


def _group_of(texts: Mapping[str, Any]) -> str:
    if not texts.get("messages"):
        return ""
    last = " ".join(texts["messages"][-1]["content"].casefold().split())
    return hashlib.sha256(last.encode()).hexdigest()[:16]
