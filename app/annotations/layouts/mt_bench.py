"""MT-Bench: people's votes with GPT-4's verdict beside them, and the conversations where the folder has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft
from app.annotations.layouts.rows import map_rows
from app.annotations.recipes import ImportAnnotationsRecipe
from app.prompts.files import BadRow
from app.prompts.sources import open_rows

VOTES, TALKS = "human_vs_gpt4_votes.csv", "conversations.jsonl"


def read_mt_bench(path: Path, recipe: ImportAnnotationsRecipe) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    """The votes; with texts when the path is the folder that also holds the conversations."""
    if not path.is_dir():
        yield from map_rows(open_rows(recipe.path, recipe.format), recipe)
        return
    talks = read_talks(path / TALKS)
    with_texts = recipe.model_copy(update={"a_field": "a", "b_field": "b"} if talks else {})
    yield from map_rows((_with_texts(one, talks) for one in open_rows(str(path / VOTES), "csv")), with_texts)


def read_talks(file: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(question, model) → conversation."""
    if not file.is_file():
        return {}
    rows = (one[1] for one in open_rows(str(file), "jsonl") if not isinstance(one, BadRow))
    return {
        (str(row.get("question_id")), str(row.get("model"))): row["conversation"]
        for row in rows if isinstance(row, dict) and isinstance(row.get("conversation"), list)
    }  # fmt: skip


def _with_texts(one: tuple[int, Any] | BadRow, talks: dict[tuple[str, str], Any]) -> tuple[int, Any] | BadRow:
    if isinstance(one, BadRow) or not talks:
        return one
    line, row = one
    for side in "ab":
        talk = talks.get((row.get("question_id", ""), row.get(f"model_{side}", "")), [])
        row[side] = talk[: 2 * int(row["turn"])] if str(row.get("turn", "")).isdecimal() else []
    return line, row
