"""The JSON objects in a text that others wrote, found in linear time whatever it holds.

Every "{" may begin an object, also one inside what another takes for a string. They are read from the last to the
first, so that an object meets those inside it already read, or known to be none. A character is then read directly by
two attempts at most: of two that read the same one, the later began inside a string of the earlier; from there on one
of them is inside a string where the other is outside, and a third would have to agree with one of them.
"""

import json
import math
import re
from typing import Any

DEEPEST = 64  # levels: nothing anybody would read goes deeper, and what is printed of a value stays bounded

_DECODER = json.JSONDecoder(strict=False)
# What the decoder surely takes for a string, so that it never builds an error: that alone counts all lines before it.
_STRING = re.compile(r'"(?:[^"\\]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')  # without its closing quote
_SPACE = re.compile(r"[ \t\n\r]*+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,400}+)(?:\.[0-9]{1,400}+)?(?:[eE][-+]?[0-9]{1,4}+)?(?![0-9])")
_CONSTANT = re.compile(r"true|false|null|NaN|-?Infinity")
_CONSTANTS = {"true": True, "false": False, "null": None, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Fields(list[tuple[str, Any]]):
    """A JSON object with every field it was written with, repeated ones too."""

    depth = 1  # levels of objects and lists, itself included

    def all(self, name: str) -> list[Any]:
        """Every value a field was given."""
        return [value for key, value in self if key == name]


class Objects:
    """The objects of a text by where they begin: each with where it ends."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.n_read = 0  # characters that attempts have read by themselves
        self.known: dict[int, tuple[Fields, int]] = {}
        start = text.rfind("{")
        while start >= 0:
            found = self._read(start)
            if found is not None:
                self.known[start] = found
            start = text.rfind("{", 0, start)

    def outermost(self) -> list[tuple[Fields, int, int]]:
        """(object, start, end) of those inside no other, first to last."""
        found, start = [], self.text.find("{")
        while start >= 0:
            end = start + 1
            if start in self.known:
                one, end = self.known[start]
                found.append((one, start, end))
            start = self.text.find("{", end)
        return found

    def _read(self, start: int) -> tuple[Fields, int] | None:
        """One object; those inside it are looked up. None where there is none."""
        one, at = Fields(), self._skip(start + 1)
        if self.text.startswith("}", at):
            return one, at + 1
        while True:
            key = self._string(at)
            if key is None:
                return None
            at = self._skip(key[1])
            if not self.text.startswith(":", at):
                return None
            value = self._value(self._skip(at + 1))
            if value is None or value[2] >= DEEPEST:
                return None
            one.append((key[0], value[0]))
            one.depth = max(one.depth, value[2] + 1)
            at = self._skip(value[1])
            if self.text.startswith("}", at):
                return one, at + 1
            if not self.text.startswith(",", at):
                return None
            at = self._skip(at + 1)

    def _value(self, at: int) -> tuple[Any, int, int] | None:
        """(value, where it ends, its levels) of what begins here, lists without recursion."""
        lists: list[list[Any]] = []
        deepest = 0
        while True:
            if self.text.startswith("[", at):
                lists.append([])
                deepest = max(deepest, len(lists))
                at = self._skip(at + 1)
                if deepest > DEEPEST:
                    return None
                if not self.text.startswith("]", at):
                    continue
                value: Any = lists.pop()
                at += 1
            else:
                found = self._simple(at)
                if found is None:
                    return None
                value, at = found
                deepest = max(deepest, len(lists) + (value.depth if isinstance(value, Fields) else 0))
            while lists:  # what the value stands in
                lists[-1].append(value)
                at = self._skip(at)
                if self.text.startswith("]", at):
                    value, at = lists.pop(), at + 1
                elif self.text.startswith(",", at):
                    at = self._skip(at + 1)
                    break
                else:
                    return None
            else:
                return value, at, deepest

    def _simple(self, at: int) -> tuple[Any, int] | None:
        """Anything but a list: an object that is known, a string, a number, true, false or null."""
        if self.text.startswith("{", at):
            return self.known.get(at)
        string = self._string(at)
        if string is not None:
            return string
        plain = _CONSTANT.match(self.text, at) or _NUMBER.match(self.text, at)
        if plain is None:
            return None
        self.n_read += plain.end() - at
        if plain[0] in _CONSTANTS:
            return _CONSTANTS[plain[0]], plain.end()
        return (int if plain[0].lstrip("-").isdigit() else float)(plain[0]), plain.end()

    def _string(self, at: int) -> tuple[str, int] | None:
        if not self.text.startswith('"', at):
            return None
        found = _STRING.match(self.text, at)
        end = found.end() if found else at
        self.n_read += end - at
        if not self.text.startswith('"', end):
            return None
        value, end = _DECODER.raw_decode(self.text, at)
        return value, end

    def _skip(self, at: int) -> int:
        """Past white space."""
        found = _SPACE.match(self.text, at)
        end = found.end() if found else at
        self.n_read += end - at + 1  # and the sign before it
        return end
