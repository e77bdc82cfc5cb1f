"""PandaLM's test set: three annotators a row, and one file of verdicts for each model that judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft
from app.annotations.layouts.rows import map_rows
from app.annotations.recipes import ImportAnnotationsRecipe
from app.errors import Invalid
from app.prompts.files import BadRow
from app.prompts.sources import open_rows


def read_pandalm(path: Path, recipe: ImportAnnotationsRecipe) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    """The test set's file alone, or its folder with the verdicts that stand beside it (fields idx and …_result)."""
    if not path.is_dir():
        return map_rows((_with_prompt(one, {}) for one in open_rows(recipe.path, recipe.format)), _prompted(recipe))
    found = sorted(path.glob("testset*.json"))
    if not found:
        raise Invalid(f"{path.name} holds no testset*.json.", {"path": [f"{path.name} holds no testset*.json"]})
    verdicts: dict[str, dict[str, Any]] = {}
    for file in sorted(path.glob("*.json")):
        if file not in found:
            verdicts |= read_verdicts(file)
    columns = [f"{name}_result = {name}" for name in verdicts]
    full = recipe.model_copy(
        update={"annotator_columns": [*recipe.annotator_columns, *columns], "judges": [*recipe.judges, *verdicts]}
    )
    return map_rows((_with_prompt(one, verdicts) for one in open_rows(str(found[0]), "json")), _prompted(full))


def read_verdicts(file: Path) -> dict[str, dict[str, Any]]:
    """Judge's name → idx → what it said."""
    found: dict[str, dict[str, Any]] = {}
    for one in open_rows(str(file), "json"):
        if isinstance(one, BadRow) or not isinstance(one[1], dict):
            continue
        for name, value in one[1].items():
            if name.endswith("_result"):
                found.setdefault(name.removesuffix("_result"), {})[str(one[1].get("idx"))] = value
    return found


def _prompted(recipe: ImportAnnotationsRecipe) -> ImportAnnotationsRecipe:
    return recipe.model_copy(update={"prompt_field": recipe.prompt_field or "prompt"})


def _with_prompt(one: tuple[int, Any] | BadRow, verdicts: dict[str, dict[str, Any]]) -> tuple[int, Any] | BadRow:
    """The instruction with its input below it, and the verdicts in columns."""
    if isinstance(one, BadRow) or not isinstance(one[1], dict):
        return one
    line, row = one
    parts = [str(row.get(name) or "") for name in ("instruction", "input")]
    row = {**row, "prompt": "\n\n".join(part for part in parts if part)}
    for name, said in verdicts.items():
        row[f"{name}_result"] = said.get(str(row.get("idx")))
    return line, row
