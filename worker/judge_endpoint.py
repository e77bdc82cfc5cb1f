"""Judging over HTTP, on the call ledger: which questions to ask of each pair, and what their answers say."""

import gc
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlmodel import Session

from app.checkpoints.chat import Body
from app.checkpoints.endpoints import target_of
from app.db import get
from app.judging.asking import Asking
from app.judging.judges import endpoint_of
from app.judging.material import PairRow, read_guides, read_pairs
from app.judging.models import Judge
from app.judging.protocol import Asked, Seat
from app.judging.verdicts import OpinionValue
from worker.job import Job
from worker.judge_book import Given, VerdictBook, given
from worker.ledger import Known, Unit, ask_all_of

READ_AT_ONCE = 128  # pairs: the query costs more than its rows


def askings_of(job: Job, book: VerdictBook, seat: Seat) -> dict[str, Asking]:
    """The judge's endpoint and the recipe's constitution as requests and readings, one for each question."""
    recipe = book.recipe
    with job.read() as session:
        target = target_of(endpoint_of(session, get(session, Judge, seat.judge_id)))
        guides = read_guides(session, recipe.constitution, seat.principles)
    return {
        key: Asking(
            target, guide, with_reason=recipe.with_reason, temperature=recipe.temperature,
            max_tokens=recipe.max_tokens, is_by_log_probs=book.protocol.is_by_log_probs,
        )
        for key, guide in guides.items()
    }  # fmt: skip


class PairWork:
    """The questions of one judge on a pair set. A pair's next votes are asked for once its earlier ones are in."""

    def __init__(self, book: VerdictBook, seat: Seat, askings: dict[str, Asking]) -> None:
        self.book, self.seat, self.askings = book, seat, askings
        self._left = deque(book.to_do)
        self._ready: deque[Unit] = deque()
        self._open: dict[int, tuple[PairRow, int]] = {}  # pair → its texts, and how many answers are awaited

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """Units of pairs in their order; those of a later vote first."""
        while len(self._ready) < n and self._left:
            ids = [self._left.popleft() for _ in range(min(len(self._left), max(n, READ_AT_ONCE)))]
            for pair in read_pairs(session, ids):
                self._ask(pair)
        return [self._ready.popleft() for _ in range(min(n, len(self._ready)))]

    def _ask(self, pair: PairRow) -> None:
        wanted = self.book.missing(self.seat, pair.id)
        if wanted:
            self._open[pair.id] = pair, len(wanted)
            self._ready.extend(self._unit(pair, asked) for asked in wanted)

    def _unit(self, pair: PairRow, asked: Asked) -> Unit:
        asking = self.askings[asked.principle]
        keep = asking.kept if asking.is_by_log_probs else None
        return Unit(
            asking.sha256(pair.text, asked.is_swapped), partial(_request, asking, pair, asked.is_swapped),
            partial(self._read, pair.id, asked), asked.sample, keep,
        )  # fmt: skip

    def _read(self, pair_id: int, asked: Asked, known: Known) -> Given:
        if known.failure:
            value = OpinionValue(asked.is_swapped, None, reason=known.failure)
        else:
            value = self.askings[asked.principle].read(known.raw, known.request, asked.is_swapped)
        return given(self.seat, pair_id, asked, value, known.call_id, known.is_truncated)

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be asked now."""
        return not (self._left or self._ready)

    @property
    def how_far(self) -> str:
        """How many pairs are done."""
        return f"{self.book.n_done} of {self.book.total} pairs have a verdict"

    def store(self, session: Session, found: list[Any]) -> Mapping[str, float]:
        """Stores opinions and verdicts; pairs whose votes have settled nothing yet are asked again."""
        labels = self.book.store(session, found)
        for one in found:
            pair, n = self._open[one.pair_id]
            if n > 1:
                self._open[one.pair_id] = pair, n - 1
                continue
            del self._open[one.pair_id]
            if self.book.is_open(one.pair_id):
                self._ask(pair)
        return labels

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """The bar, and stopping early where the labels would mean nothing."""
        self.book.progress(f"{n_in_flight} calls in flight, ${spent_usd:.4f}")
        self.book.check_shares()


def _request(asking: Asking, pair: PairRow, is_swapped: bool) -> tuple[Body, dict[str, Any]]:
    known, body = asking.request(pair.text, is_swapped)
    return body, {"nonce": known.nonce}


def judge_by_endpoint(job: Job, book: VerdictBook, seat: Seat) -> None:
    """Every question of this judge, through the ledger."""
    askings = askings_of(job, book, seat)
    asking = next(iter(askings.values()))
    job.log(f"how the verdict is asked for: {asking.mode}")
    gc.freeze()  # what the libraries made stays anyway: looking through it again costs as much as a hundred calls
    ask_all_of(job, asking.target, PairWork(book, seat, askings), book.recipe)
