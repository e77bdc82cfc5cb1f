"""What watches a run and trains nothing: a reward model, or a judge of any kind that can score a text by itself.

An endpoint and a local checkpoint score by a constitution (worker/judge_reward.py), 0 to 1; the rule gives the share of
its own highest score; a panel the weighted mean of its members, none where one member cannot be read. A reward model's
score has no bounds. Where asking is over (the budget is spent, the endpoint refuses), the run goes on unwatched and its
log says so, unless people rely on it to pause.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from app.db import get
from app.errors import AppError
from app.judging.judges import freeze_judge
from app.judging.models import Judge
from app.judging.recipes import members_of
from app.prompts.models import Prompt
from app.prompts.strict_format import score_by_rule
from app.training.scorers import describe_watcher
from worker.checkpoints import weights_of
from worker.job import Job
from worker.judge_reward import JudgeReward
from worker.llm import RewardScorer
from worker.pausing import name_messages, prompt_set_of

Messages = list[dict[str, str]]
Score = Callable[[Sequence[Messages], Sequence[str]], Sequence[float | None]]


@dataclass(frozen=True)
class Watching:
    """How a judge is asked that only watches, under the names that a recipe has for one that rewards."""

    judge: int
    constitution: int | None
    budget_usd: float | None
    concurrency: int = 32
    max_tries: int = 5
    timeout_s: float = 120
    judge_max_tokens: int = 700
    with_reason: bool = False
    max_null: float = 1.0  # the curve tells how many are unreadable: no reason to stop a training


class Watcher:
    """The held-out scorer of a run's recipe."""

    def __init__(self, job: Job, score: Score) -> None:
        self.job, self._score, self.is_over = job, score, False

    def score(self, prompts: Sequence[Messages], texts: Sequence[str]) -> Sequence[float | None]:
        """A score for each text, None where there is none."""
        if self.is_over:
            return [None] * len(texts)
        try:
            return self._score(prompts, texts)
        except AppError as error:
            if getattr(self.job.recipe, "is_paused_at_turn", False):
                raise
            self.is_over = True
            self.job.log(f"from here on nothing held out watches this run: {error.message}", "warning")
            return [None] * len(texts)


def watcher_of(job: Job) -> Watcher | None:
    """The held-out scorer that the recipe names, and in the log of which family it is; None without one."""
    recipe = job.recipe
    with job.read() as session:
        found = describe_watcher(session, recipe.stored())
        weights = weights_of(session, recipe.held_out) if recipe.held_out is not None else None
        judge = get(session, Judge, recipe.held_out_judge) if recipe.held_out_judge is not None else None
    if found is None:
        return None
    job.log(f"“{found.name}” watches this run: {found.said}", "info" if found.relation == "other" else "warning")
    if weights is not None:
        return Watcher(job, RewardScorer(weights).score)
    assert judge is not None
    with job.write() as session:
        freeze_judge(session, judge)
        members = members_of(session, judge)
    seats = judge.settings["members"] if judge.kind == "panel" else [{"weight": 1.0}]
    scores = [_score_of(job, member) for member in members]
    return Watcher(job, scores[0] if len(scores) == 1 else _weigh([float(seat["weight"]) for seat in seats], scores))


def _score_of(job: Job, judge: Judge) -> Score:
    """How one judge scores."""
    if judge.kind == "reward":
        with job.read() as session:
            return RewardScorer(weights_of(session, judge.checkpoint_id or 0)).score
    if judge.kind == "rule":
        return _by_rule(job, judge.settings)
    recipe = job.recipe
    return JudgeReward(job, Watching(judge.id, recipe.held_out_constitution, recipe.budget_usd)).score


def _by_rule(job: Job, settings: Mapping[str, Any]) -> Score:
    """The rule without the errors that its labels are given on purpose."""
    weights = float(settings["format_weight"]), float(settings["answer_weight"])
    with job.read() as session:
        rows = session.exec(
            select(Prompt.messages, Prompt.reference).where(col(Prompt.set_id) == prompt_set_of(session, job.recipe))
        )
        gold = {name_messages(list(messages)): reference for messages, reference in rows}

    def score(prompts: Sequence[Messages], texts: Sequence[str]) -> list[float | None]:
        known = [gold.get(name_messages(one)) for one in prompts]
        return [
            None if weights[1] and reference is None else score_by_rule(text, reference, *weights) / sum(weights)
            for reference, text in zip(known, texts, strict=True)
        ]

    return score


def _weigh(weights: Sequence[float], scores: Sequence[Score]) -> Score:
    """A panel's mean."""

    def score(prompts: Sequence[Messages], texts: Sequence[str]) -> list[float | None]:
        found = zip(*(one(prompts, texts) for one in scores), strict=True)
        return [
            None if None in said else sum(w * one for w, one in zip(weights, said, strict=True) if one is not None)
            / sum(weights) for said in found
        ]  # fmt: skip

    return score
