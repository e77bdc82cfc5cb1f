"""The call ledger: every call is a row before it leaves; its answer is stored with all that follows from it at once.

Answers are kept by the hash of what was asked (and the number of the sample), so that asking the same again makes no
call. A call that was sent and whose answer nobody saw (the process died) is `unknown` and is asked again: the only
calls ever paid for twice.

How to use it: write a `Work` that hands out `Unit`s and stores what their readers make of the answers, then

    ask_all_of(job, target, work, recipe)

`recipe` has concurrency, max_tries, timeout_s and budget_usd. Each turn is ONE transaction: what arrived, what
`Work.store` writes of it, and the rows of the calls that then leave. What `Work.store` gets may make new units.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from app.checkpoints.chat import Body, ChatAnswer, Target
from app.db import get, now
from app.errors import AppError
from app.judging.models import Call, CallText
from app.runs.models import Run
from worker.endpoint import EndpointCalls
from worker.job import Job

CACHED_AT_ONCE = 256  # units looked at in one transaction, most of which may need no call
Key = tuple[str, int]  # request hash, sample


@dataclass(frozen=True, slots=True)
class Known:
    """The end of a call as its reader gets it: the raw answer with what was kept of its request, or the failure."""

    call_id: int
    raw: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""  # why there is no answer

    @property
    def is_truncated(self) -> bool:
        """Whether the answer was cut off at its token limit."""
        return bool(self.request.get("stop_reason") == "length")


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to ask. Units with the same hash and sample share one call."""

    sha256: str
    make: Callable[[], tuple[Body, dict[str, Any]]]  # the request's body, and what reading needs (a nonce, …)
    read: Callable[[Known], Any]  # what `Work.store` gets
    sample: int = 0
    keep: Callable[[ChatAnswer], dict[str, Any]] | None = None  # more of the answer that reading needs

    @property
    def key(self) -> Key:
        """What an answer is known by."""
        return self.sha256, self.sample


class Work(Protocol):
    """What is asked, and what becomes of the answers."""

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """At most about `n` units that can be asked now."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask now (answers on their way may still bring more)."""

    @property
    def how_far(self) -> str:
        """For messages: “12 of 40 pairs have a verdict”."""

    def store(self, session: Session, found: list[Any]) -> None:
        """Writes what the readers made of answers, within the transaction that holds the answers."""

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """After each turn: the bar, and a reason to stop as an AppError."""


@dataclass(slots=True)
class InFlight:
    """A call on its way: its row, what was asked, and the units its answer is for."""

    call_id: int
    request: dict[str, Any]
    units: list[Unit]


