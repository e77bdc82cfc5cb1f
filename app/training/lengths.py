"""How many rows of a frozen file will fit a training, before it starts: the rule of app/training/rows.py, by the own
tokenizer of the start, where its files are on this machine."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlmodel import Session
from tokenizers import Tokenizer

from app.checkpoints.models import Checkpoint
from app.checkpoints.rendering import NoTemplate, load_chat, read_tokens
from app.config import settings
from app.projects.access import Member
from app.training.before import OFFLINE, Form
from app.training.models import Snapshot
from app.training.pages import read_config, root_folder
from app.training.rows import TRAINED_ON, as_messages, measure_fit, sides_read, split_of

MOST_ROWS = 1000  # of a file are looked at before the start; the run itself counts all


class Lengths(NamedTuple):
    """The tokens of each row's longest text that is read, by split; whether the file has no further rows."""

    train: tuple[int, ...]
    dev: tuple[int, ...]
    is_whole: bool


def say_fit(session: Session, member: Member, kind: str, values: Mapping[str, Any]) -> list[str]:
    """What a form should say of rows that are too long; nothing while start or preferences are not chosen."""
    form = Form(session, member, kind, values)
    start, snapshot = form.row(Checkpoint, "start"), form.row(Snapshot, "snapshot")
    if kind not in OFFLINE or start is None or snapshot is None or snapshot.state != "ready":
        return []
    config, folder = read_config(session, start), root_folder(session, start)
    asked = int(form.number("max_length"))
    limit = min(asked, int((config or {}).get("max_position_embeddings") or asked))
    file = settings().data_path / snapshot.path
    tokenizer = folder / "tokenizer.json" if folder else None
    is_taught = values.get("template") == "sawyer"  # a template that the start does not have yet
    if folder is None or tokenizer is None or is_taught or not (tokenizer.is_file() and file.is_file()):
        return ["How many rows fit the longest text is known when the run starts; those that do not are left out."]
    try:
        lengths = read_lengths(file, snapshot.sha256, folder, tokenizer.stat().st_mtime_ns, sides_read(kind))
    except NoTemplate as error:
        return [f"How many rows fit the longest text is not known before the start: {error}."]
    fit = measure_fit(lengths.train, lengths.dev, limit, asked)
    said = [f"{one[0].upper()}{one[1:]}." for one in [fit.say_lowered()] if one]
    if fit.n_train and not fit.train and lengths.is_whole:
        return [*said, fit.say_nothing_fits()]
    part = "" if lengths.is_whole else f" Of the file’s first {MOST_ROWS:,} rows; the run counts all."
    if fit.left_out or fit.dev_left_out:
        said.append(f"{fit.say()[0].upper()}{fit.say()[1:]}.{part}")
    return said


@lru_cache(maxsize=32)
def read_lengths(file: Path, sha256: str, folder: Path, tokenizer_ns: int, sides: tuple[str, ...]) -> Lengths:
    """Of a file's first rows. The hash and the time of change only name what is remembered."""
    count = make_count(folder)
    found: dict[str, list[int]] = {split: [] for split in TRAINED_ON}
    with file.open(encoding="utf-8") as lines:
        for line in islice(lines, MOST_ROWS):
            row = json.loads(line)
            split = split_of(row)
            if split in found:
                shown = as_messages(row)
                found[split].append(max(count(shown["prompt"], shown[side]) for side in sides))
        is_whole = next(lines, None) is None
    return Lengths(tuple(found["train"]), tuple(found["dev"]), is_whole)


def make_count(folder: Path) -> Callable[[list[dict[str, str]], list[dict[str, str]]], int]:
    """How many tokens prompt and completion are together, as the worker counts them (worker/fitting.py)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end = read_tokens(folder)["eos_token"]
    try:
        render = load_chat(folder, folder.name)
    except NoTemplate as error:
        if error.__cause__ is not None:  # there is one, and it cannot be read
            raise
        return lambda prompt, said: len(tokenizer.encode(_plain(prompt, said, end)).ids)
    return lambda prompt, said: len(tokenizer.encode(render([*prompt, *said], False), add_special_tokens=False).ids)


def _plain(prompt: list[dict[str, str]], said: list[dict[str, str]], end: str) -> str:
    """Without a chat template: the contents line by line."""
    text = "\n\n".join(message["content"] for message in prompt) + "\n\n" + said[0]["content"]
    return text if text.endswith(end) else text + end
