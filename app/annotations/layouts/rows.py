"""One file, one mapping for all its rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft, read_annotation
from app.annotations.recipes import ImportAnnotationsRecipe
from app.pairs.layouts import shown
from app.prompts.fields import BadField
from app.prompts.files import BadRow
from app.prompts.sources import open_rows

Drafts = Iterator[tuple[int, AnnotationDraft] | BadRow]


def read_mapped(path: Path, recipe: ImportAnnotationsRecipe) -> Drafts:
    """Every row by the recipe's own mapping."""
    return map_rows(open_rows(recipe.path, recipe.format), recipe)


def map_rows(rows: Iterator[tuple[int, Any] | BadRow], recipe: ImportAnnotationsRecipe) -> Drafts:
    """(line, row) as (line, draft)."""
    for one in rows:
        if isinstance(one, BadRow):
            yield one
            continue
        line, row = one
        try:
            yield line, read_annotation(row, line, recipe)
        except BadField as error:
            yield BadRow(line, str(error))


def read_arena(path: Path, recipe: ImportAnnotationsRecipe) -> Drafts:
    """Votes with whole conversations, each cut at the turn that was voted on."""
    return map_rows((_cut(one) for one in open_rows(recipe.path, recipe.format)), recipe)


def _cut(one: tuple[int, Any] | BadRow) -> tuple[int, Any] | BadRow:
    if isinstance(one, BadRow) or not isinstance(one[1], dict):
        return one
    row = dict(one[1])
    for name in ("conversation_a", "conversation_b"):
        if isinstance(row.get(name), list):
            row[name] = shown(row[name], row.get("turn"))
    return one[0], row


def read_tulu(path: Path, recipe: ImportAnnotationsRecipe) -> Drafts:
    """Tulu's human evaluation: a folder with annotations.csv, or that file."""
    if path.is_dir():
        recipe = recipe.model_copy(update={"path": str(path / "annotations.csv")})
    return read_mapped(path, recipe)
