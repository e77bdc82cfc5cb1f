"""PRD (peer rank and discussion) on Vicuna's questions: people's votes and three judges' in both orders.

The folder holds ratings-WHO/answer_A-vs-answer_B-WHO-reviewer_threeclass.jsonl. An item is a question and two models.
Its side a is the model that the people's file names first (sides: first_seen) or the first by name (sides: by_name).
People are not named there: "vote 1", "vote 2", … are the votes of one item in their order. A judge's place 0 is its
verdict in the item's own order, place 1 the one in the other order, turned back.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.annotations.fields import AnnotationDraft, Said, as_messages, as_text, read_label
from app.annotations.recipes import ImportAnnotationsRecipe
from app.errors import Invalid
from app.prompts.files import BadRow
from app.prompts.sources import open_rows

FILE = re.compile(r"answer_(.+)-vs-answer_(.+)-([^-]+)-reviewer[-_]threeclass\.jsonl")
Cell = tuple[str, str, str]  # question, first model, second model


def read_prd(path: Path, recipe: ImportAnnotationsRecipe) -> Iterator[tuple[int, AnnotationDraft] | BadRow]:
    """The whole folder: 600 items of about 80 questions, so it is read at once."""
    rated: dict[str, dict[Cell, list[Any]]] = {}
    bad: list[BadRow] = []
    for file in sorted(path.glob("ratings-*/*.jsonl")):
        known = FILE.fullmatch(file.name)
        if known is None:
            continue
        a, b, who = known.groups()
        for one in open_rows(str(file), "jsonl"):
            if isinstance(one, BadRow):
                bad.append(BadRow(one.line, f"{file.name}: {one.reason}"))
            elif isinstance(one[1], dict) and "question_id" in one[1]:
                rated.setdefault(who, {}).setdefault((str(one[1]["question_id"]), a, b), []).append(one[1].get("score"))
            else:
                bad.append(BadRow(one[0], f"{file.name}: it has no question_id"))
    if "human" not in rated:
        message = f"{path.name} holds no ratings-human/answer_…-vs-answer_…-human-reviewer_threeclass.jsonl."
        raise Invalid(message, {"path": [message]})
    yield from bad
    questions, answers = _read_texts(path)
    frames: dict[Cell, Cell] = {}
    for question, a, b in rated["human"]:
        named = (question, min(a, b), max(a, b))
        frames.setdefault(named, named if recipe.sides == "by_name" else (question, a, b))
    for line, (question, a, b) in enumerate(frames.values(), 1):
        told = questions.get(question, {})
        texts: dict[str, Any] = {"a_name": a, "b_name": b}
        if told:
            texts["messages"] = as_messages(told.get("text"))
        for side, model in (("a", a), ("b", b)):
            if (model, question) in answers:
                texts[side] = answers[model, question]
        said = _read_people(rated["human"], (question, a, b), recipe)
        for judge in sorted(set(rated) - {"human"}):
            said += _read_judge(judge, rated[judge], (question, a, b), recipe)
        yield line, AnnotationDraft(f"{question}:{a}:{b}", question, str(told.get("category") or ""), texts, said)


def _read_people(rated: dict[Cell, list[Any]], frame: Cell, recipe: ImportAnnotationsRecipe) -> list[Said]:
    question, a, b = frame
    said = [read_label("", raw, recipe) for raw in rated.get(frame, [])]
    return said + [_turned(read_label("", raw, recipe)) for raw in rated.get((question, b, a), [])]


def _read_judge(judge: str, rated: dict[Cell, list[Any]], frame: Cell, recipe: ImportAnnotationsRecipe) -> list[Said]:
    question, a, b = frame
    said = [read_label(judge, raw, recipe, place=0) for raw in rated.get(frame, [])[:1]]
    return said + [_turned(read_label(judge, raw, recipe, place=1)) for raw in rated.get((question, b, a), [])[:1]]


def _turned(said: Said) -> Said:
    said.label = {"a": "b", "b": "a"}.get(said.label or "", said.label)
    return said


def _read_texts(path: Path) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], str]]:
    """Questions by their number, and answers by model and question, where the folder has them."""
    questions, answers = {}, {}
    file = path / "prompts" / "vicuna_questions.jsonl"
    for one in open_rows(str(file), "jsonl") if file.is_file() else ():
        if not isinstance(one, BadRow) and isinstance(one[1], dict):
            questions[str(one[1].get("question_id"))] = one[1]
    for file in sorted(path.glob("generations/answer_*.jsonl")):
        for one in open_rows(str(file), "jsonl"):
            if not isinstance(one, BadRow) and isinstance(one[1], dict):
                model, question = file.stem.removeprefix("answer_"), str(one[1].get("question_id"))
                answers[model, question] = as_text(one[1].get("text") or "")
    return questions, answers
