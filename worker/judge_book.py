"""What every kind of judge writes: opinions, the verdicts they add up to, counters and costs, each once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.constitutions.constitutions import freeze
from app.db import get, now, table_of
from app.errors import AppError
from app.judging.deciding import decide, still_missing
from app.judging.judges import free_name, freeze_judge
from app.judging.material import chunks, unjudged
from app.judging.models import Call, Judge, Opinion, Verdict, VerdictSet
from app.judging.protocol import FIELDS, N_CUT, Asked, Seat, read_protocol
from app.judging.recipes import JudgeRecipe, members_of
from app.judging.verdicts import OpinionValue, VerdictValue
from app.pairs.models import Completion, Pair, PairSet
from worker.job import Job
from worker.ledger import add_cost
from worker.prepared import Prepared

ENOUGH = 20  # verdicts after which a share is worth stopping for
SAME = "a and b are the same text: not asked"
NO_VOTES = {"a": 0, "b": 0, "tie": 0, "null": 0}
# Statements of every turn of the call ledger: made once, and past the mapper.
OPINIONS, VERDICTS, SETS = map(table_of, (Opinion, Verdict, VerdictSet))
OPINION = ("verdict_set_id", "pair_id", "judge_id", "sample", "principle", "is_swapped", "call_id", "choice", "p_a",
           "by_principle", "reason")  # fmt: skip
VERDICT = ("verdict_set_id", "pair_id", *(one.name for one in fields(VerdictValue)))
COUNTERS = ("n_a", "n_b", "n_tie", "n_null", "n_flip")
COUNT = (
    sa.update(SETS)
    .where(SETS.c.id == sa.bindparam("set"))
    .values({name: SETS.c[name] + sa.bindparam(f"more_{name}", type_=sa.Integer()) for name in COUNTERS})
)


@dataclass(frozen=True)
class Given:
    """An opinion on its way to the database."""

    pair_id: int
    value: OpinionValue
    call_id: int | None = None
    is_truncated: bool = False


def given(
    seat: Seat, pair_id: int, asked: Asked, value: OpinionValue, call_id: int | None = None, is_truncated: bool = False
) -> Given:
    """An opinion as the answer to what was asked of this judge."""
    value = replace(value, judge_id=seat.judge_id, sample=asked.sample, principle=asked.principle)
    return Given(pair_id, value, call_id, is_truncated)


class VerdictBook:
    """One verdict set of a run. `store` is called within the write that also holds what paid for the opinions."""

    def __init__(self, job: Job, recipe: JudgeRecipe, judge: Judge, *, name: str = "", is_hidden: bool = False) -> None:
        self.job, self.recipe, self.judge, self.is_hidden = job, recipe, judge, is_hidden
        with job.read() as session:
            self.protocol = read_protocol(session, judge, recipe.model_dump(), recipe.constitution)
        self.n_null = self.n_truncated = self.n_opinions = 0
        with job.write() as session:
            dialect = session.get_bind().dialect
            self._add_opinions = Prepared(sa.insert(OPINIONS), OPINION, dialect)
            self._add_verdicts = Prepared(sa.insert(VERDICTS), VERDICT, dialect)
            self._add_counts = Prepared(COUNT, ("set", *(f"more_{name}" for name in COUNTERS)), dialect)
            self.set_id = self._open(session, name)
            n_forgotten = self._forget_failures(session)
        with job.read() as session:
            seed = recipe.seed if recipe.draw == "random" else None
            self.to_do = unjudged(session, recipe.pair_set, self.set_id, recipe.limit, seed)
            row = get(session, VerdictSet, self.set_id)
            self.n_done, self.n_null = row.n, row.n_null
            self.partial = self._read_partial(session)
        self.total = self.n_done + len(self.to_do)
        if n_forgotten:
            job.log(f"{n_forgotten} pairs whose calls had failed are asked again")
        if recipe.identical == "tie":
            self._tie_identical()

    def _open(self, session: Session, name: str) -> int:
        """The run's verdict set of these pairs: found when an earlier attempt made it."""
        same = VerdictSet.run_id == self.job.run_id, VerdictSet.pair_set_id == self.recipe.pair_set
        row = session.exec(select(VerdictSet).where(*same)).first()
        if row is not None:
            return row.id
        pairs = get(session, PairSet, self.recipe.pair_set)
        wanted = name or self.recipe.name or f"{self.judge.name} on {pairs.name}"
        is_both = any(len(seat.orders) > 1 for seat in self.protocol.seats)
        row = VerdictSet(
            project_id=self.job.project_id, name=free_name(session, VerdictSet, self.job.project_id, wanted),
            pair_set_id=pairs.id, judge_id=self.judge.id, run_id=self.job.run_id,
            constitution_id=self.recipe.constitution, archived_at=now() if self.is_hidden else None,
            protocol=self.recipe.model_dump(include=set(FIELDS)) | {"is_both_orders": is_both},
        )  # fmt: skip
        session.add(row)
        session.flush()
        judge = get(session, Judge, self.judge.id)
        for one in (judge, *members_of(session, judge)):
            freeze_judge(session, one)
        if self.recipe.constitution is not None:
            freeze(session, self.recipe.constitution)
        if not self.is_hidden:
            self.job.made(session, "verdict_set", row.id)
        return row.id

    def _tie_identical(self) -> None:
        """A verdict without a question for pairs whose sides are the same text."""
        a, b = aliased(Completion), aliased(Completion)
        value = VerdictValue("tie", SAME, votes=NO_VOTES)
        tied: set[int] = set()
        for ids in chunks(list(self.to_do)):
            query = (
                sa.select(col(Pair.id))
                .join(a, col(a.id) == col(Pair.a_id))
                .join(b, col(b.id) == col(Pair.b_id))
                .where(col(Pair.id).in_(ids), col(a.text) == col(b.text))
            )
            with self.job.write() as session:
                same = [key for key in session.execute(query).scalars() if key not in self.partial]
                add_cost(session, self.job.run_id, **self._write_verdicts(session, [(key, value) for key in same]))
            tied.update(same)
        self.to_do = [key for key in self.to_do if key not in tied]

    def _forget_failures(self, session: Session) -> int:
        """A call that got no answer is no reading: a resumed run asks again, also where other votes decided without."""
        failed = (
            sa.select(col(Opinion.pair_id))
            .join(Call, col(Call.id) == col(Opinion.call_id))
            .where(col(Opinion.verdict_set_id) == self.set_id, col(Call.state) == "failed")
        )
        pairs = sorted(set(session.execute(failed).scalars()))
        if not pairs:
            return 0
        of_set = col(Verdict.verdict_set_id) == self.set_id, col(Verdict.pair_id).in_(pairs)
        counts: Counter[str] = Counter()
        for outcome, is_flip in session.execute(sa.select(col(Verdict.outcome), col(Verdict.is_flip)).where(*of_set)):
            counts[f"n_{outcome or 'null'}"] -= 1
            counts["n_flip"] -= is_flip
        for kind in (Verdict, Opinion):
            mine = sa.delete(kind).where(col(kind.verdict_set_id) == self.set_id, col(kind.pair_id).in_(pairs))
            session.execute(mine)
        self._count(session, **counts)
        if not self.is_hidden:
            add_cost(session, self.job.run_id, labels=counts["n_a"] + counts["n_b"] + counts["n_tie"])
        return len(pairs)

    def _read_partial(self, session: Session) -> dict[int, list[OpinionValue]]:
        """Opinions of pairs that are not finished."""
        found: dict[int, list[OpinionValue]] = defaultdict(list)
        done = sa.select(col(Verdict.pair_id)).where(col(Verdict.verdict_set_id) == self.set_id)
        query = select(Opinion).where(Opinion.verdict_set_id == self.set_id, col(Opinion.pair_id).not_in(done))
        for row in session.exec(query):
            found[row.pair_id].append(value_of(row))
        return found

    def missing(self, seat: Seat, pair_id: int) -> list[Asked]:
        """What is to be asked of this judge next, of a pair that has no verdict yet."""
        return still_missing(self.protocol, seat, self.partial.get(pair_id, ()))

    def is_open(self, pair_id: int) -> bool:
        """Whether a pair has opinions and no verdict yet."""
        return pair_id in self.partial

    def store(self, session: Session, found: Sequence[Given]) -> dict[str, int]:
        """Writes opinions, and the verdict of each pair that now has all it needs; gives how many labels that makes,
        for the run's cost."""
        if not found:
            return {}
        rows = [
            {
                "verdict_set_id": self.set_id, "pair_id": one.pair_id, "judge_id": one.value.judge_id,
                "sample": one.value.sample, "principle": one.value.principle, "is_swapped": one.value.is_swapped,
                "call_id": one.call_id, "choice": one.value.choice, "p_a": one.value.p_a,
                "by_principle": dict(one.value.by_principle), "reason": one.value.reason,
            }
            for one in found
        ]  # fmt: skip
        self._add_opinions.run(session, rows)
        self.n_opinions += len(found)
        if n_cut := sum(one.is_truncated for one in found):
            self._note_cut(session, n_cut)
        for one in found:
            self.partial.setdefault(one.pair_id, []).append(one.value)
        return self._store_verdicts(session, dict.fromkeys(one.pair_id for one in found))

    def _note_cut(self, session: Session, n: int) -> None:
        """Adds to the readings that were cut, which the set's page and a Judge Card say afterwards."""
        self.n_truncated += n
        row = get(session, VerdictSet, self.set_id)
        row.protocol = {**row.protocol, N_CUT: row.protocol.get(N_CUT, 0) + n}
        session.add(row)

    def _store_verdicts(self, session: Session, pair_ids: Iterable[int]) -> dict[str, int]:
        complete = [key for key in pair_ids if not any(self.missing(seat, key) for seat in self.protocol.seats)]
        return self._write_verdicts(session, [(key, decide(self.protocol, self.partial.pop(key))) for key in complete])

    def _write_verdicts(self, session: Session, decided: Sequence[tuple[int, VerdictValue]]) -> dict[str, int]:
        if not decided:
            return {}
        counts: Counter[str] = Counter()
        for _, value in decided:
            counts[f"n_{value.outcome or 'null'}"] += 1
            counts["n_flip"] += value.is_flip
        rows: list[dict[str, Any]] = [
            {"verdict_set_id": self.set_id, "pair_id": pair_id, **vars(value)} for pair_id, value in decided
        ]
        self._add_verdicts.run(session, rows)
        self._count(session, **counts)
        self.n_done += len(rows)
        self.n_null += counts["n_null"]
        return {} if self.is_hidden else {"labels": len(rows) - counts["n_null"]}

    def _count(self, session: Session, **changes: int) -> None:
        more = {f"more_{name}": changes.get(name, 0) for name in COUNTERS}
        self._add_counts.run(session, [{"set": self.set_id, **more}])

    def progress(self, note: str = "") -> None:
        """Moves the bar."""
        self.job.progress(self.n_done, self.total, note)

    def check_shares(self, is_end: bool = False) -> None:
        """Raises AppError when too much is unreadable or truncated for the labels to mean anything."""
        if self.n_done < ENOUGH and not is_end:
            return
        null_share = self.n_null / self.n_done if self.n_done else 0
        if null_share > self.recipe.max_null:
            raise AppError(
                f"{self.n_null} of {self.n_done} verdicts are unreadable ({null_share:.0%}), more than the "
                f"{self.recipe.max_null:.0%} this run allows. The verdict set's page lists the reasons; try the judge "
                "on 10 pairs, or allow a larger share."
            )
        cut_share = self.n_truncated / self.n_opinions if self.n_opinions else 0
        if cut_share > self.recipe.max_truncated:
            raise AppError(
                f"{self.n_truncated} of {self.n_opinions} readings were truncated ({cut_share:.0%}), more than the "
                f"{self.recipe.max_truncated:.0%} this run allows: choose shorter pairs, a judge with a longer "
                "context, more tokens for its answer, or allow a larger share."
            )


def value_of(row: Opinion) -> OpinionValue:
    """A stored opinion as it is added up."""
    return OpinionValue(
        row.is_swapped, row.choice, row.p_a, row.by_principle, row.reason, row.sample, row.principle, row.judge_id
    )
