"""Checks of a prompt set: near-duplicates by MinHash, overlap with benchmarks' questions, lengths and categories.

Bounded: signatures are kept for the first 100,000 prompts (26 MB), and the page says so.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import sqlalchemy as sa
from datasketch import MinHash
from sqlmodel import Session, col

from app.benchmarks.models import Benchmark, Score
from app.db import get, now
from app.prompts.demo_corpus import four_choice_items
from app.prompts.fields import BadField, read_prompt
from app.prompts.files import BadRow
from app.prompts.hygiene import RUN, SHORTEST, TEMPLATE, describe_lengths, runs_of, shingles, words_of
from app.prompts.models import Prompt, PromptSet
from app.prompts.recipes import CheckPromptsRecipe, ImportPromptsRecipe
from app.prompts.sources import open_rows
from worker.compact_map import CompactMap, hash64
from worker.job import Job

LIMIT = 100_000
BANDS, ROWS = 16, 4
# Odd numbers that spread a band's four minima, and its number, over 64 bits.
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
MOST_QUESTIONS = 200_000
CHUNK = 2_000


def check_prompts(job: Job) -> None:
    """Checks a set again: benchmarks may have been scored since it was imported."""
    recipe: CheckPromptsRecipe = job.recipe
    check_set(job, recipe.prompt_set, recipe.near, recipe.questions)


def check_set(job: Job, set_id: int, near: float = 0.8, files: list[str] | None = None) -> None:
    """Stores what was found on the set and on its prompts."""
    with job.read() as session:
        questions = Questions()
        for name, text in _known_questions(session, job.project_id):
            questions.add(name, text)
    for file in files or []:
        for text in _read_questions(file):
            questions.add(file.rpartition("/")[2][:120], text)
    found = Finder(near)
    lengths, categories, overlaps = Counter[int](), Counter[str](), Counter[str]()
    n = n_near = 0
    after = -1
    while chunk := _chunk(job, set_id, after):
        changes = []
        for key, position, text, category, known in chunk:
            lengths[max(len(text), 1).bit_length() - 1] += 1
            categories[category] += len(categories) < 1000 or category in categories
            of = found.add(position, text) if position < LIMIT else None
            name = questions.find(text)
            n_near += of is not None
            overlaps[name] += bool(name)
            if (of, name) != known:
                changes.append({"key": key, "near": of, "name": name})
        n, after = n + len(chunk), chunk[-1][1]
        _store(job, changes)
        job.progress(n, 0, f"looking for near-duplicates and overlaps: {n:,} prompts")
    with job.write() as session:
        row = get(session, PromptSet, set_id)
        row.hygiene = {
            "n": n, "limit": LIMIT, "near": near, "n_near": n_near, "questions": dict(questions.counts),
            "overlaps": {name: many for name, many in overlaps.items() if name}, "lengths": describe_lengths(lengths),
            "categories": dict(categories.most_common(50)), "n_categories": len(categories),
            "checked_at": now().isoformat(),
        }  # fmt: skip
        session.add(row)


def _chunk(job: Job, set_id: int, after: int) -> list[tuple[int, int, str, str, tuple[int | None, str]]]:
    """(id, position, the prompt's text with its later turns, category, what is stored) of the next prompts.

    System messages are left out."""
    columns = (
        Prompt.id, Prompt.position, Prompt.messages, Prompt.follow_ups, Prompt.category, Prompt.near_of,
        Prompt.overlaps,
    )  # fmt: skip
    wanted = sa.select(*(col(column) for column in columns))
    mine = wanted.where(col(Prompt.set_id) == set_id, col(Prompt.position) > after)
    with job.read() as session:
        rows: Any = session.connection().execute(mine.order_by(col(Prompt.position)).limit(CHUNK)).all()
    return [
        (
            key, position, "\n".join([*(m["content"] for m in messages if m["role"] != "system"), *follow_ups]),
            category, (near, overlaps),
        )
        for key, position, messages, follow_ups, category, near, overlaps in rows
    ]  # fmt: skip


def _store(job: Job, changes: list[dict[str, Any]]) -> None:
    if changes:
        change = sa.update(Prompt).where(col(Prompt.id) == sa.bindparam("key"))
        with job.write() as session:
            session.connection().execute(
                change.values(near_of=sa.bindparam("near"), overlaps=sa.bindparam("name")), changes
            )


class Finder:
    """Earlier prompts that a prompt nearly equals, by MinHash and banding. Signatures only are kept."""

    def __init__(self, near: float) -> None:
        self.near = near
        first = MinHash(BANDS * ROWS, hashfunc=zlib.crc32)
        self.permutations, self.scheme = first.permutations, first.scheme
        self.signatures = np.zeros((1024, BANDS * ROWS), dtype=np.uint32)
        self.positions: list[int] = []
        self.bands = CompactMap()

    def add(self, position: int, text: str) -> int | None:
        """The earliest prompt that this one nearly equals, or None; it is known from then on."""
        sketch = MinHash(BANDS * ROWS, hashfunc=zlib.crc32, permutations=self.permutations, scheme=self.scheme)
        sketch.update_batch(shingles(text))
        signature = np.asarray(sketch.hashvalues, dtype=np.uint64).astype(np.uint32)
        number = len(self.positions)
        candidates = set()
        halves = signature.view(np.uint64).reshape(BANDS, ROWS // 2)
        keys = (halves[:, 0] * MIX[0] ^ halves[:, 1] * MIX[1]) + MIX[2] * np.arange(1, BANDS + 1, dtype=np.uint64)
        for key in keys.tolist():
            before = self.bands.setdefault(key or 1, number)
            if before is not None:
                candidates.add(before)
        if number == len(self.signatures):
            self.signatures = np.concatenate([self.signatures, np.zeros_like(self.signatures)])
        self.signatures[number] = signature
        self.positions.append(position)
        for other in sorted(candidates):
            if float(np.mean(self.signatures[other] == signature)) >= self.near:
                return self.positions[other]
        return None


class Questions:
    """Questions of benchmarks as runs of words, hashed."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.counts = Counter[str]()
        self.runs: dict[int, CompactMap] = {}  # length → run → which benchmark
        self.firsts: dict[int, set[str]] = {}  # length → words that such a run begins with: most texts have none
        self.whole = CompactMap()
        self.seen = CompactMap()  # run → in how many questions
        self.known = CompactMap()

    def add(self, name: str, text: str) -> None:
        """Knows one question; the same question again is known already."""
        words = words_of(text)
        if not words or self.known.setdefault(hash64(name, *words), 1) is not None:
            return
        if name not in self.counts:
            self.names.append(name)
        self.counts[name] += 1
        number = self.names.index(name)
        if len(words) < SHORTEST:
            self.whole.setdefault(hash64(*words), number)
            return
        length = min(len(words), RUN)
        runs = self.runs.setdefault(length, CompactMap())
        self.firsts.setdefault(length, set()).update(words[: len(words) - length + 1])
        for run in set(runs_of(words, length)):
            key = hash64(run)
            runs.setdefault(key, number)
            self.seen.count(key)

    def find(self, text: str) -> str:
        """The benchmark one of whose questions the text holds, or "" """
        words = words_of(text)
        found = self.whole.get(hash64(*words))
        if found is not None:
            return self.names[found]
        for length, runs in self.runs.items():
            firsts = self.firsts[length]
            for place in range(len(words) - length + 1):
                if words[place] not in firsts:
                    continue
                key = hash64(" ".join(words[place : place + length]))
                found = runs.get(key)
                if found is not None and (self.seen.get(key) or 0) <= TEMPLATE:
                    return self.names[found]
        return ""


def _known_questions(session: Session, project_id: int) -> Iterator[tuple[str, str]]:
    """Questions of the shipped test, and of every benchmark that was scored in the project."""
    for item in four_choice_items():
        yield "demo_facts", item["question"]
    prompt = col(Score.detail)["prompt"].as_string()
    stored = (
        sa.select(col(Benchmark.name), prompt)
        .select_from(Score)
        .join(Benchmark, col(Benchmark.id) == col(Score.benchmark_id))
        .where(col(Benchmark.project_id) == project_id, prompt.is_not(None), col(Benchmark.kind) != "format")
        .limit(MOST_QUESTIONS)
    )
    yield from ((name, text) for name, text in session.execute(stored))


def _read_questions(file: str) -> Iterator[str]:
    """The questions of a benchmark's file, read as prompts are."""
    recipe = ImportPromptsRecipe(path=file)
    for one in open_rows(file):
        if not isinstance(one, BadRow):
            try:
                draft = read_prompt(one[1], recipe)
                yield from (draft.messages[-1]["content"], *draft.follow_ups)
            except BadField:
                continue  # a row without a question holds none to overlap with
