"""One row of a preference file as prompts, two completions each and the file's own label.

A layout is one function here or in layouts.py: a row and the recipe in, (prompt, first, second, label) out, several of
them where a row holds more than two completions. The label is "a" where the first is preferred, "b", or "tie".
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.pairs.layouts import read_oasst, read_pandalm, read_ultrafeedback, read_votes
from app.prompts.fields import (
    SPLIT_WORDS,
    BadField,
    Draft,
    Messages,
    clean,
    default_group,
    read_messages,
    split_dialogue,
)
from app.prompts.models import SPLITS
from app.prompts.recipes import ImportPairsRecipe

KNOWN = (
    "PKU-SafeRLHF (prompt, response_0, …), hh-rlhf (chosen and rejected dialogues), UltraFeedback (instruction, "
    "completions), OASST (message trees), votes (conversation_a, conversation_b, winner), PandaLM (response1, "
    "response2, annotator1, …), verdicts (messages, a, b, outcome), or prompt, chosen, rejected"
)
Found = tuple[Messages, str, str, str]  # prompt, first completion, second one, label
SOFT = {"chosen_rejected": "p_chosen", "verdicts": "p_a"}  # layout → the field of its soft label
PROMPTS = ("prompt", "conversations", "messages", "instruction", "question")


@dataclass(slots=True)
class PairDraft:
    """A prompt with two completions; `label` is a, b or tie, `p` how likely the first is better, where the row says."""

    prompt: Draft
    first: str
    second: str
    label: str
    p: float | None = None


def read_pairs(row: Any, recipe: ImportPairsRecipe) -> list[PairDraft]:
    """A row as labelled pairs; raises BadField."""
    if not isinstance(row, dict):
        raise BadField("no object with named fields: write one {…} a row")
    layout = guess_layout(row, recipe) if recipe.layout == "auto" else recipe.layout
    known = {name: value for name in ("group", "category", "split") if isinstance(value := row.get(name), str | int)}
    drafts = []
    for messages, first, second, label in READERS[layout](row, recipe):
        if first == second:
            raise BadField("both completions are the same text: no one can prefer one of them")
        prompt = Draft(
            messages=messages, group=default_group(messages), source=recipe.source[:300], licence=recipe.licence[:120]
        )
        for name, value in known.items():
            text = str(value).strip()
            if name == "split":
                text = SPLIT_WORDS.get(text.lower(), text.lower())
            if text and (name != "split" or text in SPLITS):  # another word is a file's own, such as its origin
                setattr(prompt, name, clean(text, name)[:120])
        if isinstance(gold := row.get("reference"), str) and gold.strip():
            prompt.reference = clean(gold, "reference")
        drafts.append(PairDraft(prompt, first, second, label, _probability(row, SOFT.get(layout, ""))))
    return drafts


def _probability(row: Mapping[str, Any], name: str) -> float | None:
    """How sure a row says its label is; None where it says nothing."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        p = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        p = math.nan
    if not 0 <= p <= 1:
        raise BadField(f"its “{name}” is “{str(value)[:40]}”, no number from 0 to 1")
    return p


def longest_text(drafts: Sequence[PairDraft]) -> int:
    """Characters of a row's longest text: its prompt, or a completion."""
    return max(max(one.prompt.n_chars, len(one.first), len(one.second)) for one in drafts)


def guess_layout(row: Mapping[str, Any], recipe: ImportPairsRecipe | None = None) -> str:
    """By the fields a row has; raises BadField."""
    if recipe is not None and recipe.chosen_field:
        return "chosen_rejected"
    if "response_0" in row or ("response" in row and "prompt" in row):
        return "pku_saferlhf"
    if "chosen" in row and "rejected" in row:
        is_dialogue = isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:")
        return "hh_rlhf" if is_dialogue else "chosen_rejected"
    if isinstance(row.get("completions"), list):
        return "ultrafeedback"
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return "oasst"
    if {"messages", "a", "b", "outcome"} <= set(row):
        return "verdicts"
    if {"conversation_a", "conversation_b", "winner"} <= set(row):
        return "votes"
    if {"response1", "response2", "annotator1"} <= set(row):
        return "pandalm"
    if {"model_a", "model_b"} <= set(row):
        raise BadField("it is a vote on two models without their texts: import the file as annotations")
    raise BadField(f"its fields ({', '.join(map(str, row))[:200]}) are none of the known layouts: {KNOWN}")


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BadField(f"it has no text in the field “{name}”")
    return clean(value, name)


