"""What every kind of judge writes: opinions, the verdicts they add up to, counters and costs, each once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.constitutions.constitutions import freeze
from app.db import get
from app.errors import AppError
from app.judging.judges import free_name, freeze_judge
from app.judging.material import unjudged
from app.judging.models import Call, Judge, Opinion, Verdict, VerdictSet
from app.judging.recipes import JudgeRecipe
from app.judging.verdicts import OpinionValue, add_up
from app.pairs.models import PairSet
from app.runs.models import Run
from worker.job import Job

ENOUGH = 20  # verdicts after which a share is worth stopping for


@dataclass(frozen=True)
class Given:
    """An opinion on its way to the database."""

    pair_id: int
    value: OpinionValue
    call_id: int | None = None
    is_truncated: bool = False


class VerdictBook:
    """One run's verdict set. `store` is called within the write that also holds what paid for the opinions."""

    def __init__(self, job: Job, recipe: JudgeRecipe, judge: Judge) -> None:
        self.job, self.recipe, self.judge = job, recipe, judge
        self.orders = (False, True) if recipe.is_both_orders and judge.kind in {"endpoint", "checkpoint"} else (False,)
        self.n_null = self.n_truncated = self.n_opinions = 0
        with job.write() as session:
            self.set_id = self._open(session)
            n_forgotten = self._forget_failures(session)
        with job.read() as session:
            self.to_do = unjudged(session, recipe.pair_set, self.set_id, recipe.limit)
            row = get(session, VerdictSet, self.set_id)
            self.n_done, self.n_null = row.n, row.n_null
            self.partial = self._read_partial(session)
        self.total = self.n_done + len(self.to_do)
        if n_forgotten:
            job.log(f"{n_forgotten} pairs whose calls had failed are asked again")

    def _open(self, session: Session) -> int:
        """The run's verdict set: found when an earlier attempt made it."""
        row = session.exec(select(VerdictSet).where(VerdictSet.run_id == self.job.run_id)).first()
        if row is not None:
            return row.id
        pairs = get(session, PairSet, self.recipe.pair_set)
        wanted = self.recipe.name or f"{self.judge.name} on {pairs.name}"
        row = VerdictSet(
            project_id=self.job.project_id, name=free_name(session, VerdictSet, self.job.project_id, wanted),
            pair_set_id=pairs.id, judge_id=self.judge.id, run_id=self.job.run_id,
            constitution_id=self.recipe.constitution,
            protocol=self.recipe.model_dump(include={"with_reason", "temperature", "max_tokens", "seed"})
            | {"is_both_orders": len(self.orders) > 1},
        )  # fmt: skip
        session.add(row)
        session.flush()
        freeze_judge(session, get(session, Judge, self.judge.id))
        if self.recipe.constitution is not None:
            freeze(session, self.recipe.constitution)
        self.job.made(session, "verdict_set", row.id)
        return row.id

    def _forget_failures(self, session: Session) -> int:
        """A call that got no answer is no reading: a resumed run asks again. Their verdicts are all unreadable."""
        failed = (
            sa.select(col(Opinion.pair_id))
            .join(Call, col(Call.id) == col(Opinion.call_id))
            .where(col(Opinion.verdict_set_id) == self.set_id, col(Call.state) == "failed")
        )
        pairs = sorted(set(session.execute(failed).scalars()))
        if not pairs:
            return 0
        for kind in (Verdict, Opinion):
            gone = session.execute(
                sa.delete(kind).where(
                    col(kind.verdict_set_id) == self.set_id,
                    col(kind.pair_id).in_(pairs),
                )
            )
            if kind is Verdict:
                self._count(session, n_null=-int(gone.rowcount))  # type: ignore[attr-defined]
        return len(pairs)

    def _read_partial(self, session: Session) -> dict[int, list[OpinionValue]]:
        """Opinions of pairs that lack the other order."""
        found: dict[int, list[OpinionValue]] = defaultdict(list)
        done = sa.select(col(Verdict.pair_id)).where(col(Verdict.verdict_set_id) == self.set_id)
        query = select(Opinion).where(Opinion.verdict_set_id == self.set_id, col(Opinion.pair_id).not_in(done))
        for row in session.exec(query):
            found[row.pair_id].append(OpinionValue(row.is_swapped, row.choice, row.p_a, row.by_principle, row.reason))
        return found

    def missing_orders(self, pair_id: int) -> list[bool]:
        """The orders of a pair that have no opinion yet."""
        have = {one.is_swapped for one in self.partial.get(pair_id, ())}
        return [order for order in self.orders if order not in have]

    def store(self, session: Session, given: Sequence[Given]) -> None:
        """Writes opinions, and the verdict of each pair that now has all its orders; counts the labels this gives."""
        if not given:
            return
        rows = [
            {
                "verdict_set_id": self.set_id, "pair_id": one.pair_id, "judge_id": self.judge.id, "sample": 0,
                "is_swapped": one.value.is_swapped, "call_id": one.call_id, "choice": one.value.choice,
                "p_a": one.value.p_a, "by_principle": dict(one.value.by_principle), "reason": one.value.reason,
            }
            for one in given
        ]  # fmt: skip
        session.execute(sa.insert(Opinion), rows)
        self.n_opinions += len(given)
        self.n_truncated += sum(one.is_truncated for one in given)
        for one in given:
            self.partial.setdefault(one.pair_id, []).append(one.value)
        self._store_verdicts(session, dict.fromkeys(one.pair_id for one in given))

    def _store_verdicts(self, session: Session, pair_ids: Iterable[int]) -> None:
        rows: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        for pair_id in pair_ids:
            if len(self.partial[pair_id]) < len(self.orders):
                continue
            value = add_up(sorted(self.partial.pop(pair_id), key=lambda one: one.is_swapped))
            rows.append({"verdict_set_id": self.set_id, "pair_id": pair_id, **vars(value)})
            counts[f"n_{value.outcome or 'null'}"] += 1
            counts["n_flip"] += value.is_flip
        if rows:
            session.execute(sa.insert(Verdict), rows)
            self._count(session, **counts)
            self.n_done += len(rows)
            self.n_null += counts["n_null"]
            self.spend(session, labels=len(rows) - counts["n_null"])

    def _count(self, session: Session, **changes: int) -> None:
        values = {name: getattr(VerdictSet, name) + change for name, change in changes.items() if change}
        if values:
            session.execute(sa.update(VerdictSet).where(col(VerdictSet.id) == self.set_id).values(**values))

    def spend(self, session: Session, **amounts: float) -> None:
        """Adds to the run's cost within the same transaction as what was paid for."""
        run = get(session, Run, self.job.run_id)
        run.cost = {**run.cost, **{name: run.cost.get(name, 0) + value for name, value in amounts.items()}}

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
