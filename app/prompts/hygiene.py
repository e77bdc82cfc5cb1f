"""What is said of a prompt set before anything is trained on it: near-duplicates, overlap with benchmarks, lengths.

Two prompts are near-duplicates when their sets of three-word shingles have a Jaccard similarity of at least `near`,
estimated by MinHash (Broder 1997). A prompt overlaps with a benchmark when it shares a run of 13 words with one of its
questions, as in GPT-3's analysis of contamination (Brown et al. 2020, appendix C); a shorter question must stand in the
prompt whole. Runs of words that more than ten questions share are their template, not their content, and do not count.
"""

import re
from typing import Any

from app.prompts.models import PromptSet

WORD = re.compile(r"\w+")
SHINGLE = 3
RUN = 13
SHORTEST = 4  # words of a question that may stand within a prompt; a shorter one must be the whole prompt
TEMPLATE = 10  # questions that share a run before it counts as their template


def words_of(text: str) -> list[str]:
    """Words in small letters, without punctuation."""
    return WORD.findall(text.casefold())


def shingles(text: str) -> list[bytes]:
    """Runs of three words; of a shorter text the whole."""
    words = words_of(text)
    if len(words) <= SHINGLE:
        return [" ".join(words).encode()]
    return [" ".join(words[n : n + SHINGLE]).encode() for n in range(len(words) - SHINGLE + 1)]


def runs_of(words: list[str], length: int) -> list[str]:
    """All runs of `length` words."""
    return [" ".join(words[n : n + length]) for n in range(len(words) - length + 1)]


def describe_lengths(counts: dict[int, int]) -> list[dict[str, int]]:
    """Bars of a histogram from counts by power of two: low, high, count."""
    if not counts:
        return []
    return [
        {"low": 2**power, "high": 2 ** (power + 1), "count": counts.get(power, 0)}
        for power in range(min(counts), max(counts) + 1)
    ]


def warnings_of(row: PromptSet) -> list[str]:
    """What somebody should know before training on a set; none where nothing was found."""
    found: dict[str, Any] = row.hygiene
    said = [
        f"{n:,} {'prompt overlaps' if n == 1 else 'prompts overlap'} with the questions of {name}: scores on it may be "
        "memory, not ability."
        for name, n in found.get("overlaps", {}).items()
    ]
    if found.get("n_near"):
        n = found["n_near"]
        said.append(
            "1 prompt nearly equals an earlier one." if n == 1 else f"{n:,} prompts nearly equal an earlier one."
        )
    return said
