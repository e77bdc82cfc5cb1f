"""Scores single completions from 1 to 10 by each principle of a constitution, by an endpoint or a local checkpoint.

An endpoint gets one joint call per completion, through the call ledger. A local checkpoint is asked by one principle at
a time and its score is the expected value Σ k·p(k): p is the softmax over the log-probabilities of the ten answers "1"
to "10" as continuations of the prompt, and of nothing else it might say. Where the tokenizer writes 10 as "1" and "0",
p("1") holds what goes on to "10" as well, so that 1 is weighted somewhat too high. Such a score is no whole number.

UNIQUE (set, completion, judge, principle, sample) lets nothing be scored twice; a run that is taken up again scores
what has no score yet, and what only failed.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.endpoints import target_of
from app.checkpoints.naming import store_named
from app.constitutions.constitutions import freeze, read_principles
from app.db import get
from app.errors import AppError, Invalid
from app.judging.judges import endpoint_of, freeze_judge
from app.judging.material import chunks, read_guide, read_guides
from app.judging.models import Call, Judge, Rating, RatingSet
from app.judging.rating_recipes import RateRecipe
from app.judging.ratings import (
    OVERALL,
    SCALE,
    RatedText,
    RatingAsk,
    Score,
    Scores,
    list_completions,
    read_completions,
    read_scores,
    render_local,
    sum_up,
)
from app.pairs.models import PairSet
from app.prompts.models import PromptSet
from worker.checkpoints import weights_of
from worker.job import Job
from worker.ledger import Known, Unit, add_cost, ask_all_of
from worker.llm import LocalModel

AT_ONCE = 16  # completions of a local judge that are stored together
ENOUGH = 20  # completions after which a share is worth stopping for
PROTOCOL = {"splits", "with_reason", "temperature", "max_tokens", "limit"}


@dataclass(frozen=True)
class Given:
    """A completion's scores on their way to the database."""

    completion_id: int
    scores: Scores
    call_id: int | None = None


def rate_completions(job: Job) -> None:
    """Scores what this run has not scored yet."""
    recipe: RateRecipe = job.recipe
    with job.read() as session:
        ids = list_completions(session, recipe)
        judge = get(session, Judge, recipe.judge)
    if not ids:
        raise Invalid("There is no completion to score: choose other splits, or generate completions first.")
    book = RatingBook(job, recipe, judge, ids)
    job.log(f"{len(ids):,} completions to score, {book.n_done:,} of them are scored")
    if judge.kind == "endpoint":
        _ask_endpoint(job, book, judge)
    else:
        _ask_checkpoint(job, book, judge)
    book.check_share(is_end=True)
    job.progress(book.total, book.total)
    job.log(f"{book.n_done:,} completions scored; {book.n_null:,} have no overall score, each with its reason")


class RatingBook:
    """The rating set of a run. `store` is called within the write that also holds what paid for the scores."""

    def __init__(self, job: Job, recipe: RateRecipe, judge: Judge, ids: Sequence[int]) -> None:
        self.job, self.recipe, self.judge, self.total = job, recipe, judge, len(ids)
        with job.write() as session:
            self.set_id = self._open(session)
            n_forgotten = self._forget_failures(session)
        with job.read() as session:
            of_set = select(Rating.completion_id).where(Rating.rating_set_id == self.set_id)
            done = set(session.exec(of_set.where(Rating.principle == OVERALL)))
            row = get(session, RatingSet, self.set_id)
            self.n_done, self.n_null = row.n, row.n_null
            self.weights: Mapping[str, float] = {
                one.key: one.weight for one in read_principles(session, recipe.constitution)
            }
        self.to_do = [one for one in ids if one not in done]
        if n_forgotten:
            job.log(f"{n_forgotten:,} completions whose calls had failed are asked again")

    def _open(self, session: Session) -> int:
        """The set this run fills: found when an earlier attempt made it."""
        recipe = self.recipe
        row = session.exec(select(RatingSet).where(RatingSet.run_id == self.job.run_id)).first()
        if row is not None:
            return row.id
        source = (
            get(session, PairSet, recipe.pair_set).name
            if recipe.pair_set is not None
            else get(session, PromptSet, recipe.prompt_set or 0).name
        )
        row = RatingSet(
            project_id=self.job.project_id, name="", judge_id=self.judge.id, constitution_id=recipe.constitution,
            pair_set_id=recipe.pair_set, prompt_set_id=recipe.prompt_set, arm_id=recipe.arm, run_id=self.job.run_id,
            protocol=recipe.model_dump(include=PROTOCOL),
        )  # fmt: skip
        store_named(session, row, recipe.name or f"{self.judge.name} scores {source}")
        session.flush()
        freeze_judge(session, get(session, Judge, self.judge.id))
        freeze(session, recipe.constitution)
        self.job.made(session, "rating_set", row.id)
        return row.id

    def _forget_failures(self, session: Session) -> int:
        """A call that got no answer is no reading: a resumed run asks again."""
        failed = sa.select(col(Rating.completion_id)).join(Call, col(Call.id) == col(Rating.call_id))
        failed = failed.where(col(Rating.rating_set_id) == self.set_id, col(Call.state) == "failed").distinct()
        ids = list(session.execute(failed).scalars())
        for some in chunks(ids):
            of_set = col(Rating.rating_set_id) == self.set_id
            session.execute(sa.delete(Rating).where(of_set, col(Rating.completion_id).in_(some)))
        if ids:
            self._count(session, -len(ids), -len(ids))
        return len(ids)

    def _count(self, session: Session, n: int, n_null: int) -> None:
        more = sa.update(RatingSet).where(col(RatingSet.id) == self.set_id)
        session.execute(more.values(n=RatingSet.n + n, n_null=RatingSet.n_null + n_null))

    def store(self, session: Session, found: Sequence[Given]) -> None:
        """A row for each principle and one overall, and the set's counters."""
        rows, n_null = [], 0
        for one in found:
            overall = sum_up(one.scores.by_principle, self.weights, one.scores.reason)
            n_null += overall.value is None
            same = {"rating_set_id": self.set_id, "completion_id": one.completion_id, "judge_id": self.judge.id,
                    "sample": 0, "call_id": one.call_id}  # fmt: skip
            rows += [
                {**same, "principle": key, "value": score.value, "reason": score.reason}
                for key, score in ((OVERALL, overall), *one.scores.by_principle.items())
            ]
        if rows:
            session.execute(sa.insert(Rating), rows)
            self._count(session, len(found), n_null)
            self.n_done, self.n_null = self.n_done + len(found), self.n_null + n_null

    def progress(self, note: str = "") -> None:
        """Moves the bar."""
        self.job.progress(min(self.n_done, self.total - 1), self.total, note)

    def check_share(self, is_end: bool = False) -> None:
        """Raises AppError when too much is unreadable for the scores to mean anything."""
        if (self.n_done < ENOUGH and not is_end) or not self.n_done:
            return
        share = self.n_null / self.n_done
        if share > self.recipe.max_null:
            raise AppError(
                f"{self.n_null} of {self.n_done} completions have no overall score ({share:.0%}), more than the "
                f"{self.recipe.max_null:.0%} this run allows. The page of these scores lists the reasons; choose "
                "another judge, more tokens for its answer, or allow a larger share."
            )


