"""One row of a preference file as a prompt, two completions and the file's own label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.prompts.fields import BadField, Draft, Messages, clean, default_group, read_messages, split_dialogue
from app.prompts.recipes import ImportPairsRecipe

LAYOUTS = "PKU-SafeRLHF (prompt, response_0, …), hh-rlhf (chosen and rejected dialogues) or prompt, chosen, rejected"


@dataclass
class PairDraft:
    """A prompt with the completion its label prefers, and the other one."""

    prompt: Draft
    chosen: str
    rejected: str


def read_pair(row: Any, recipe: ImportPairsRecipe) -> PairDraft:
    """A row as a labelled pair; raises BadField."""
    if not isinstance(row, dict):
        raise BadField("no object with named fields: write one {…} a row")
    layout = guess_layout(row) if recipe.layout == "auto" else recipe.layout
    read = {"pku_saferlhf": _read_pku, "hh_rlhf": _read_dialogues, "chosen_rejected": _read_chosen}[layout]
    messages, chosen, rejected = read(row, recipe)
    if chosen == rejected:
        raise BadField("both completions are the same text: no one can prefer one of them")
    prompt = Draft(
        messages=messages, group=default_group(messages), source=recipe.source[:300], licence=recipe.licence[:120]
    )
    for name in ("group", "category", "split"):
        value = row.get(name)
        if isinstance(value, str) and value.strip() and (name != "split" or value in {"train", "dev", "test", "ood"}):
            setattr(prompt, name, clean(value, name)[:120])
    return PairDraft(prompt, chosen, rejected)


def guess_layout(row: Mapping[str, Any]) -> str:
    """By the fields a row has; raises BadField."""
    if "response_0" in row or ("response" in row and "prompt" in row):
        return "pku_saferlhf"
    if "chosen" in row and "rejected" in row:
        is_dialogue = isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:")
        return "hh_rlhf" if is_dialogue else "chosen_rejected"
    raise BadField(f"its fields ({', '.join(map(str, row))[:200]}) are none of the known layouts: {LAYOUTS}")


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BadField(f"it has no text in the field “{name}”")
    return clean(value, name)


def _read_pku(row: Mapping[str, Any], recipe: ImportPairsRecipe) -> tuple[Messages, str, str]:
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
        return prompt, clean(sides[0], "response"), clean(sides[1], "response")
    texts = [_text(row, "response_0"), _text(row, "response_1")]
    name = f"{recipe.label}_response_id"
    label = row.get(name)
    if isinstance(label, str) and label.strip() in {"0", "1"}:  # from CSV
        label = int(label)
    if label not in (0, 1) or isinstance(label, bool):
        raise BadField(f"its field “{name}” is neither 0 nor 1")
    return prompt, texts[label], texts[1 - label]


def _read_dialogues(row: Mapping[str, Any], _: ImportPairsRecipe) -> tuple[Messages, str, str]:
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
    return chosen[:-1], clean(chosen[-1]["content"], "chosen answer"), clean(rejected[-1]["content"], "rejected answer")


def _read_chosen(row: Mapping[str, Any], _: ImportPairsRecipe) -> tuple[Messages, str, str]:
    """prompt (text or messages), chosen and rejected (texts, a message, or messages)."""
    chosen, rejected = (_as_turns(row, name) for name in ("chosen", "rejected"))
    given = next(
        (row[name] for name in ("prompt", "conversations", "messages", "instruction", "question") if row.get(name)),
        None,
    )
    if given is None:  # the prompt stands within both
        if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
            raise BadField("it has no prompt, and chosen and rejected do not begin with the same messages")
        prompt = chosen[:-1]
    else:
        prompt = [{"role": "user", "content": clean(given, "prompt")}] if isinstance(given, str) else _list(given)
        more = row.get("input")
        if isinstance(more, str) and more.strip() and "instruction" in row:
            prompt[-1]["content"] += "\n\n" + clean(more, "input")
    if not prompt or prompt[-1]["role"] != "user":
        raise BadField("its prompt does not end with a message of the user")
    return prompt, chosen[-1]["content"], rejected[-1]["content"]


def _as_turns(row: Mapping[str, Any], name: str) -> Messages:
    value = row.get(name)
    if isinstance(value, str):
        return [{"role": "assistant", "content": clean(value, name)}]
    return _list([value] if isinstance(value, dict) else value)


def _list(value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise BadField("prompt, chosen and rejected must be texts or lists of messages")
    return read_messages(value, "messages")
