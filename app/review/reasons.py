"""Which side a judge's written reason calls the better one: a cheap detector of plain English statements."""

import re

_SIDE = r"(?:completion|response|answer|option|candidate|assistant)?\s*\(?([AB])\)?"
_BETTER = (
    r"(?:much |far |clearly |slightly |the |a )*(?:better|best|superior|stronger|strongest|preferable|preferred|winner|"
    r"more (?:helpful|accurate|complete|correct|honest|harmless|useful|informative))"
)
_NAMES_SIDE = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_SIDE}\s+(?:is|was|seems|appears|remains)\s+{_BETTER}",
        rf"\b(?:I |we )?(?:prefer|choose|favou?r|pick)s?\s+{_SIDE}\b",
        rf"\b{_SIDE}\s+(?:wins|is the winner)\b",
    )
)

_DENIED = re.compile(r"\b(?:not|neither|nor|if|whether|than)\b|n['’]t\b", re.IGNORECASE)


def side_named(reason: str) -> str:
    """The letter that a reason calls the better one in so many words; "" for none, both, or a negation nearby.

    A cheap detector on purpose: English, and only plain statements such as "completion A is better".
    """
    said = set()
    text = re.sub(r"\b(Completion|Response|Answer|Option|Candidate|Assistant)\b", lambda m: m[0].lower(), reason)
    for pattern in _NAMES_SIDE:
        for found in pattern.finditer(text):
            if _DENIED.search(text[max(0, found.start() - 25) : found.end()]):
                return ""
            said.add(found[1])
    return said.pop() if len(said) == 1 else ""
