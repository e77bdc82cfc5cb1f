"""What a kind's function is given: its recipe, its folder, and fenced writes to its run."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlmodel import Session, col

from app.config import settings
from app.db import clean_text, get, now, reading, transaction
from app.recipes import read_recipe
from app.runs.models import LogLine, Metric, Run, Sampled
from app.runs.queue import drop_metrics_after, fence, record_output

# prompt, completion, training reward, and what the detectors saw
SampledText = tuple[str, str, float | None] | tuple[str, str, float | None, dict[str, Any]]


def turns_of(messages: list[dict[str, str]]) -> dict[str, Any]:
    """A prompt's messages for a sample's detail, where its text alone would not say who speaks."""
    return {"turns": messages} if len(messages) > 1 else {}


class Watch(Protocol):
    """What a training loop tells while it runs; a Job is one."""

    def check(self) -> None: ...
    def progress(self, done: int, total: int, note: str = "") -> None: ...
    def metric(self, step: int, **values: float) -> None: ...
    def log(self, text: str, level: str = "info") -> None: ...
    def resumed_at(self, step: int) -> None: ...
    def sampled(self, step: int, rows: Sequence[SampledText]) -> None: ...
    def flush(self) -> None: ...
    def spend(self, **amounts: float) -> None: ...


class Cancelled(Exception):
    """Somebody asked this run to stop."""


class Job:
    """One attempt at one run.

    Every write begins with a fence on (run, attempt), so an attempt that has been taken over can store nothing.
    """

    def __init__(self, run_id: int, attempt: int) -> None:
        self.run_id, self.attempt = run_id, attempt
        with reading() as session:
            run = get(session, Run, run_id)
            self.recipe: Any = read_recipe(run.recipe)
            self.project_id = run.project_id
        self.seed: int = self.recipe.seed
        self.folder: Path = settings().folder("runs", run_id)
        self._said = 0.0
        self._total: int | None = None
        self._checked = 0.0
        self._is_cancelled = False
        self._points: dict[tuple[int, str], dict[str, Any]] = {}  # of curves, not stored yet
        self._wrote = 0.0

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that stores nothing unless this attempt still holds the run. Raises Fenced.

        The points of curves that wait are stored with it.
        """
        points = dict(self._points)
        with transaction() as session:
            fence(session, self.run_id, self.attempt)
            if points:
                known = sa.tuple_(col(Metric.step), col(Metric.name)).in_(list(points))
                session.execute(sa.delete(Metric).where(col(Metric.run_id) == self.run_id, known))
                session.execute(sa.insert(Metric), list(points.values()))
            yield session
        self._wrote = time.monotonic()
        self._points = {key: point for key, point in self._points.items() if points.get(key) is not point}

    def flush(self) -> None:
        """Stores the points that wait: whoever seals a state to go on from calls it first."""
        if self._points:
            with self.write():
                pass

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading."""
        with reading() as session:
            yield session

    def check(self) -> None:
        """Raises Cancelled when a cancel was asked for. Cheap: asks the database twice a second at most."""
        if time.monotonic() - self._checked > 0.5:
            self._checked = time.monotonic()
            with reading() as session:
                self._is_cancelled = bool(session.execute(
                    sa.select(col(Run.is_cancel_asked)).where(col(Run.id) == self.run_id)
                ).scalar())  # fmt: skip
        if self._is_cancelled:
            raise Cancelled

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Moves the bar (once a second at most, and always at the end) and checks for a cancel."""
        self.check()
        is_new_count = total != self._total  # an attempt's first, or another part of the work
        if done < total and not is_new_count and time.monotonic() - self._said < 1:
            return
        self._said, self._total = time.monotonic(), total
        with self.write() as session:
            change = sa.update(Run).where(col(Run.id) == self.run_id)
            session.execute(change.values(done=done, total=total, note=note[:200]))
            if is_new_count:
                session.execute(change.values(counted_from=done, counted_at=now()))

    def log(self, text: str, level: str = "info") -> None:
        """Adds a line to the run's log."""
        with self.write() as session:
            session.add(LogLine(run_id=self.run_id, attempt=self.attempt, level=level, text=clean_text(text)))

    def metric(self, step: int, **values: float) -> None:
        """Stores points of curves, once a second at most: a step may take less time than a transaction. A value that
        is not finite becomes NULL; a step said twice keeps the later value."""
        at = now()
        for name, value in values.items():
            finite = float(value) if math.isfinite(value) else None
            self._points[step, name] = {"run_id": self.run_id, "name": name, "step": step, "value": finite, "at": at}
        if time.monotonic() - self._wrote > 1:
            self.flush()

    def resumed_at(self, step: int) -> None:
        """Says from which step this attempt goes on; later points and samples of earlier attempts go."""
        with self.write() as session:
            drop_metrics_after(session, self.run_id, step)
            session.execute(sa.delete(Sampled).where(col(Sampled.run_id) == self.run_id, col(Sampled.step) > step))
            session.add(LogLine(run_id=self.run_id, attempt=self.attempt, text=f"resumed after step {step}"))

    def sampled(self, step: int, rows: Sequence[SampledText]) -> None:
        """Adds (prompt, text, reward, what the detectors saw) of the fixed prompts to the film strip."""
        with self.write() as session:
            session.execute(sa.delete(Sampled).where(col(Sampled.run_id) == self.run_id, col(Sampled.step) == step))
            for place, (prompt, said, reward, *more) in enumerate(rows):
                asked, text = clean_text(prompt), clean_text(said)
                session.add(Sampled(
                    run_id=self.run_id, step=step, place=place, prompt=asked, text=text, reward=reward,
                    detail=more[0] if more else {},
                ))  # fmt: skip

    def has_made(self, kind: Any) -> bool:
        """Whether an attempt before this one got to the end: what it makes is made at once, in one transaction."""
        with self.read() as session:
            made = sa.select(kind.id).where(kind.run_id == self.run_id).limit(1)
            return session.execute(made).first() is not None

    def made(self, session: Session, noun: str, key: int, sha256: str = "") -> None:
        """Notes, within a write, that this run made a row."""
        record_output(session, self.run_id, noun, key, sha256)

    def spend(self, **amounts: float) -> None:
        """Adds to the run's budget: generated_tokens, judge_calls, usd, labels, device_seconds, …"""
        with self.write() as session:
            run = get(session, Run, self.run_id)
            run.cost = {**run.cost, **{name: run.cost.get(name, 0) + value for name, value in amounts.items()}}

    def hold(self, **peaks: float) -> None:
        """Notes beside the run's budget what it held at most, over all its attempts: peak_memory_mib, …"""
        with self.write() as session:
            run = get(session, Run, self.run_id)
            run.cost = {**run.cost, **{name: max(run.cost.get(name, 0), value) for name, value in peaks.items()}}
