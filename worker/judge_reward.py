"""A judge as the reward: each completion scored from 1 to 10 by a constitution, which becomes 0 to 1.

An endpoint is asked through the call ledger: the same prompt, completion and settings make one call, ever, so a run
that is taken up again gets the very answers it got before; only a call that failed is made again. A local checkpoint
gives the expected value over the ten answers (see worker/rate.py). A score that cannot be read is None: that completion
has no reward and teaches nothing.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlmodel import Session

from app.checkpoints.chat import ChatAnswer
from app.checkpoints.endpoints import target_of
from app.constitutions.constitutions import freeze, read_principles
from app.db import get
from app.errors import AppError
from app.judging.judges import endpoint_of, freeze_judge
from app.judging.material import read_guide, read_guides
from app.judging.models import Judge
from app.judging.ratings import HIGHEST, LOWEST, SCALE, RatedText, RatingAsk, Score, read_scores, render_local, sum_up
from worker.checkpoints import weights_of
from worker.job import Job
from worker.ledger import Known, Unit, add_cost, ask_all_of, judging_cost
from worker.llm import LocalModel
from worker.rate import AT_ONCE, expect

Messages = list[dict[str, str]]
ENOUGH = 20  # completions after which a share is worth stopping for


class JudgeReward:
    """The judge of a training run's recipe; or one that only watches it, by `recipe`, counted apart too."""

    def __init__(self, job: Job, recipe: Any = None) -> None:
        self.job, self.recipe, self.is_watching = job, recipe or job.recipe, recipe is not None
        self.n = self.n_unread = 0
        constitution = int(self.recipe.constitution)
        with job.write() as session:
            judge = get(session, Judge, self.recipe.judge)
            freeze_judge(session, judge)
            freeze(session, constitution)
        with job.read() as session:
            self.weights: Mapping[str, float] = {one.key: one.weight for one in read_principles(session, constitution)}
            self.asking: RatingAsk | None = None
            if judge.kind == "endpoint":
                self.asking = RatingAsk(
                    target_of(endpoint_of(session, judge)), read_guide(session, constitution),
                    with_reason=self.recipe.with_reason, temperature=0.0, max_tokens=self.recipe.judge_max_tokens,
                )  # fmt: skip
            else:
                self.guides = read_guides(session, constitution, list(self.weights))
                self.model = LocalModel(weights_of(session, judge.checkpoint_id or 0))
        scored = "the dev samples" if self.is_watching else "every completion of each rollout, and the dev samples,"
        job.log(f"“{judge.name}” scores {scored} from 1 to 10")

    def score(self, prompts: Sequence[Messages], texts: Sequence[str]) -> list[float | None]:
        """0 to 1 for each completion, None where unreadable. Raises AppError at the budget or for too many of those."""
        asked = [
            RatedText(place, messages, text) for place, (messages, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        found = self._ask_endpoint(asked) if self.asking else self._ask_checkpoint(asked)
        self.n, self.n_unread = self.n + len(found), self.n_unread + sum(one.value is None for one in found)
        self._check_share([one.reason for one in found if one.value is None])
        return [None if one.value is None else (one.value - LOWEST) / (HIGHEST - LOWEST) for one in found]

    def _ask_endpoint(self, asked: Sequence[RatedText]) -> list[Score]:
        assert self.asking is not None
        work = _Asked(self.asking, self.weights, asked)
        ask_all_of(self.job, self.asking.target, work, self.recipe, self._cost_of)
        return [work.found[one.id] for one in asked]

    def _cost_of(self, answers: Sequence[ChatAnswer]) -> dict[str, float]:
        cost = judging_cost(answers)
        apart = {"recorder_calls": cost["judge_calls"], "recorder_usd": cost["usd"]}
        return {**cost, **(apart if self.is_watching else {})}

    def _ask_checkpoint(self, asked: Sequence[RatedText]) -> list[Score]:
        """Each principle by itself, from the log-probabilities of the ten numbers."""
        answers = [str(number) for number in SCALE]
        too_long = Score(None, f"prompt and completion do not fit the judge's context of {self.model.context} tokens")
        found: list[Score] = []
        n_calls = n_tokens = 0
        for start in range(0, len(asked), AT_ONCE):
            self.job.check()
            some = asked[start : start + AT_ONCE]
            questions = {(one.id, key): render_local(guide, one) for one in some for key, guide in self.guides.items()}
            fitting = {name: text for name, text in questions.items() if not self.model.is_too_long(text, 2)}
            said = self.model.log_probs_of([(text, answers) for text in fitting.values()])
            known = {name: expect(logs) for name, logs in zip(fitting, said, strict=True)}
            for one in some:
                by_principle = {key: known.get((one.id, key), too_long) for key in self.guides}
                found.append(sum_up(by_principle, self.weights))
            n_calls += len(fitting)
            n_tokens += sum(len(self.model.encode(text)) for text in fitting.values())
        with self.job.write() as session:
            apart = {"recorder_calls": n_calls} if self.is_watching else {}
            add_cost(session, self.job.run_id, judge_calls=n_calls, judge_tokens=n_tokens, **apart)
        return found

    def _check_share(self, reasons: Sequence[str]) -> None:
        if self.n >= ENOUGH and self.n_unread > self.recipe.max_null * self.n:
            raise AppError(
                f"{self.n_unread} of {self.n} scores of this attempt are unreadable, more than the "
                f"{self.recipe.max_null:.0%} this run allows; the last one: {reasons[-1] if reasons else 'earlier'}. "
                "Choose another judge, more tokens for its answer, or allow a larger share."
            )


class _Asked:
    """What the call ledger asks an endpoint: one joint question a completion."""

    def __init__(self, asking: RatingAsk, weights: Mapping[str, float], asked: Sequence[RatedText]) -> None:
        self.asking, self.weights = asking, weights
        self._left, self._total = list(reversed(asked)), len(asked)
        self.found: dict[int, Score] = {}

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """The next completions."""
        some = [self._left.pop() for _ in range(min(n, len(self._left)))]
        return [
            Unit(self.asking.sha256(one), partial(self.asking.request, one), partial(self._read, one)) for one in some
        ]

    def _read(self, one: RatedText, known: Known) -> tuple[int, Score]:
        if known.failure:
            return one.id, Score(None, known.failure)
        request = known.request
        scores = read_scores(
            known.raw, request["nonce"], self.asking.guide.keys, stop_reason=request["stop_reason"]
        )  # fmt: skip
        return one.id, sum_up(scores.by_principle, self.weights, scores.reason)

    @property
    def is_empty(self) -> bool:
        """Whether every completion was handed out."""
        return not self._left

    @property
    def how_far(self) -> str:
        """For messages."""
        return f"{len(self.found)} of these {self._total} completions are scored"

    def store(self, session: Session, found: list[Any]) -> None:
        """Keeps the scores; the calls' rows hold the answers."""
        self.found.update(found)

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """Training has the bar."""


def as_numbers(scores: Sequence[float | None]) -> list[float]:
    """None as not a number, for tensors."""
    return [math.nan if one is None else one for one in scores]
