"""Judging over HTTP. Every call is a row before it leaves; its answer is stored with all that follows from it at once.

Answers are kept by the hash of what was asked, so that judging the same again makes no call. A call that was sent and
whose answer nobody saw (the process died) is `unknown` and is asked again: the only calls ever paid for twice.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from app.checkpoints.chat import Body, ChatAnswer
from app.checkpoints.endpoints import target_of
from app.db import now
from app.errors import AppError
from app.judging.asking import Asking
from app.judging.judges import endpoint_of
from app.judging.material import PairRow, read_guide, read_pairs
from app.judging.models import Call, CallText
from app.judging.verdicts import OpinionValue
from app.runs.models import Run
from worker.endpoint import EndpointCalls
from worker.job import Job
from worker.judge_book import Given, VerdictBook

CACHED_AT_ONCE = 256  # units looked at in one transaction, most of which may need no call


@dataclass
class InFlight:
    """A call on its way: its row, what was asked, and the units its answer is for."""

    call_id: int
    request: dict[str, Any]
    units: "list[Unit]"


@dataclass(frozen=True)
class Unit:
    """One pair in one order, and the key of its call."""

    pair: PairRow
    is_swapped: bool
    sha256: str


def asking_of(job: Job, book: VerdictBook) -> Asking:
    """The judge's endpoint and the recipe's constitution as requests and readings."""
    recipe = job.recipe
    with job.read() as session:
        target = target_of(endpoint_of(session, book.judge))
        guide = read_guide(session, recipe.constitution)
    return Asking(
        target, guide, with_reason=recipe.with_reason, temperature=recipe.temperature, max_tokens=recipe.max_tokens
    )


class Ledger:
    """The calls of one run: intents, answers, and what is already known."""

    def __init__(self, job: Job, book: VerdictBook, asking: Asking) -> None:
        self.job, self.book, self.asking = job, book, asking
        self.spent_usd = 0.0
        self.is_exhausted = False
        self._waiting: deque[Unit] = deque()  # another run is asking just this: wait for its answer
        self._left = deque(book.to_do)
        self._ready: deque[Unit] = deque()
        self.in_flight: dict[str, InFlight] = {}  # by request hash
        with job.write() as session:
            lost = session.execute(
                sa.update(Call)
                .where(col(Call.run_id) == job.run_id, col(Call.state) == "intent")
                .values(state="unknown")
            )
            paid = select(sa.func.coalesce(sa.func.sum(Call.cost_usd), 0.0)).where(Call.run_id == job.run_id)
            self.spent_usd = float(session.exec(paid).one())
        if lost.rowcount:  # type: ignore[attr-defined]
            job.log(f"{lost.rowcount} calls had left and nobody saw their answers: asked again")  # type: ignore[attr-defined]

    @property
    def is_over_budget(self) -> bool:
        """Whether no further call may leave."""
        budget = self.job.recipe.budget_usd
        return budget is not None and self.spent_usd >= budget

    def take(self, session: Session, room: int) -> tuple[list[tuple[str, Body]], list[Given]]:
        """Up to `room` new intents to send after the commit, and opinions from answers that are already known."""
        fresh: dict[str, list[Unit]] = {}
        given: list[Given] = []
        if self.is_over_budget:
            return [], given
        n_seen, again = 0, len(self._waiting)
        while n_seen < CACHED_AT_ONCE and len(fresh) < room:
            batch = self._next_units(session, room - len(fresh), again)
            again -= min(again, len(batch))
            if not batch:
                break
            n_seen += len(batch)
            known = self._known(session, [unit.sha256 for unit in batch])
            for unit in batch:
                self._sort(unit, known.get(unit.sha256), fresh, given)
        return self._write_intents(session, fresh), given

    def _next_units(self, session: Session, n: int, again: int) -> list[Unit]:
        """The next units: first those that waited for another run's answer, then the pairs in order."""
        if again:
            return [self._waiting.popleft() for _ in range(min(n, again))]
        while len(self._ready) < n and self._left:
            ids = [self._left.popleft() for _ in range(min(len(self._left), max(n, 32)))]
            for pair in read_pairs(session, ids):
                for order in self.book.missing_orders(pair.id):
                    self._ready.append(Unit(pair, order, self.asking.sha256(pair.text, order)))
        return [self._ready.popleft() for _ in range(min(n, len(self._ready)))]

    def _known(self, session: Session, keys: Sequence[str]) -> dict[str, Any]:
        entities: list[Any] = [Call, CallText, Run.status]
        query = (
            sa.select(*entities)
            .select_from(Call)
            .join(CallText, col(CallText.call_id) == col(Call.id))
            .join(Run, col(Run.id) == col(Call.run_id))
            .where(
                col(Call.project_id) == self.job.project_id, col(Call.request_sha256).in_(keys), col(Call.sample) == 0
            )
        )
        return {row[0].request_sha256: row for row in session.execute(query)}

    def _sort(self, unit: Unit, row: Any, fresh: dict[str, list[Unit]], given: list[Given]) -> None:
        """One unit: known already, on its way already, asked by another run just now, or to be asked."""
        if row is not None and row[0].state == "answered":
            request = row[1].request
            given.append(self._read(unit, row[0].id, row[1].raw, request))
        elif unit.sha256 in self.in_flight:
            self.in_flight[unit.sha256].units.append(unit)
        elif row is not None and row[0].state == "intent" and row[0].run_id != self.job.run_id and row[2] == "running":
            self._waiting.append(unit)
        else:
            fresh.setdefault(unit.sha256, []).append(unit)

    def _write_intents(self, session: Session, fresh: dict[str, list[Unit]]) -> list[tuple[str, Body]]:
        """A row for each call before it leaves. One that another run has just inserted is left to that run."""
        if not fresh:
            return []
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        mine = {"run_id": self.job.run_id, "state": "intent", "sent_at": now(), "failure": "", "tries": 0}
        rows = [
            {"project_id": self.job.project_id, "request_sha256": key, "sample": 0, "tokens_in": 0, "tokens_out": 0,
             "cost_usd": 0.0, **mine}
            for key in fresh
        ]  # fmt: skip
        statement = insert(Call).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=["project_id", "request_sha256", "sample"], set_=mine,
            where=sa.or_(
                col(Call.state).in_(["failed", "unknown"]),
                sa.and_(col(Call.state) == "intent", col(Call.run_id).not_in(_live_runs(self.job.run_id))),
            ),
        )  # fmt: skip
        ids = {key: call for call, key in session.execute(statement.returning(col(Call.id), col(Call.request_sha256)))}
        session.execute(sa.delete(CallText).where(col(CallText.call_id).in_(list(ids.values()))))
        to_send, texts = [], []
        for key, units in fresh.items():
            if key not in ids:
                self._waiting.extend(units)
                continue
            known, body = self.asking.request(units[0].pair.text, units[0].is_swapped)
            request = {"nonce": known.nonce, "body": body, "stop_reason": ""}
            texts.append({"call_id": ids[key], "request": request, "raw": ""})
            self.in_flight[key] = InFlight(ids[key], request, units)
            to_send.append((key, body))
        if texts:
            session.execute(sa.insert(CallText), texts)
        return to_send

    def settle(self, session: Session, arrived: Sequence[tuple[str, ChatAnswer]]) -> list[Given]:
        """Stores answers and failures, and gives the opinions they are."""
        given: list[Given] = []
        calls, texts = [], []
        for key, answer in arrived:
            asked = self.in_flight.pop(key)
            self.spent_usd += answer.cost_usd
            calls.append({
                "id": asked.call_id, "state": "failed" if answer.failure else "answered", "tries": answer.tries,
                "failure": answer.failure[:300], "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out,
                "cost_usd": answer.cost_usd, "answered_at": now(),
            })  # fmt: skip
            if not answer.failure:
                asked.request["stop_reason"] = answer.stop_reason
                texts.append({"call_id": asked.call_id, "request": asked.request, "raw": answer.text})
            given += self._opinions(asked, answer)
        if calls:
            session.execute(sa.update(Call), calls)
        if texts:
            session.execute(sa.update(CallText), texts)
        return given

    def _opinions(self, asked: InFlight, answer: ChatAnswer) -> list[Given]:
        if answer.is_fatal:
            return []  # not this pair's failure: the run stops, and a resumed one asks again
        if answer.failure:
            reason = f"no answer after {answer.tries} tries: {answer.failure}"
            return [
                Given(u.pair.id, OpinionValue(u.is_swapped, None, reason=reason), asked.call_id) for u in asked.units
            ]
        return [self._read(unit, asked.call_id, answer.text, asked.request) for unit in asked.units]

    def _read(self, unit: Unit, call_id: int, raw: str, request: dict[str, Any]) -> Given:
        value = self.asking.read(raw, request["nonce"], unit.is_swapped, request["stop_reason"])
        return Given(unit.pair.id, value, call_id, request["stop_reason"] == "length")

    @property
    def is_empty(self) -> bool:
        """Whether every unit has been asked or was known."""
        return not (self._left or self._ready or self._waiting)

    @property
    def is_only_waiting(self) -> bool:
        """Whether all that is left is being asked by another run."""
        return bool(self._waiting) and not (self._left or self._ready or self.in_flight)


