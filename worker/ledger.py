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
from app.db import now, table_of
from app.errors import AppError
from app.judging.models import Call, CallText
from app.runs.models import Run
from worker.endpoint import EndpointCalls
from worker.job import Job
from worker.prepared import Prepared

CACHED_AT_ONCE = 256  # units looked at in one transaction, most of which may need no call

Key = tuple[str, int]  # request hash, sample
CostOf = Callable[[Sequence[ChatAnswer]], dict[str, float]]

# A turn's statements are made once and go past the mapper.
CALLS, TEXTS, RUNS = map(table_of, (Call, CallText, Run))
SETTLED = ("state", "tries", "failure", "tokens_in", "tokens_out", "cost_usd", "answered_at")
READ_COST = sa.select(RUNS.c.cost).where(RUNS.c.id == sa.bindparam("run"))
WRITE_COST = sa.update(RUNS).where(RUNS.c.id == sa.bindparam("run"))


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

    def store(self, session: Session, found: list[Any]) -> Mapping[str, float] | None:
        """Writes what the readers made of answers, within the transaction that holds the answers.

        May give what that adds to the run's cost beside the calls (labels, …).
        """

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """After each turn: the bar, and a reason to stop as an AppError."""


@dataclass(slots=True)
class InFlight:
    """A call on its way: its row, what was asked, and the units its answer is for."""

    call_id: int
    request: dict[str, Any]
    units: list[Unit]


@dataclass(frozen=True)
class Limits:
    """How to ask, for a run whose recipe says only what it may cost."""

    budget_usd: float | None = None
    concurrency: int = 32
    max_tries: int = 5
    timeout_s: float = 120


def judging_cost(answers: Sequence[ChatAnswer]) -> dict[str, float]:
    """What a judge's calls add to a run's cost."""
    tokens = sum(one.tokens_in + one.tokens_out for one in answers)
    return {"judge_calls": len(answers), "usd": sum(one.cost_usd for one in answers), "judge_tokens": tokens}


def writing_cost(answers: Sequence[ChatAnswer]) -> dict[str, float]:
    """What calls that write completions add to a run's cost."""
    return {**calls_cost(answers), "generated_tokens": sum(one.tokens_out for one in answers)}


def calls_cost(answers: Sequence[ChatAnswer]) -> dict[str, float]:
    """The same where the tokens are counted with the texts that are stored."""
    return {"generation_calls": len(answers), "usd": sum(one.cost_usd for one in answers)}


