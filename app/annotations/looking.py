"""Looking at a file before anything is stored: what it seems to be, what would be refused, what the rows would be.

Every target (prompts, preferences, annotations) reads the first rows with the very functions that the import uses, so
that what the page counts is what the import would do.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import ValidationError

from app.annotations.fields import AnnotationDraft
from app.annotations.layouts import LOOKED_AT, fill, preset_of, read_annotations
from app.annotations.recipes import ImportAnnotationsRecipe
from app.db import clean_text
from app.errors import Invalid, field_messages
from app.pairs.fields import PairDraft, guess_layout, longest_text, read_pairs
from app.prompts.fields import ADDED, GUESSES, BadField, Draft, read_prompt
from app.prompts.files import BadRow, typical_row
from app.prompts.recipes import ImportPairsRecipe, ImportPromptsRecipe
from app.prompts.sources import open_rows, peek
from app.runs.recipe import Recipe

TARGETS: dict[str, type[Recipe]] = {
    "prompts": ImportPromptsRecipe, "pairs": ImportPairsRecipe, "annotations": ImportAnnotationsRecipe,
}  # fmt: skip
FIRST = 1_000  # rows that are looked at
SHOWN = 3
FEW = 50  # one row in so many may be odd
KEPT = 20  # refused rows that are listed
Good = Draft | PairDraft | AnnotationDraft


@dataclass
class Look:
    """What one target makes of the first rows."""

    target: str
    values: dict[str, Any]  # the recipe's, the guessed ones filled in
    layout: str = ""
    mapping: list[tuple[str, str]] = field(default_factory=list)  # what a part of the row becomes, and from which field
    good: list[Good] = field(default_factory=list)  # the first few, as they would be stored
    n_good: int = 0
    n_bad: int = 0
    n_long: int = 0  # left out since a text is longer than the recipe allows
    bad: list[BadRow] = field(default_factory=list)
    error: str = ""  # why nothing can be read
    errors: dict[str, list[str]] = field(default_factory=dict)


def look(target: str, given: Mapping[str, Any]) -> Look:
    """Reads the first rows as this target would; never raises for what the file holds."""
    found = Look(target, dict(given))
    try:
        rows = first_rows(str(given.get("path", "")), str(given.get("format") or "auto"))
        row = typical_row(rows, NAMES_OF[target])
        found.values = guess(target, row, found.values)
        recipe = TARGETS[target].model_validate(found.values)
        if isinstance(recipe, ImportAnnotationsRecipe):
            recipe = fill(recipe)
            found.values = recipe.model_dump()
        found.layout = str(getattr(recipe, "layout", "")) or name_of(row)
        found.mapping = mapping_of(recipe, row)
        most = getattr(recipe, "limit", None) or FIRST  # of usable rows, as the import counts
        for one in islice(drafts(recipe), FIRST):
            _count(found, one)
            if found.n_good >= most:
                break
    except ValidationError as error:
        found.errors = field_messages(error.errors())
        found.error = "; ".join(said for many in found.errors.values() for said in many)
    except Invalid as error:
        found.error = clean_text(error.message)  # it may quote half a character
        found.errors = {name: [clean_text(one) for one in said] for name, said in error.fields.items()}
    except OSError as error:  # a name too long, a folder that may not be read
        found.error = f"The path cannot be read: {error.strerror or error}."
    return found


def _count(found: Look, one: Good | BadRow | None) -> None:
    if one is None:
        found.n_long += 1
    elif isinstance(one, BadRow):
        found.n_bad += 1
        found.bad += [BadRow(one.line, clean_text(one.reason))] if len(found.bad) < KEPT else []
    else:
        found.n_good += 1
        found.good += [one] if len(found.good) < SHOWN else []


def drafts(recipe: Recipe) -> Iterator[Good | BadRow | None]:
    """One entry a row: what it would become (of several pairs the first), why it is refused, None where too long."""
    if isinstance(recipe, ImportAnnotationsRecipe):
        yield from (one if isinstance(one, BadRow) else one[1] for one in read_annotations(recipe))
        return
    assert isinstance(recipe, ImportPairsRecipe | ImportPromptsRecipe)
    for one in open_rows(recipe.path, recipe.format):
        if isinstance(one, BadRow):
            yield one
            continue
        try:
            if isinstance(recipe, ImportPairsRecipe):
                pairs = read_pairs(one[1], recipe)
                yield None if recipe.max_chars and longest_text(pairs) > recipe.max_chars else pairs[0]
            else:
                prompt = read_prompt(one[1], recipe)
                yield None if recipe.max_chars and prompt.n_chars > recipe.max_chars else prompt
        except BadField as error:
            yield BadRow(one[0], str(error))


def choose(looks: Mapping[str, Look]) -> str:
    """What a file is opened as: preferences or annotations where that is most of what it can be, so that a few odd rows
    do not make prompts of it; of these two the one with more rows, preferences unless that is more than a few."""
    pairs, annotations = looks["pairs"].n_good, looks["annotations"].n_good
    special = "pairs" if pairs and pairs + max(1, pairs // FEW) >= annotations else "annotations"
    return special if 2 * looks[special].n_good > max(one.n_good for one in looks.values()) else "prompts"


def first_rows(path: str, fmt: str) -> list[Any]:
    """The first rows that can be read; a folder of several files has none."""
    try:
        return [one[1] for one in peek(path, fmt, LOOKED_AT) if not isinstance(one, BadRow)]
    except (Invalid, OSError, UnicodeError):
        return []  # the look itself says why


def guess(target: str, row: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The values with what a typical row tells put in where nothing was said."""
    if not isinstance(row, dict):
        return given
    guessed: dict[str, Any] = {}
    if target == "prompts":
        answer = {"dolly": "response", "alpaca": "output"}.get(name_of(row), "")
        guessed = {"reference_field": answer} if answer in row and isinstance(row[answer], str) else {}
    elif target == "pairs" and not given.get("chosen_field"):
        layout = given.get("layout") or "auto"
        layout = _pairs_of(row) if layout == "auto" else layout
        if not layout:
            return given
        guessed = {"layout": layout}
        if layout == "pku_saferlhf":
            guessed["label"] = "better" if "better_response_id" in row else "safer"
    said = {name: value for name, value in given.items() if value not in ("", None, [], "auto")}
    return {**given, **guessed, **said}