def _read_pku(row: Mapping[str, Any], recipe: ImportPairsRecipe) -> list[Found]:
    """PKU-SafeRLHF's two labels; the short form (response: [safer, less safe]) has the second one only."""
    prompt: Messages = [{"role": "user", "content": _text(row, "prompt")}]
    if recipe.label == "chosen":
        raise BadField("this file has the labels better and safer: choose one of them under “Which label”")
    sides = row.get("response")
    if isinstance(sides, list):
        if len(sides) != 2 or not all(isinstance(one, str) for one in sides):
            raise BadField("its field “response” must hold two texts, the safer one first")
        if recipe.label != "safer":
            raise BadField("this form of the file has the safer label only: choose it under “Which label”")
        return [(prompt, clean(sides[0], "response"), clean(sides[1], "response"), "a")]
    texts = [_text(row, "response_0"), _text(row, "response_1")]
    name = f"{recipe.label}_response_id"
    label = row.get(name)
    if isinstance(label, bool) or str(label).strip() not in {"0", "1", "0.0", "1.0"}:  # CSV and Parquet have texts, 1.0
        raise BadField(f"its field “{name}” is neither 0 nor 1")
    label = int(float(str(label)))
    return [(prompt, texts[label], texts[1 - label], "a")]


def _read_dialogues(row: Mapping[str, Any], _: ImportPairsRecipe) -> list[Found]:
    """Two dialogues that differ in the last answer only."""
    chosen, rejected = (split_dialogue(_text(row, name)) for name in ("chosen", "rejected"))
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise BadField(f"its “{name}” dialogue does not end with an answer of the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise BadField(
            "the two dialogues differ before the last answer, so they answer different prompts: leave it out"
        )
    if chosen[-2]["role"] != "user":
        raise BadField("the turn before the last answer is not the user's")
    first, second = clean(chosen[-1]["content"], "chosen answer"), clean(rejected[-1]["content"], "rejected answer")
    return [(chosen[:-1], first, second, "a")]


def _read_chosen(row: Mapping[str, Any], recipe: ImportPairsRecipe) -> list[Found]:
    """prompt (text or messages), chosen and rejected (texts, a message, or messages)."""
    names = (recipe.chosen_field or "chosen", recipe.rejected_field or "rejected")
    chosen, rejected = (_as_turns(row, name) for name in names)
    asked = (recipe.prompt_field,) if recipe.prompt_field else PROMPTS
    given = next((row[name] for name in asked if row.get(name)), None)
    if recipe.prompt_field and given is None:
        raise BadField(f"it has no text in the field “{recipe.prompt_field}”")
    if given is None:  # the prompt stands within both
        if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
            raise BadField("it has no prompt, and chosen and rejected do not begin with the same messages")
        prompt = chosen[:-1]
    else:
        prompt = as_prompt(given)
        more = row.get("input")
        if isinstance(more, str) and more.strip() and "instruction" in row:
            prompt[-1]["content"] += "\n\n" + clean(more, "input")
    if not prompt or prompt[-1]["role"] != "user":
        raise BadField("its prompt does not end with a message of the user")
    return [(prompt, chosen[-1]["content"], rejected[-1]["content"], "a")]


def _read_verdicts(row: Mapping[str, Any], _: ImportPairsRecipe) -> list[Found]:
    """A download of a judging: both sides with the verdict, ties included; what could not be read is no label."""
    given = row["messages"]
    with suppress(ValueError):  # a CSV's cell holds them as JSON
        given = json.loads(given) if isinstance(given, str) and given.startswith("[") else given
    prompt = as_prompt(given)
    if row["outcome"] not in {"a", "b", "tie"}:
        raise BadField(f"its verdict is “{str(row['outcome'])[:40]}”: there is no label to import")
    if prompt[-1]["role"] != "user":
        raise BadField("its prompt does not end with a message of the user")
    return [(prompt, _text(row, "a"), _text(row, "b"), row["outcome"])]


def as_prompt(given: Any) -> Messages:
    """A prompt's cell as messages: a text, a "\\n\\nHuman:" dialogue, or a list of messages."""
    if isinstance(given, str):
        text = clean(given, "prompt")
        return split_dialogue(text) if text.startswith("\n\nHuman:") else [{"role": "user", "content": text}]
    return _list(given, "prompt")


def _as_turns(row: Mapping[str, Any], name: str) -> Messages:
    value = row.get(name)
    if value is None:
        raise BadField(f"it has no “{name}”: fill it, or leave the row out")
    if isinstance(value, str):
        return [{"role": "assistant", "content": clean(value, name)}]
    return _list([value] if isinstance(value, dict) else value, name)


def _list(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise BadField(f"its “{name}” must be text or a list of messages")
    return read_messages(value, name)


READERS: dict[str, Callable[[Mapping[str, Any], ImportPairsRecipe], list[Found]]] = {
    "pku_saferlhf": _read_pku, "hh_rlhf": _read_dialogues, "chosen_rejected": _read_chosen,
    "ultrafeedback": read_ultrafeedback, "oasst": read_oasst, "votes": read_votes, "pandalm": read_pandalm,
    "verdicts": _read_verdicts,
}  # fmt: skip
