"""Reference log-probabilities, paid for once: by frozen weights and tokenised text, across epochs, runs and methods."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select

from app.training.models import LogProb
from worker.job import Job
from worker.loading import Weights

LOOKED_UP_AT_ONCE = 500


class Cache(Protocol):
    """Where values are kept: (sum of log-probabilities in nats, tokens) by the text's key."""

    def read(self, keys: Sequence[str]) -> dict[str, float]: ...
    def keep(self, found: Mapping[str, tuple[float, int]]) -> None: ...


class MemoryCache:
    """For one run: what has no manifest has no name under which others could look for it."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def read(self, keys: Sequence[str]) -> dict[str, float]:
        return {key: self.values[key] for key in keys if key in self.values}

    def keep(self, found: Mapping[str, tuple[float, int]]) -> None:
        self.values |= {key: value for key, (value, _) in found.items()}


class RowCache:
    """The database's, for everybody who trains against the same weights."""

    def __init__(self, job: Job, weights_sha256: str) -> None:
        self.job, self.weights_sha256 = job, weights_sha256

    def read(self, keys: Sequence[str]) -> dict[str, float]:
        """The values that are known."""
        known: dict[str, float] = {}
        with self.job.read() as session:
            for start in range(0, len(keys), LOOKED_UP_AT_ONCE):
                query = select(LogProb.text_sha256, LogProb.value).where(
                    LogProb.weights_sha256 == self.weights_sha256,
                    col(LogProb.text_sha256).in_(keys[start : start + LOOKED_UP_AT_ONCE]),
                )
                known |= dict(session.exec(query).all())
        return known

    def keep(self, found: Mapping[str, tuple[float, int]]) -> None:
        """Stores new values; where another run was first, its values stand."""
        rows = [
            {"weights_sha256": self.weights_sha256, "text_sha256": key, "value": value, "n_tokens": n}
            for key, (value, n) in found.items()
        ]
        with self.job.write() as session:
            insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
            session.execute(insert(LogProb).values(rows).on_conflict_do_nothing())


def weights_key(weights: Weights, dtype: str, is_merged: bool = False) -> str | None:
    """The name of frozen weights: base, adapter and number format; the tokenizer lies in the same folders.

    `is_merged`: an adapter is added into its base, which in less than float32 rounds it to other weights. None where
    the files have no manifest, so that nobody can say whether they have changed.
    """
    parts = []
    one: Weights | None = weights
    while one is not None:
        if not one.manifest_sha256:
            return None
        parts.append(one.manifest_sha256)
        one = one.base
    is_other = is_merged and weights.base is not None and dtype != "float32"
    return hashlib.sha256("\0".join([f"{dtype} merged" if is_other else dtype, *parts]).encode()).hexdigest()


def text_key(prompt: Sequence[int], completion: Sequence[int]) -> str:
    """The name of a tokenised text and of where its completion begins."""
    return hashlib.sha256(f"{len(prompt)}:{','.join(map(str, [*prompt, *completion]))}".encode()).hexdigest()


def say_reads(n_texts: int, n_read: int, n_known: int, n_left_out: int) -> str:
    """Where the reference's values of `n_texts` texts come from: read now, known before, or read once for several rows;
    beside them the texts of rows that were left out."""
    others = {
        "known already": n_known,
        "equal to one that was read": n_texts - n_read - n_known,
        "not needed, of rows left out": n_left_out,
    }
    rest = "".join(f"; {n:,} {what}" for what, n in others.items() if n)
    return f"the reference read {n_read:,} of {n_texts + n_left_out:,} texts{rest}"