def name_of(row: Any) -> str:
    """What a row of prompts looks like."""
    if not isinstance(row, dict):
        return "text" if isinstance(row, str) else "rows"
    names = set(row)
    if {"instruction", "context", "response"} <= names:
        return "dolly"
    if {"instruction", "output"} <= names:
        return "alpaca"
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return "oasst"
    return next((name for name in GUESSES if row.get(name)), "rows")


def _pairs_of(row: Any) -> str:
    """What a row of preferences looks like, or "" """
    try:
        return guess_layout(row) if isinstance(row, dict) else ""
    except BadField:
        return ""


NAMES_OF: dict[str, Callable[[Any], str]] = {"prompts": name_of, "pairs": _pairs_of, "annotations": preset_of}


def mapping_of(recipe: Recipe, row: Any) -> list[tuple[str, str]]:
    """What becomes of the row's fields, in words."""
    names = list(row) if isinstance(row, dict) else []
    if isinstance(recipe, ImportPromptsRecipe):
        asked = recipe.prompt_field or next((name for name in GUESSES if name in names), "")
        parts = [asked, *(one for one in ADDED.get(asked, ()) if one in names and not recipe.prompt_field)]
        reference = recipe.reference_field or next((n for n in ("reference", "answer") if n in names), "")
        category = recipe.category_field or ("category" if "category" in names else "")
        said = [("Prompt", " + ".join(p for p in parts if p)), ("Reference answer", reference), ("Category", category),
                ("Group", recipe.group_field or ("group" if "group" in names else ""))]  # fmt: skip
    elif isinstance(recipe, ImportAnnotationsRecipe):
        columns = [f"{column} ({who})" if column != who else column for column, who in recipe.columns().items()]
        said = [
            ("Item", ", ".join(recipe.item_fields)), ("Prompt (group)", ", ".join(recipe.group_fields)),
            ("Category", recipe.category_field), ("Annotator", recipe.annotator_field), ("Label", recipe.label_field),
            ("Columns of labels", ", ".join(columns)), ("Sides", ", ".join(filter(None, (recipe.side_a_field,
             recipe.side_b_field)))), ("Meaning", ", ".join(recipe.label_map)),
        ]  # fmt: skip
    else:
        said = [("Fields of a row", ", ".join(names))]
    return [(what, clean_text(fields)) for what, fields in said if fields]