class RateWork:
    """What the call ledger asks an endpoint: one joint question a completion."""

    def __init__(self, book: RatingBook, asking: RatingAsk) -> None:
        self.book, self.asking = book, asking
        self._left = deque(book.to_do)

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """The next completions."""
        ids = [self._left.popleft() for _ in range(min(n, len(self._left)))]
        return [
            Unit(self.asking.sha256(one), partial(self.asking.request, one), partial(self._read, one))
            for one in read_completions(session, ids)
        ]

    def _read(self, one: RatedText, known: Known) -> Given:
        keys = self.asking.guide.keys
        if known.failure:
            return Given(one.id, Scores({key: Score(None, known.failure) for key in keys}), known.call_id)
        request = known.request
        return Given(one.id, read_scores(known.raw, request["nonce"], keys, stop_reason=request["stop_reason"]),
                     known.call_id)  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether every completion was handed out."""
        return not self._left

    @property
    def how_far(self) -> str:
        """For messages."""
        return f"{self.book.n_done} of {self.book.total} completions are scored"

    def store(self, session: Session, found: list[Any]) -> None:
        """Stores scores."""
        self.book.store(session, found)

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """The bar, and stopping early where the scores would mean nothing."""
        self.book.progress(f"{n_in_flight} calls in flight, ${spent_usd:.4f}")
        self.book.check_share()


def _ask_endpoint(job: Job, book: RatingBook, judge: Judge) -> None:
    with job.read() as session:
        target = target_of(endpoint_of(session, judge))
        guide = read_guide(session, book.recipe.constitution)
    recipe = book.recipe
    asking = RatingAsk(
        target, guide, with_reason=recipe.with_reason, temperature=recipe.temperature, max_tokens=recipe.max_tokens
    )
    ask_all_of(job, target, RateWork(book, asking), recipe)


def _ask_checkpoint(job: Job, book: RatingBook, judge: Judge) -> None:
    """Each principle by itself, from the log-probabilities of the ten numbers."""
    with job.read() as session:
        guides = read_guides(session, book.recipe.constitution, list(book.weights))
        model = LocalModel(weights_of(session, judge.checkpoint_id or 0))
    job.log(f"the judge's prompts are rendered by {model.rendering}")
    answers = [str(number) for number in SCALE]
    for ids in chunks(book.to_do, AT_ONCE):
        with job.read() as session:
            texts = read_completions(session, ids)
        asked = [(one.id, key, render_local(guide, one)) for one in texts for key, guide in guides.items()]
        fitting = [question for question in asked if not model.is_too_long(question[2], 2)]
        said = model.log_probs_of([(prompt, answers) for _, _, prompt in fitting])
        known = {(one, key): expect(logs) for (one, key, _), logs in zip(fitting, said, strict=True)}
        too_long = Score(None, f"prompt and completion do not fit the judge's context of {model.context} tokens")
        found = [
            Given(one.id, Scores({key: known.get((one.id, key), too_long) for key in guides}))
            for one in texts
        ]  # fmt: skip
        tokens = sum(len(model.encode(prompt)) for _, _, prompt in fitting)
        with job.write() as session:
            book.store(session, found)
            add_cost(session, job.run_id, judge_calls=len(fitting), judge_tokens=tokens)
        book.progress()
        book.check_share()


def expect(log_probs: Sequence[float]) -> Score:
    """The expected number of 1 to 10 under the ten answers' log-probabilities, normalised over those ten."""
    top = max(log_probs)
    shares = [math.exp(one - top) for one in log_probs]
    total = sum(shares)
    likeliest, share = max(zip(SCALE, shares, strict=True), key=lambda one: one[1])
    value = sum(number * one for number, one in zip(SCALE, shares, strict=True)) / total
    return Score(value, f"expected value; {likeliest} is likeliest, p = {share / total:.3f}")