def _live_runs(but: int) -> sa.Select[Any]:
    return sa.select(col(Run.id)).where(col(Run.status) == "running", col(Run.id) != but)


def judge_by_endpoint(job: Job, book: VerdictBook) -> None:
    """Each turn is one transaction: what arrived with its opinions and verdicts, and the intents that then leave."""
    asking = asking_of(job, book)
    job.log(f"how the verdict is asked for: {asking.mode}")
    ledger = Ledger(job, book, asking)
    recipe = job.recipe
    limits = {"concurrency": recipe.concurrency, "max_tries": recipe.max_tries, "timeout_s": recipe.timeout_s}
    with EndpointCalls(asking.target, **limits) as calls:
        while ledger.in_flight or not ledger.is_empty:
            job.check()
            if ledger.is_only_waiting:
                time.sleep(0.3)
            arrived = calls.arrived() if ledger.in_flight else []
            room = recipe.concurrency - len(ledger.in_flight) + len(arrived)
            if ledger.in_flight and not arrived and (ledger.is_empty or ledger.is_over_budget or not room):
                continue
            with job.write() as session:
                given = ledger.settle(session, arrived)
                to_send, known = ledger.take(session, room)
                book.store(session, [*given, *known])
                _spend(session, book, [answer for _, answer in arrived])
            calls.send(to_send)
            book.progress(f"{len(ledger.in_flight)} calls in flight, ${ledger.spent_usd:.4f}")
            _stop_if_needed(book, ledger, [answer for _, answer in arrived])


def _spend(session: Session, book: VerdictBook, answers: Sequence[ChatAnswer]) -> None:
    if answers:
        book.spend(
            session, judge_calls=len(answers), usd=sum(one.cost_usd for one in answers),
            judge_tokens=sum(one.tokens_in + one.tokens_out for one in answers),
        )  # fmt: skip


def _stop_if_needed(book: VerdictBook, ledger: Ledger, answers: Sequence[ChatAnswer]) -> None:
    fatal = next((one.failure for one in answers if one.is_fatal), "")
    if fatal:
        raise AppError(f"The endpoint refuses every call: {fatal}. Put its address, model or key right, then resume.")
    if ledger.is_over_budget and not ledger.in_flight and not ledger.is_empty:
        raise AppError(
            f"The budget of ${book.recipe.budget_usd:g} is spent (${ledger.spent_usd:.4f}): {book.n_done} of "
            f"{book.total} pairs have a verdict. Run it again with a larger budget; no answer is paid for twice."
        )
    book.check_shares()
