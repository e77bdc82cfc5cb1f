"""A soft label from the log-probabilities of the verdict's letter in an endpoint's answer."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.db import clean_text
from app.judging.prompt import LETTERS, TIE

ASKED_FOR = {"logprobs": True, "top_logprobs": 5}
HIGHEST = 0.01  # a log-probability is at most 0, but for rounding
Tops = list[tuple[str, float]]
_VERDICT = re.compile(r'"verdict"\s*:\s*"')


def find_letter(choice: Mapping[str, Any]) -> Tops:
    """The alternatives (token, log-probability) at the verdict's letter; empty where they cannot be found for sure.

    Two `"verdict"` fields in an answer (a candidate quoted word for word) leave no doubt-free place: then none.
    """
    try:
        return _find_letter(choice)
    except (AttributeError, KeyError, TypeError, ValueError):  # an endpoint may send anything there
        return []


def _find_letter(choice: Mapping[str, Any]) -> Tops:
    content = (choice.get("logprobs") or {}).get("content") or []
    tokens = [str(one.get("token", "")) for one in content]
    places = [found.end() for found in _VERDICT.finditer("".join(tokens))]
    if len(places) != 1:
        return []
    start = 0
    for token, one in zip(tokens, content, strict=True):
        if start <= places[0] < start + len(token):
            tops = [(clean_text(str(top["token"])), float(top["logprob"])) for top in one.get("top_logprobs") or []]
            if any(math.isnan(log_prob) or log_prob > HIGHEST for _, log_prob in tops):
                return []  # no logarithms of probabilities
            return [(text, log_prob) for text, log_prob in tops if math.isfinite(log_prob)]
        start += len(token)
    return []


def read_letter(tops: Sequence[Sequence[Any]]) -> tuple[str, float] | None:
    """(the likeliest letter as the judge saw it, probability that A is better), a tie counting half for each."""
    shares = dict.fromkeys(LETTERS, 0.0)
    for token, log_prob in tops:
        text = str(token).strip(" \t\n\"',}").casefold()
        letter = {"a": "A", "b": "B"}.get(text, TIE if text and TIE.startswith(text) else "")
        if letter:
            shares[letter] += math.exp(float(log_prob))
    total = sum(shares.values())
    if total <= 0:
        return None
    letter = max(LETTERS, key=lambda one: shares[one])
    return letter, (shares["A"] + shares[TIE] / 2) / total
