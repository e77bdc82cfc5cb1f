"""Rewards of PPO and GRPO: which reward models may score, and what reads texts, not tokens: a judge, and the rule with
errors on purpose, an oracle that reads gold."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from app.db import get
from app.errors import AppError
from app.prompts.strict_format import score_by_rule
from app.runs.models import Run
from worker.job import Job
from worker.judge_reward import JudgeReward
from worker.loading import Weights, load_tokenizer
from worker.rl_prompts import RlPrompt

# (token ids of prompts, completions) → rewards; None: unreadable, so that the completion has no reward at all
Bonus = Callable[[list[list[int]], list[str]], Sequence[float | None]]
BEST = "Answer: x — Confidence: low — Reasoning: x"


def check_tokens(reward: Weights, tokenizer: Any) -> None:
    """Refuses a reward model that would read other tokens than the policy writes."""
    if load_tokenizer(reward).get_vocab() != tokenizer.get_vocab():
        raise AppError("The reward model reads other tokens than the policy writes: train one on the same base.")


def check_cards(job: Job) -> None:
    """A judge or reward model that has failed its card since the launch lets no first step be made without a reason."""
    with job.read() as session:
        if not get(session, Run, job.run_id).done:
            job.recipe.check_waiver(session)


def score_text(prompt: str, text: str, gold: str | None, flip_rate: float, seed: int) -> float:
    """The rule's score in [0, 1]. A share of texts, fixed by hash, has it turned round: the oracle's errors."""
    best = score_by_rule(BEST, "x" if gold is not None else None)
    share = score_by_rule(text, gold) / best
    digest = hashlib.sha256(f"{seed}\0{prompt}\0{text}".encode()).digest()
    is_flipped = int.from_bytes(digest[:6], "big") / 2**48 < flip_rate
    return 1 - share if is_flipped else share


def text_bonus(recipe: Any, seed: int, prompts: Sequence[RlPrompt], judge: JudgeReward | None) -> Bonus | None:
    """What rule and judge give each completion by the recipe's weights; None where neither rewards."""
    if not recipe.rule_weight and judge is None:
        return None
    known = {tuple(prompt.ids): prompt for prompt in prompts}

    def bonus(asked: list[list[int]], texts: list[str]) -> list[float | None]:
        found = [known[tuple(ids)] for ids in asked]
        rule = [
            recipe.rule_weight
            * score_text(one.messages[-1]["content"], text, one.reference, recipe.rule_flip_rate, seed)
            if recipe.rule_weight
            else 0.0
            for one, text in zip(found, texts, strict=True)
        ]
        if judge is None:
            return list(rule)
        judged = judge.score([one.messages for one in found], texts)
        return [
            None if score is None else given + recipe.judge_weight * score
            for given, score in zip(rule, judged, strict=True)
        ]

    return bonus
