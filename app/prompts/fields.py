"""One row of a file as a prompt: which field holds it, what else is known of it, and why a row cannot be used."""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.prompts.models import SPLITS
from app.prompts.recipes import ImportPromptsRecipe
from app.runs.recipe import sha256_of

Messages = list[dict[str, str]]
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
# Tried in this order when the recipe names no field; the first of each pair may have a second put below it.
GUESSES = ("messages", "conversations", "conversation", "prompt", "instruction", "question", "turns", "text")
LISTS = {"messages", "conversations", "conversation", "turns"}  # which a cell of a CSV may hold as JSON
ADDED = {"instruction": ("input", "context")}
SPLIT_WORDS = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


class BadField(ValueError):
    """A row that cannot be used; the message is the reason, with the remedy."""


@dataclass
class Draft:
    """A prompt as it will be stored. `split` is "" unless the row brings its own."""

    messages: Messages
    group: str
    follow_ups: list[str] = field(default_factory=list)
    reference: str | None = None
    split: str = ""
    category: str = ""
    source: str = ""
    licence: str = ""

    @property
    def sha256(self) -> str:
        """Equal for exact duplicates only."""
        return sha256_of({"messages": self.messages, "follow_ups": self.follow_ups, "reference": self.reference})

    @property
    def n_chars(self) -> int:
        """Characters of all messages."""
        return sum(len(message["content"]) for message in self.messages)


def read_prompt(row: Any, recipe: ImportPromptsRecipe) -> Draft:
    """A row as a prompt; raises BadField."""
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise BadField(f"{_kind(row)} where an object with named fields belongs: write one {{…}} a row")
    names = {str(name).strip().lower(): name for name in reversed(list(row))}
    messages, follow_ups, answered = _find_messages(row, names, recipe.prompt_field)
    follow_ups = follow_ups or _read_follow_ups(row.get(names.get("follow_ups", "")))
    if recipe.system.strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": recipe.system}, *messages]
    reference = _named(row, names, recipe.reference_field, ("reference", "answer"), "reference answer")
    draft = Draft(
        messages=messages,
        follow_ups=follow_ups,
        reference=reference if reference is not None else answered,
        group=_named(row, names, recipe.group_field, ("group", "grp"), "group") or default_group(messages),
        category=_named(row, names, recipe.category_field, ("category",), "category") or "",
        source=_named(row, names, "", ("source",), "source") or recipe.source,
        licence=_named(row, names, "", ("licence", "license"), "licence") or recipe.licence,
        split=_read_split(row, names),
    )
    for name, value, most in (("category", draft.category, 120), ("licence", draft.licence, 120)):
        if len(value) > most:
            raise BadField(f"its {name} has {len(value)} characters, more than {most}: shorten it")
    if len(draft.group) > 120:
        draft.group = hashlib.sha256(draft.group.encode()).hexdigest()[:32]
    draft.source = draft.source[:300]
    return draft


def default_group(messages: Messages) -> str:
    """The last message, blind to case and white space: texts that differ in these only stay in one split."""
    return hashlib.sha256(" ".join(messages[-1]["content"].casefold().split()).encode()).hexdigest()[:16]


def pick_split(group: str, dev_share: float, test_share: float) -> str:
    """A group's split by the hash of its name alone: the same in every import, so nothing tested is trained on."""
    place = int.from_bytes(hashlib.sha256(f"split\0{group}".encode()).digest()[:6], "big") / 2**48
    if place < test_share:
        return "test"
    return "dev" if place < test_share + dev_share else "train"


def _find_messages(
    row: Mapping[str, Any], names: Mapping[str, str], wanted: str
) -> tuple[Messages, list[str], str | None]:
    """(messages that end with the user's, follow-ups, the answer that stood after them)."""
    if wanted:
        if wanted not in row:
            raise BadField(f"it has no field “{wanted}”; it has: {', '.join(map(str, row))[:200]}")
        return _as_messages(row[wanted], wanted)
    found = next((name for name in GUESSES if name in names and row.get(names[name])), None)
    if found is None:
        known = [name for name in GUESSES if name in names]
        if known:
            raise BadField(f"its field “{names[known[0]]}” is empty: fill it or leave the row out")
        there = ", ".join(map(str, row))[:200] or "none"
        raise BadField(f"no prompt among its fields ({there}): name one under “Field of the prompt”")
    messages, follow_ups, answer = _as_messages(row[names[found]], found)
    for extra in ADDED.get(found, ()):
        more = row.get(names[extra]) if extra in names else None
        if isinstance(more, str) and more.strip():
            messages[-1]["content"] += "\n\n" + clean(more, extra)
    return messages, follow_ups, answer


