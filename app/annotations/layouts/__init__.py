"""The ways a file or a folder is read as annotations: one small function each, by name.

Each takes the path and a recipe that its preset has filled in, and gives (line, draft) or BadRow. What lies in one
file with one mapping for all its rows is read by `rows`; a data set that is spread over several files has a reader
that knows its names.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft
from app.annotations.layouts.llmbar import read_llmbar
from app.annotations.layouts.mt_bench import read_mt_bench
from app.annotations.layouts.pandalm import read_pandalm
from app.annotations.layouts.prd import read_prd
from app.annotations.layouts.rows import read_arena, read_mapped, read_tulu
from app.annotations.layouts.xstest import read_xstest
from app.annotations.presets import PRESETS, guess_preset
from app.annotations.recipes import ImportAnnotationsRecipe
from app.errors import Invalid
from app.prompts.files import BadRow, resolve_path, typical_row
from app.prompts.sources import peek

LOOKED_AT = 20  # first rows, most of which tell the layout
Drafts = Iterator[tuple[int, AnnotationDraft] | BadRow]
LAYOUTS: dict[str, Callable[[Path, ImportAnnotationsRecipe], Drafts]] = {
    "rows": read_mapped, "arena": read_arena, "mt_bench": read_mt_bench, "pandalm": read_pandalm,
    "llmbar": read_llmbar, "prd": read_prd, "xstest": read_xstest, "tulu": read_tulu, "tulu_5": read_tulu,
    "tulu_acceptable": read_tulu,
}  # fmt: skip


def guess_layout(recipe: ImportAnnotationsRecipe) -> str:
    """The layout of what the path leads to; raises Invalid where it is none of the known ones."""
    if recipe.layout != "auto":
        return recipe.layout
    if recipe.label_field or recipe.annotator_columns:
        return "rows"
    path = resolve_path(recipe.path)
    if recipe.format != "hub" and path.is_dir():
        marks = {
            "mt_bench": "human_vs_gpt4_votes.csv", "pandalm": "testset*.json", "prd": "ratings-human",
            "llmbar": "evaluators", "xstest": "completions_*_gpteval.csv",
        }  # fmt: skip
        found = next((layout for layout, mark in marks.items() if any(path.glob(mark))), "")
        found = found or ("llmbar" if any(any(path.glob("*/" * n + "evaluators")) for n in (1, 2, 3)) else "")
    else:
        found = preset_of(_typical(recipe))
    if not found:
        message = "The layout is not recognised: choose it, or choose “rows” and name the fields."
        raise Invalid(message, {"layout": [message]})
    return found


def preset_of(row: Any) -> str:
    """The layout that a row looks like, or "" """
    return guess_preset(row) if isinstance(row, dict) else ""


def _typical(recipe: ImportAnnotationsRecipe) -> Any:
    """A row that looks like most of the first ones."""
    found = peek(recipe.path, recipe.format, LOOKED_AT)
    return typical_row([one[1] for one in found if not isinstance(one, BadRow)], preset_of)


def fill(recipe: ImportAnnotationsRecipe) -> ImportAnnotationsRecipe:
    """The recipe with its layout recognised and the layout's mapping put in where it says nothing; raises Invalid."""
    layout = guess_layout(recipe)
    known: dict[str, Any] = {**PRESETS.get(layout, {}), "layout": layout}
    if layout == "arena":  # a few copies of these files lack the number of turns
        row = _typical(recipe)
        if isinstance(row, dict):
            known["item_fields"] = [name for name in known["item_fields"] if name in row]
            known.update({name: "" for name in ("a_field", "b_field", "annotator_field") if known[name] not in row})
    full = recipe.filled(known)
    if full.scale == "auto":
        message = "Choose the kind of label."
        raise Invalid(message, {"scale": [message]})
    if not (full.label_field or full.annotator_columns) and layout not in {"llmbar", "prd"}:
        message = "Name the field of the label, or the columns of labels."
        raise Invalid(message, {"label_field": [message]})
    return full


def read_annotations(recipe: ImportAnnotationsRecipe) -> Drafts:
    """(line, draft) or BadRow for every row; the recipe is one that fill() gave."""
    path = resolve_path(recipe.path)
    yield from LAYOUTS[recipe.layout](path, recipe)