class Ledger:
    """The calls of one run: intents, answers, and what is already known."""

    def __init__(self, job: Job, work: Work, budget_usd: float | None, look_ahead: int) -> None:
        self.job, self.work, self.budget_usd, self.look_ahead = job, work, budget_usd, look_ahead
        self._ahead: deque[tuple[Unit, Any]] = deque()  # the next units, with what was known of each
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
            dialect = session.get_bind().dialect
        self._insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
        self._intend: dict[int, Prepared] = {}  # by how many calls
        self._keep = Prepared(_insert_texts(self._insert), ("call_id", "request", "raw"), dialect)
        by_id = sa.update(CALLS).where(CALLS.c.id == sa.bindparam("call"))
        self._settle = Prepared(
            by_id.values({name: sa.bindparam(name) for name in SETTLED}), (*SETTLED, "call"), dialect
        )
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
        self._look_up(session, [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))], is_first=True)
        n_seen = 0
        while n_seen < CACHED_AT_ONCE and len(fresh) < room:
            if not self._ahead:
                self._look_up(session, self.work.next_units(session, max(room - len(fresh), self.look_ahead)))
            if not self._ahead:
                break
            n_seen += 1
            self._sort(*self._ahead.popleft(), fresh, found)
        return self._write_intents(session, fresh), found

    def _look_up(self, session: Session, units: Sequence[Unit], is_first: bool = False) -> None:
        """Puts units before or behind the next ones, with what is known of each.

        That may be old by the time a unit's turn comes: the statement that writes the intents looks again.
        """
        if not units:
            return
        query = (
            sa.select(CALLS, TEXTS.c.raw, TEXTS.c.request, RUNS.c.status.label("run_status"))
            .join(RUNS, RUNS.c.id == CALLS.c.run_id)
            .outerjoin(TEXTS, TEXTS.c.call_id == CALLS.c.id)
            .where(
                CALLS.c.project_id == self.job.project_id,
                CALLS.c.request_sha256.in_({unit.sha256 for unit in units}),
                CALLS.c.sample.in_({unit.sample for unit in units}),
            )
        )
        known = {(row.request_sha256, row.sample): row for row in session.execute(query)}
        looked_up = [(unit, known.get(unit.key)) for unit in units]
        if is_first:
            self._ahead.extendleft(reversed(looked_up))
        else:
            self._ahead.extend(looked_up)

    def _sort(self, unit: Unit, row: Any, fresh: dict[Key, list[Unit]], found: list[Any]) -> None:
        """One unit: known already, on its way already, asked by another run just now, or to be asked."""
        if row is not None and row.state == "answered":
            found.append(unit.read(Known(row.id, row.raw, row.request)))
        elif unit.key in self.in_flight:
            self.in_flight[unit.key].units.append(unit)
        elif (
            row is not None and row.state == "intent" and row.run_id != self.job.run_id and row.run_status == "running"
        ):
            self._waiting.append(unit)
        else:
            fresh.setdefault(unit.key, []).append(unit)

    def _write_intents(self, session: Session, fresh: dict[Key, list[Unit]]) -> list[tuple[Key, Body]]:
        """A row for each call before it leaves. One that another run has just inserted is left to that run."""
        if not fresh:
            return []
        ids: dict[Key, int] = {}
        left, at = list(fresh), now()
        while left:  # in powers of two, so that there are few statements to compile
            n = 1 << (len(left).bit_length() - 1)
            some, left = left[:n], left[n:]
            if n not in self._intend:
                self._intend[n] = Prepared(*_insert_intents(self._insert, self.job, n), session.get_bind().dialect)
            given: dict[str, Any] = {f"request_sha256_{place}": sha256 for place, (sha256, _) in enumerate(some)}
            given |= {f"sample_{place}": sample for place, (_, sample) in enumerate(some)}
            rows = self._intend[n].read(session, {**given, "sent_at": at})
            ids |= {(sha256, sample): call for call, sha256, sample in rows}
        to_send = []
        for key, units in fresh.items():
            if key not in ids:
                self._waiting.extend(units)
                continue
            body, kept = units[0].make()
            self.in_flight[key] = InFlight(ids[key], {**kept, "body": body, "stop_reason": ""}, units)
            to_send.append((key, body))
        return to_send

    def settle(self, session: Session, arrived: Sequence[tuple[Key, ChatAnswer]]) -> list[Any]:
        """Stores answers and failures, and gives what their readers make of them."""
        if not arrived:
            return []
        found: list[Any] = []
        calls, texts, at = [], [], now()
        for key, answer in arrived:
            asked = self.in_flight.pop(key)
            self.spent_usd += answer.cost_usd
            calls.append({
                "call": asked.call_id, "state": "failed" if answer.failure else "answered", "tries": answer.tries,
                "failure": answer.failure[:300], "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out,
                "cost_usd": answer.cost_usd, "answered_at": at,
            })  # fmt: skip
            if not answer.failure:
                keep = asked.units[0].keep
                asked.request.update({"stop_reason": answer.stop_reason}, **(keep(answer) if keep else {}))
            texts.append({"call_id": asked.call_id, "request": asked.request, "raw": answer.text})
            found += _read_answer(asked, answer)
        self._settle.run(session, calls)
        self._keep.run(session, texts)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether every unit so far has been asked or was known."""
        return not self._ahead and not self._waiting and self.work.is_empty

    @property
    def is_only_waiting(self) -> bool:
        """Whether all that is left is being asked by another run."""
        return bool(self._waiting) and not self._ahead and not self.in_flight and self.work.is_empty


def _read_answer(asked: InFlight, answer: ChatAnswer) -> list[Any]:
    if answer.is_fatal:
        return []  # not this unit's failure: the run stops, and a resumed one asks again
    if answer.failure:
        end = Known(asked.call_id, failure=f"no answer after {answer.tries} tries: {answer.failure}")
    else:
        end = Known(asked.call_id, answer.text, asked.request)
    return [unit.read(end) for unit in asked.units]


def _insert_intents(insert: Any, job: Job, n: int) -> tuple[Any, list[str]]:
    """Rows for n calls, an unsuccessful one made ready again, and the names of what is bound. Returns the rows that are
    this run's to ask."""
    mine = {"project_id": job.project_id, "run_id": job.run_id, "state": "intent", "failure": "", "tries": 0,
            "tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}  # fmt: skip
    bound = {
        name: [sa.bindparam(f"{name}_{place}", type_=CALLS.c[name].type) for place in range(n)]
        for name in ("request_sha256", "sample")
    }
    sent_at = sa.bindparam("sent_at", type_=CALLS.c.sent_at.type)
    statement = insert(CALLS).values(
        [{**mine, "sent_at": sent_at, **{name: bound[name][place] for name in bound}} for place in range(n)]
    )
    live = sa.select(RUNS.c.id).where(RUNS.c.status == "running", RUNS.c.id != job.run_id)
    is_lost = sa.and_(CALLS.c.state == "intent", CALLS.c.run_id.not_in(live))
    statement = statement.on_conflict_do_update(
        index_elements=["project_id", "request_sha256", "sample"],
        set_={name: statement.excluded[name] for name in ("run_id", "state", "sent_at", "failure", "tries")},
        where=sa.or_(CALLS.c.state == "failed", CALLS.c.state == "unknown", is_lost),
    )
    names = [one.key for every in bound.values() for one in every]
    return statement.returning(CALLS.c.id, CALLS.c.request_sha256, CALLS.c.sample), [*names, "sent_at"]


def _insert_texts(insert: Any) -> Any:
    """What was asked and answered, in the place of what an earlier try of the same call left."""
    statement = insert(TEXTS)
    fresh = {name: statement.excluded[name] for name in ("request", "raw")}
    return statement.on_conflict_do_update(index_elements=["call_id"], set_=fresh)


def ask_all_of(job: Job, target: Target, work: Work, recipe: Any, cost_of: CostOf = judging_cost) -> None:
    """Asks until the work is empty. Raises AppError at the budget, at a lasting refusal, or as `work.after` does."""
    ledger = Ledger(job, work, recipe.budget_usd, look_ahead=recipe.concurrency)
    # Answers that come within a moment are stored together: one transaction each would be most of the work, and beyond
    # a few of them waiting saves little. No call leaves before its place is free in the ledger too, so what a crash may
    # cost again is never more than is allowed.
    at_once = max(1, min(4, recipe.concurrency // 8), recipe.concurrency // 32)
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
            calls.send(take_turn(ledger, arrived, room, cost_of))
            work.after(len(ledger.in_flight), ledger.spent_usd)
            _stop_if_needed(work, ledger, arrived)


def take_turn(
    ledger: Ledger, arrived: Sequence[tuple[Key, ChatAnswer]], room: int, cost_of: CostOf = judging_cost
) -> list[tuple[Key, Body]]:
    """One transaction: stores what arrived with all that follows from it, and gives the calls that may leave now."""
    with ledger.job.write() as session:
        settled = ledger.settle(session, arrived)
        to_send, known = ledger.take(session, room)
        more = ledger.work.store(session, [*settled, *known]) or {}
        spent = cost_of([answer for _, answer in arrived]) if arrived else {}
        add_cost(session, ledger.job.run_id, **spent, **more)
    return to_send


def add_cost(session: Session, run_id: int, **amounts: float) -> None:
    """Adds to a run's cost within the same transaction as what was paid for."""
    if amounts:
        cost = session.execute(READ_COST, {"run": run_id}).scalar_one()
        cost = {**cost, **{name: cost.get(name, 0) + value for name, value in amounts.items()}}
        session.execute(WRITE_COST, {"run": run_id, "cost": cost})


def _stop_if_needed(work: Work, ledger: Ledger, arrived: Sequence[tuple[Key, ChatAnswer]]) -> None:
    fatal = next((answer.failure for _, answer in arrived if answer.is_fatal), "")
    if fatal:
        raise AppError(f"The endpoint refuses every call: {fatal}. Put its address, model or key right, then resume.")
    if ledger.is_over_budget and not ledger.in_flight and not ledger.is_empty:
        raise AppError(
            f"The budget of ${ledger.budget_usd:g} is spent (${ledger.spent_usd:.4f}): {work.how_far}. "
            "Run it again with a larger budget; no answer is paid for twice."
        )
