"""XSTest: one file a model and judge (completions_MODEL_gpteval.csv, …_streval.csv); two annotators, adjudicated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft
from app.annotations.layouts.rows import map_rows
from app.annotations.recipes import ImportAnnotationsRecipe
from app.prompts.files import BadRow
from app.prompts.sources import open_rows

BESIDE = "strmatch_label"


def read_xstest(path: Path, recipe: ImportAnnotationsRecipe) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    """One file by itself; or the folder: the category is then the model whose completions were labelled."""
    if not path.is_dir():
        yield from map_rows(open_rows(recipe.path, recipe.format), recipe)
        return
    for file in sorted(path.glob("completions_*_gpteval.csv")):
        model = file.name.removeprefix("completions_").removesuffix("_gpteval.csv")
        beside = _read_beside(file.with_name(f"completions_{model}_streval.csv"))
        columns = [f"{BESIDE} = strmatch"] if beside else []
        full = recipe.model_copy(
            update={
                "annotator_columns": [*recipe.annotator_columns, *columns],
                "item_fields": ["model", *recipe.item_fields],
                "group_fields": recipe.group_fields or recipe.item_fields,
                "category_field": "model",
            }
        )
        yield from map_rows((_joined(one, model, beside) for one in open_rows(str(file), "csv")), full)


def _read_beside(file: Path) -> dict[str, Any]:
    """id → the label by string matching."""
    if not file.is_file():
        return {}
    rows = (one[1] for one in open_rows(str(file), "csv") if not isinstance(one, BadRow))
    return {row["id"]: row[BESIDE] for row in rows if "id" in row and BESIDE in row}


def _joined(one: tuple[int, Any] | BadRow, model: str, beside: dict[str, Any]) -> tuple[int, Any] | BadRow:
    if isinstance(one, BadRow):
        return one
    line, row = one
    return line, {**row, "model": model, **({BESIDE: beside.get(row.get("id", ""))} if beside else {})}