def _read_follow_ups(value: Any) -> list[str]:
    """Later turns of the user, as a prompt set's own downloads have them."""
    found = _read_list(value)
    if found in (None, "", []):
        return []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadField(f"its follow_ups are {_kind(found)}: they must be a list of texts")
    return [clean(one, f"follow-up {place}") for place, one in enumerate(found, 1)]


def _read_list(value: Any) -> Any:
    """A list that a cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _as_messages(value: Any, name: str) -> tuple[Messages, list[str], str | None]:
    value = _read_list(value) if name.lower() in LISTS else value
    if isinstance(value, str):
        text = clean(value, name)
        turns = split_dialogue(text) if text.startswith("\n\nHuman:") else [{"role": "user", "content": text}]
        return *_ending_with_user(turns), None
    if isinstance(value, dict) and isinstance(value.get("text"), str) and "replies" in value:  # an OASST tree's root
        return [{"role": "user", "content": clean(value["text"], name)}], [], None
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):  # turns of one speaker
        first, *more = (clean(one, name) for one in value)
        return [{"role": "user", "content": first}], more, None
    if isinstance(value, list) and value:
        messages = read_messages(value, name)
        answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
        return *_ending_with_user(messages), answer
    raise BadField(f"its field “{name}” is {_kind(value)}: it must be text or a list of messages")


def _ending_with_user(messages: Messages) -> tuple[Messages, list[str]]:
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise BadField("its last message is not the user's: a prompt ends with the question")
    return messages, []


def read_messages(value: Any, name: str) -> Messages:
    """A list of {role, content} or {from, value}; raises BadField."""
    messages: Messages = []
    for place, one in enumerate(value, 1):
        if not isinstance(one, dict):
            raise BadField(f"message {place} of “{name}” is {_kind(one)}: write {{role, content}}")
        role = str(one.get("role", one.get("from", ""))).lower()
        if role not in ROLES:
            raise BadField(f"message {place} of “{name}” has the role “{role[:40]}”: use system, user or assistant")
        content = one.get("content", one.get("value"))
        if (
            isinstance(content, list)
            and content
            and all(isinstance(p, dict) and p.get("type") == "text" for p in content)
        ):
            content = "\n\n".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise BadField(f"message {place} of “{name}” holds {_kind(content)} instead of text")
        messages.append({"role": ROLES[role], "content": clean(content, f"message {place}")})
    return messages


def split_dialogue(text: str) -> Messages:
    """Turns of a "\\n\\nHuman: … \\n\\nAssistant: …" dialogue."""
    parts = _TURN.split(text)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in turns]


def clean(text: str, name: str) -> str:
    """The text itself; raises BadField when it is empty or no database could store it."""
    if "\x00" in text:
        raise BadField(f"its {name} holds a NUL character: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadField(
            f"its {name} is broken Unicode at character {error.start + 1}: save the file as UTF-8"
        ) from error
    if not text.strip():
        raise BadField(f"its {name} is empty: fill it or leave the row out")
    return text


def _named(
    row: Mapping[str, Any], names: Mapping[str, str], wanted: str, guesses: tuple[str, ...], what: str
) -> str | None:
    """A field's value as text, or None where it is missing. A list stands for its first entry."""
    if wanted and wanted not in row:
        raise BadField(f"it has no field “{wanted}” for the {what}; it has: {', '.join(map(str, row))[:200]}")
    key = wanted or next((names[guess] for guess in guesses if guess in names), None)
    value = row.get(key) if key is not None else None
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or value == "" or isinstance(value, dict | list):
        return None
    return clean(str(value), what)


def _read_split(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    value = row.get(names["split"]) if "split" in names else None
    if not isinstance(value, str) or not value.strip():
        return ""
    found = SPLIT_WORDS.get(value.strip().lower(), value.strip().lower())
    if found not in SPLITS:
        raise BadField(f"its split “{value[:40]}” is none of {', '.join(SPLITS)}: change or remove it")
    return found


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")