class Ledger:
    """The calls of one run: intents, answers, and what is already known."""

    def __init__(self, job: Job, work: Work, budget_usd: float | None) -> None:
        self.job, self.work, self.budget_usd = job, work, budget_usd
        self._waiting: deque[Unit] = deque()  # another run is asking just this: wait for its answer
        self.in_flight: dict[Key, InFlight] = {}
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
        return self.budget_usd is not None and self.spent_usd >= self.budget_usd

    def take(self, session: Session, room: int) -> tuple[list[tuple[Key, Body]], list[Any]]:
        """Up to `room` new intents to send after the commit, and readings of answers that are already known."""
        fresh: dict[Key, list[Unit]] = {}
        found: list[Any] = []
        if self.is_over_budget:
            return [], found
        n_seen, again = 0, len(self._waiting)
        while n_seen < CACHED_AT_ONCE and len(fresh) < room:
            n = room - len(fresh)
            if again:
                batch = [self._waiting.popleft() for _ in range(min(n, again))]
            else:
                batch = self.work.next_units(session, n)
            again -= min(again, len(batch))
            if not batch:
                break
            n_seen += len(batch)
            known = self._known(session, batch)
            for unit in batch:
                self._sort(unit, known.get(unit.key), fresh, found)
        return self._write_intents(session, fresh), found

    def _known(self, session: Session, units: Sequence[Unit]) -> dict[Key, Any]:
        entities: list[Any] = [Call, CallText, Run.status]
        query = (
            sa.select(*entities)
            .select_from(Call)
            .join(CallText, col(CallText.call_id) == col(Call.id))
            .join(Run, col(Run.id) == col(Call.run_id))
            .where(
                col(Call.project_id) == self.job.project_id,
                col(Call.request_sha256).in_({unit.sha256 for unit in units}),
                col(Call.sample).in_({unit.sample for unit in units}),
            )
        )
        return {(row[0].request_sha256, row[0].sample): row for row in session.execute(query)}

    def _sort(self, unit: Unit, row: Any, fresh: dict[Key, list[Unit]], found: list[Any]) -> None:
        """One unit: known already, on its way already, asked by another run just now, or to be asked."""
        if row is not None and row[0].state == "answered":
            found.append(unit.read(Known(row[0].id, row[1].raw, row[1].request)))
        elif unit.key in self.in_flight:
            self.in_flight[unit.key].units.append(unit)
        elif row is not None and row[0].state == "intent" and row[0].run_id != self.job.run_id and row[2] == "running":
            self._waiting.append(unit)
        else:
            fresh.setdefault(unit.key, []).append(unit)

    def _write_intents(self, session: Session, fresh: dict[Key, list[Unit]]) -> list[tuple[Key, Body]]:
        """A row for each call before it leaves. One that another run has just inserted is left to that run."""
        if not fresh:
            return []
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        mine = {"run_id": self.job.run_id, "state": "intent", "sent_at": now(), "failure": "", "tries": 0}
        rows = [
            {"project_id": self.job.project_id, "request_sha256": sha256, "sample": sample, "tokens_in": 0,
             "tokens_out": 0, "cost_usd": 0.0, **mine}
            for sha256, sample in fresh
        ]  # fmt: skip
        statement = insert(Call).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=["project_id", "request_sha256", "sample"], set_=mine,
            where=sa.or_(
                col(Call.state).in_(["failed", "unknown"]),
                sa.and_(col(Call.state) == "intent", col(Call.run_id).not_in(_live_runs(self.job.run_id))),
            ),
        )  # fmt: skip
        written = session.execute(statement.returning(col(Call.id), col(Call.request_sha256), col(Call.sample)))
        ids = {(sha256, sample): call for call, sha256, sample in written}
        session.execute(sa.delete(CallText).where(col(CallText.call_id).in_(list(ids.values()))))
        to_send, texts = [], []
        for key, units in fresh.items():
            if key not in ids:
                self._waiting.extend(units)
                continue
            body, kept = units[0].make()
            request = {**kept, "body": body, "stop_reason": ""}
            texts.append({"call_id": ids[key], "request": request, "raw": ""})
            self.in_flight[key] = InFlight(ids[key], request, units)
            to_send.append((key, body))
        if texts:
            session.execute(sa.insert(CallText), texts)
        return to_send

    def settle(self, session: Session, arrived: Sequence[tuple[Key, ChatAnswer]]) -> list[Any]:
        """Stores answers and failures, and gives what their readers make of them."""
        found: list[Any] = []
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
                keep = asked.units[0].keep
                asked.request.update({"stop_reason": answer.stop_reason}, **(keep(answer) if keep else {}))
                texts.append({"call_id": asked.call_id, "request": asked.request, "raw": answer.text})
            found += _read_answer(asked, answer)
        if calls:
            session.execute(sa.update(Call), calls)
        if texts:
            session.execute(sa.update(CallText), texts)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether every unit so far has been asked or was known."""
        return not self._waiting and self.work.is_empty

    @property
    def is_only_waiting(self) -> bool:
        """Whether all that is left is being asked by another run."""
        return bool(self._waiting) and not self.in_flight and self.work.is_empty


def _read_answer(asked: InFlight, answer: ChatAnswer) -> list[Any]:
    if answer.is_fatal:
        return []  # not this unit's failure: the run stops, and a resumed one asks again
    if answer.failure:
        end = Known(asked.call_id, failure=f"no answer after {answer.tries} tries: {answer.failure}")
    else:
        end = Known(asked.call_id, answer.text, asked.request)
    return [unit.read(end) for unit in asked.units]


def _live_runs(but: int) -> sa.Select[Any]:
    return sa.select(col(Run.id)).where(col(Run.status) == "running", col(Run.id) != but)


def ask_all_of(job: Job, target: Target, work: Work, recipe: Any) -> None:
    """Asks until the work is empty. Raises AppError at the budget, at a lasting refusal, or as `work.after` does."""
    ledger = Ledger(job, work, recipe.budget_usd)
    # Answers that come within a moment are stored together: one transaction each would be most of the work. No call
    # leaves before its place is free in the ledger too, so what a crash may cost again is never more than is allowed.
    at_once = max(1, recipe.concurrency // 16)
    limits = {"concurrency": recipe.concurrency, "max_tries": recipe.max_tries, "timeout_s": recipe.timeout_s}
    with EndpointCalls(target, **limits) as calls:
        while ledger.in_flight or not ledger.is_empty:
            job.check()
            if ledger.is_only_waiting:
                time.sleep(0.3)
            arrived = calls.arrived(at_least=min(at_once, len(ledger.in_flight))) if ledger.in_flight else []
            room = recipe.concurrency - len(ledger.in_flight) + len(arrived)
            if ledger.in_flight and not arrived and (ledger.is_empty or ledger.is_over_budget or not room):
                continue
            answers = [answer for _, answer in arrived]
            with job.write() as session:
                settled = ledger.settle(session, arrived)
                to_send, known = ledger.take(session, room)
                work.store(session, [*settled, *known])
                _spend(session, job, answers)
            calls.send(to_send)
            work.after(len(ledger.in_flight), ledger.spent_usd)
            _stop_if_needed(work, ledger, answers)


def _spend(session: Session, job: Job, answers: Sequence[ChatAnswer]) -> None:
    if answers:
        add_cost(
            session, job.run_id, judge_calls=len(answers), usd=sum(one.cost_usd for one in answers),
            judge_tokens=sum(one.tokens_in + one.tokens_out for one in answers),
        )  # fmt: skip


def add_cost(session: Session, run_id: int, **amounts: float) -> None:
    """Adds to a run's cost within the same transaction as what was paid for."""
    run = get(session, Run, run_id)
    run.cost = {**run.cost, **{name: run.cost.get(name, 0) + value for name, value in amounts.items()}}


def _stop_if_needed(work: Work, ledger: Ledger, answers: Sequence[ChatAnswer]) -> None:
    fatal = next((one.failure for one in answers if one.is_fatal), "")
    if fatal:
        raise AppError(f"The endpoint refuses every call: {fatal}. Put its address, model or key right, then resume.")
    if ledger.is_over_budget and not ledger.in_flight and not ledger.is_empty:
        raise AppError(
            f"The budget of ${ledger.budget_usd:g} is spent (${ledger.spent_usd:.4f}): {work.how_far}. "
            "Run it again with a larger budget; no answer is paid for twice."
        )
