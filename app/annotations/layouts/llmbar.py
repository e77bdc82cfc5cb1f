"""LLMBar: in each subset's folder dataset.json with the better output, and evaluators/JUDGE/PROMPT/result.json.

The gold label counts as a person's. A judge's name is "JUDGE/PROMPT"; its place 0 is the answer with the outputs as
given, place 1 the answer with them swapped (the files hold both in the item's own frame). The category is the subset.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft, Said, as_messages, as_text, read_label, short
from app.annotations.recipes import ImportAnnotationsRecipe
from app.errors import Invalid
from app.prompts.fields import BadField
from app.prompts.files import BadRow
from app.prompts.sources import open_rows

ORDERS = ("swap = False", "swap = True")


def read_llmbar(path: Path, recipe: ImportAnnotationsRecipe) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    """The subset whose folder is named, or all those below it."""
    # three folders deep and no deeper: whoever names the root of a disk waits for no search through it
    found = [file for depth in range(4) for file in sorted(path.glob("*/" * depth + "dataset.json"))]
    found = found if path.is_dir() else [path]
    if not found or not path.exists():
        raise Invalid(f"{path.name} holds no dataset.json.", {"path": [f"{path.name} holds no dataset.json"]})
    for file in found:
        subset = str(file.parent.relative_to(path)) if file.parent != path and path.is_dir() else file.parent.name
        yield from _read_subset(file, subset, recipe)


def _read_subset(
    file: Path, subset: str, recipe: ImportAnnotationsRecipe
) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    judged = {}
    for result in sorted(file.parent.glob("evaluators/*/*/result.json")):
        rows = [None if isinstance(one, BadRow) else one[1] for one in open_rows(str(result), "json")]
        judged["/".join(result.parts[-3:-1])] = rows
    for one in open_rows(str(file), "json"):
        if isinstance(one, BadRow):
            yield one
            continue
        line, row = one
        try:
            yield line, _read_item(row, line, subset, judged, recipe)
        except BadField as error:
            yield BadRow(line, f"{subset}: {error}")


def _read_item(
    row: Any, line: int, subset: str, judged: dict[str, list[Any]], recipe: ImportAnnotationsRecipe
) -> AnnotationDraft:
    if not isinstance(row, dict) or not {"input", "output_1", "output_2", "label"} <= set(row):
        raise BadField("it lacks one of input, output_1, output_2 and label")
    texts = {
        "messages": as_messages(row["input"]), "a": as_text(row["output_1"]), "b": as_text(row["output_2"]),
    }  # fmt: skip
    said = [read_label("gold", row["label"], recipe)]
    for judge, rows in judged.items():
        answer = rows[line - 1] if line <= len(rows) else None
        if not isinstance(answer, dict) or any(answer.get(k) != row[k] for k in ("input", "output_1", "output_2")):
            raise BadField(
                f"row {line} of {judge}'s result.json is about other texts: the files do not belong together"
            )
        said += _read_orders(judge, answer, recipe)
    return AnnotationDraft(short(f"{subset}:{line}"), short(as_text(row["input"])), subset[:120], texts, said)


def _read_orders(judge: str, answer: dict[str, Any], recipe: ImportAnnotationsRecipe) -> list[Said]:
    results = answer.get("results")
    last = results[-1] if isinstance(results, list) and results else {}
    said = []
    for place, order in enumerate(ORDERS):
        told = last.get(order) if isinstance(last, dict) else None
        raw = told.get("winner") if isinstance(told, dict) else None
        said.append(read_label(judge, raw, recipe, place=place))
    return said
