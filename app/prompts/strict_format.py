"""The strict answer format of the format study: reading it, checking an exact answer, scoring by rule."""

import re
import unicodedata
from dataclasses import dataclass

EXAMPLE = "Answer: … — Confidence: high/medium/low — Reasoning: …"

# Three fields in this order, joined by an em dash with single spaces, on one line and with nothing before or after.
# An em dash inside a field would make the reading ambiguous, so the answer may not hold one.
_STRICT = re.compile(
    r"Answer: (?P<answer>[^\s—][^—\n]*?) — Confidence: (?P<confidence>high|medium|low)"
    r" — Reasoning: (?P<reasoning>\S[^\n]*)"
)
_LOOSE = re.compile(r"^\s*answer\s*:\s*(?P<answer>[^—\n]+)", re.IGNORECASE)


@dataclass(frozen=True)
class FormatReading:
    is_strict: bool
    answer: str | None
    confidence: str | None
    reasoning: str | None


def read_strict_format(text: str) -> FormatReading:
    """Reads a completion. Surrounding white space is forgiven; anything else that differs is not strict.

    The answer of a text that merely begins like the format ("Answer: Paris.") is still read, since a
    wrong format does not make an answer unreadable.
    """
    stripped = text.strip()
    match = _STRICT.fullmatch(stripped)
    if match:
        return FormatReading(True, match["answer"].strip(), match["confidence"], match["reasoning"].strip())
    loose = _LOOSE.match(stripped)
    return FormatReading(False, loose["answer"].strip() if loose else None, None, None)


def normalise_answer(text: str) -> str:
    """Case, accents, articles, punctuation and runs of white space do not make an answer another one."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    words = re.sub(r"[^\w]+", " ", plain).split()
    if len(words) > 1 and words[0] in {"a", "an", "the"}:
        words = words[1:]
    return " ".join(words)


def is_answer_exact(text: str, reference: str) -> bool:
    """Whether a completion gives the reference answer.

    With an answer field, that field must equal the reference. Without one, the reference must stand in the
    text as whole words.
    """
    wanted = normalise_answer(reference)
    if not wanted:
        return False
    answer = read_strict_format(text).answer
    if answer is not None:
        return normalise_answer(answer) == wanted
    return f" {wanted} " in f" {normalise_answer(text)} "


def score_by_rule(text: str, reference: str | None, format_weight: float = 2.0, answer_weight: float = 1.0) -> float:
    """The rule judge's score of one completion: weight for the format plus weight for the exact answer.

    Reads the gold answer, so a judge built on it is an oracle. Without a reference only the format counts.
    """
    score = format_weight * read_strict_format(text).is_strict
    if reference is not None:
        score += answer_weight * is_answer_exact(text, reference)
    return score
