"""Rows of a frozen file of preferences, and the one rule for those that are too long.

A row is left out whole where one of the texts that the method reads of it (prompt and completion, as tokens, with the
template's own) is longer than the recipe's longest text, or than the model was made for. Nothing is ever cut: a cut
completion has lost its end, and the end is what a policy learns to stop by.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TRAINED_ON = ("train", "dev")


def split_of(row: Mapping[str, Any], dev_share: float = 0.1) -> str:
    """A row's split; where its file names none, a share of the groups is dev, chosen by their hash."""
    if row.get("split"):
        return str(row["split"])
    group = str(row.get("group") or row["prompt"])
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:6], "big") / 2**48
    return "dev" if place < dev_share else "train"


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt and both sides as messages, and how sure the label is."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    sides = {}
    for side in ("chosen", "rejected"):
        text = row[side]
        sides[side] = [{"role": "assistant", "content": text}] if isinstance(text, str) else text
    p_chosen = row.get("p_chosen")
    return {"prompt": prompt, **sides, "p_chosen": 1.0 if p_chosen is None else float(p_chosen)}


def sides_read(kind: str) -> tuple[str, ...]:
    """Whose texts a method reads: SFT copies the chosen, all others read both."""
    return ("chosen",) if kind == "sft" else ("chosen", "rejected")


@dataclass(frozen=True)
class Fit:
    """How many rows of a file fit; lengths are the tokens of each row's longest text that is read."""

    limit: int  # tokens
    asked: int  # what the recipe says; more than the limit where the model was made for less
    n_train: int
    n_dev: int
    train: int  # of n_train, those that fit and are trained on
    dev: int
    longest: int
    shortest: int
    sha256: str = ""  # of the rows that are trained on, by their places in the file

    @property
    def left_out(self) -> int:
        """Rows of the train split that are too long."""
        return self.n_train - self.train

    @property
    def dev_left_out(self) -> int:
        """The same of the dev split."""
        return self.n_dev - self.dev

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's facts."""
        return asdict(self)

    def say(self, noun: str = "preferences") -> str:
        """What fits, and what is left out."""
        if not self.left_out:
            said = f"all {self.n_train:,} {noun} fit {self.limit:,} tokens"
        else:
            said = f"{self.train:,} of {self.n_train:,} {noun} fit {self.limit:,} tokens; {self.left_out:,} left out"
        if self.dev_left_out:
            said += f"; of {self.n_dev:,} dev rows {self.dev_left_out:,} left out"
        return f"{said} (the longest needs {self.longest:,})"

    def say_lowered(self) -> str:
        """That the model reads less than the recipe asks for; empty where it does not."""
        if self.limit >= self.asked:
            return ""
        return f"the start reads {self.limit:,} tokens at most: that is the longest text, not {self.asked:,}"

    def say_nothing_fits(self, noun: str = "preferences") -> str:
        """Why no training is possible, and what to do."""
        remedy = (
            "choose a start that reads longer texts" if self.limit < self.asked
            else "raise the longest text, or choose a start that reads longer ones"
        )  # fmt: skip
        return (
            f"None of the {self.n_train:,} {noun} fits {self.limit:,} tokens (the shortest needs {self.shortest:,}), "
            f"so that there is nothing to train on: {remedy}."
        )


def measure_fit(train: Sequence[int], dev: Sequence[int], limit: int, asked: int) -> Fit:
    """The rule, of the lengths of a file's rows."""
    kept = [place for place, n in enumerate(train) if n <= limit]
    lengths = [*train, *dev]
    return Fit(
        limit, asked, len(train), len(dev), len(kept), sum(n <= limit for n in dev), max(lengths, default=0),
        min(train, default=0), hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16],
    )  # fmt: skip
