"""The objects in a text: those that json finds, and no character read more than twice whatever the text holds."""

import json
import random
from typing import Any

import pytest

from app.judging.objects import DEEPEST, Fields, Objects
from app.judging.reading import read_verdict

N = 3_000
NONCE = "0123456789abcdef"
OWN = f'{{"verdict": "B", "nonce": "{NONCE}"}}'
HOSTILE = {
    "braces": "{" * N, "half a field": '{"a":' * N, "half a name": '{"' * N, "half a string": '{"a":"' * N,
    "lists": '{"a":[' * N, "one deep list": '{"a":' + "[" * N, "closed lists": '{"a":' + "[" * N + "]" * N + "}",
    "white space": ("{" + " " * 50) * N, "a field and a comma": '{"a":1,' * N, "escapes": '{"\\u' * N,
    "a string without an end": '{"a":"' + "{" * N, "objects in a list without an end": '{"a":[' + "{}," * N,
    "strings that end at the next quote": '{"a":"{"b":' * N, "closed objects": '{"a":' * N + "1" + "}" * N,
    "a long string deep down": '{"k":' * 900 + '"' + "x" * N, "a number without an end": '{"a":' + "1" * N,
    "space between": '{"a"' + " " * N + "{" * N, "fences": "```{" * N, "lines": "{\n" * N,
    "commas": '{"a":[1' + ",1" * N,
    "quotes in quotes": '{"a":"\\"{\\"a\\":' * N,
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_character_is_read_more_than_twice(text: str):
    assert Objects(text).n_read <= 2 * len(text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_verdict_after_anything_quoted_is_still_read(text: str):
    """Unless what was quoted leaves a string or an object open that would take the verdict in."""
    assert read_verdict(f'{text}"\n{OWN}', NONCE).choice == "B" or read_verdict(f"{text}\n{OWN}", NONCE).choice == "B"


def _plain(value: Any) -> Any:
    if isinstance(value, Fields):
        return {"fields": [(key, _plain(inner)) for key, inner in value]}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _by_json(text: str) -> list[tuple[Any, int, int]]:
    """What json's own decoder finds, one attempt after another: each of them may read to the end."""
    decoder = json.JSONDecoder(object_pairs_hook=Fields, strict=False)
    found, start = [], text.find("{")
    while start >= 0:
        try:
            one, end = decoder.raw_decode(text, start)
            found.append((_plain(one), start, end))
        except ValueError:
            end = start + 1
        start = text.find("{", end)
    return found


PIECES = [*'{}{}[]"":,\\ \n', '{"a":', '"b"', '":"', '"}', "1", "-0.5e3", "01", "true", "null", "nul", '\\"', "\\u00e9",
          "\\u12",
          '{"x": {"y": [1, {"z": "}"}]}}', "é", "\x00", ', "v": ', "1.", "-", "{}", "[]", "[1,]", "NaN"]  # fmt: skip


def test_it_finds_what_json_finds():
    draw = random.Random(11)
    n_found = 0
    for _ in range(4000):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 14)))
        wanted = _by_json(text)
        objects = Objects(text)
        found = [(_plain(one), start, end) for one, start, end in objects.outermost()]
        assert repr(found) == repr(wanted), text  # by their print, since NaN equals nothing
        assert objects.n_read <= 2 * len(text), text
        n_found += len(found)
    assert n_found > 1000


def test_what_goes_too_deep_is_none_and_what_is_inside_it_still_found():
    deep = '{"a":' * (DEEPEST + 3) + "1" + "}" * (DEEPEST + 3)
    ((one, start, _),) = Objects(deep).outermost()
    assert (one.depth, start) == (DEEPEST, 3 * len('{"a":'))
    assert not Objects('{"a":' + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}").outermost()
