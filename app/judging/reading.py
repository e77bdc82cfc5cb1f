"""Reading a judge's answer: one verdict that carries this call's nonce, or none and the reason why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.db import clean_text
from app.judging.objects import Fields, Objects
from app.judging.prompt import TIE

MAX_REASON = 4000
MOST_SHOWN = 10  # of verdicts that differ


@dataclass(frozen=True)
class Reading:
    """What an answer says, in the letters the judge saw. `choice` None: unreadable, and `failure` says why."""

    choice: str | None = None
    by_principle: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    failure: str = ""


def read_verdict(raw: str, nonce: str, keys: Sequence[str] = (), *, stop_reason: str = "stop") -> Reading:
    """The one verdict in an answer, of the objects `find_said` finds. Two different verdicts are none."""
    found, failure = find_said(raw, nonce, stop_reason)
    if not found:
        return Reading(failure=failure)
    verdicts = [value for one in found for value in one.all("verdict")]
    choices = {_letter(value) for value in verdicts}
    if not verdicts:
        return Reading(failure="the answer has this call's nonce and no verdict")
    if None in choices:
        shown = next(shorten(value, 40) for value in verdicts if _letter(value) is None)
        return Reading(failure=f"the verdict is “{shown}”, neither A, B nor tie")
    if len(choices) > 1:
        shown = ", ".join(shorten(value, 20) for value in verdicts[:MOST_SHOWN])
        more = ", …" if len(verdicts) > MOST_SHOWN else ""
        return Reading(failure=f"{len(verdicts)} verdicts that differ: {shown}{more}")
    reasons = [shorten(value, MAX_REASON) for value in found[-1].all("reason")]
    return Reading(choices.pop(), _principles(found, keys), reasons[0] if reasons else "")


def shorten(value: Any, most: int) -> str:
    """What an answer says somewhere, as every database stores it: JSON can spell NUL and half characters."""
    return clean_text(str(value)[:most])


def find_said(raw: str, nonce: str, stop_reason: str) -> tuple[list[Fields], str]:
    """The objects of an answer that are the judge's own, or none and the reason why.

    Only an object whose own field `nonce` is this call's counts: candidate text, quoted or not, cannot hold it. The
    nonce has to be the object's last field unless the object is the whole answer; otherwise a candidate quoted without
    escapes could end the object before the judge's own verdict.
    """
    whole = _unfenced(raw.strip())
    found: list[Fields] = []
    is_misplaced = False
    for one, is_whole in _objects(whole):
        if not any(type(value) in {str, int} and str(value) == nonce for value in one.all("nonce")):
            continue
        if is_whole or one[-1][0] == "nonce":
            found.append(one)
        else:
            is_misplaced = True
    return found, "" if found else _why_none(raw, nonce, is_misplaced, stop_reason)


def _unfenced(text: str) -> str:
    """A text without the code fence around all of it."""
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    return text[3:-3].removeprefix("json").strip()


def _objects(text: str) -> Iterator[tuple[Fields, bool]]:
    """Every JSON object in a text, those inside others too, and whether it is the whole text."""
    for one, start, end in Objects(text).outermost():
        for inner in _nested(one):
            yield inner, inner is one and start == 0 and end == len(text)


def _nested(value: Any) -> Iterator[Fields]:
    """An object and those inside it, in the order they are written; `Objects` bounds how deep that goes."""
    if isinstance(value, Fields):
        if value:
            yield value
        for _, inner in value:
            yield from _nested(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nested(inner)


def _letter(value: Any) -> str | None:
    said = str(value).strip().casefold() if isinstance(value, str) else ""
    return {"a": "A", "b": "B", "tie": TIE}.get(said)


def _principles(found: Sequence[Fields], keys: Sequence[str]) -> dict[str, str]:
    """Choices by principle; one that is missing, unreadable or said twice differently is left out."""
    said: dict[str, set[str | None]] = {}
    for one in found:
        for block in one.all("principles"):
            if isinstance(block, Fields):
                for key, value in block:
                    said.setdefault(key, set()).add(_letter(value))
    return {key: choice for key in keys for choice in said.get(key, ()) if choice and len(said[key]) == 1}


def _why_none(raw: str, nonce: str, is_misplaced: bool, stop_reason: str) -> str:
    if stop_reason == "content_filter":
        return "the endpoint's content filter held the answer back"
    if not raw.strip():
        return "the answer is empty" + (": cut off at the token limit" if stop_reason == "length" else "")
    if is_misplaced:
        return "the nonce is not the last field of the verdict"
    if stop_reason == "length":
        return "cut off at the token limit before a verdict with this call's nonce"
    if nonce in raw:
        return "no readable JSON object holds this call's nonce"
    return "no verdict with this call's nonce"
