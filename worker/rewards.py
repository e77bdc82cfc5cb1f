"""Rewards that read texts, not tokens: the rule, with errors on purpose. Named an oracle: it reads gold answers."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from app.prompts.strict_format import score_by_rule
from worker.rl_prompts import RlPrompt

Bonus = Callable[[list[list[int]], list[str]], list[float]]  # (token ids of prompts, completions) → rewards
BEST = "Answer: x — Confidence: low — Reasoning: x"


def score_text(prompt: str, text: str, gold: str | None, flip_rate: float, seed: int) -> float:
    """The rule's score in [0, 1]. A share of texts, fixed by hash, has it turned round: the oracle's errors."""
    best = score_by_rule(BEST, "x" if gold is not None else None)
    share = score_by_rule(text, gold) / best
    digest = hashlib.sha256(f"{seed}\0{prompt}\0{text}".encode()).digest()
    is_flipped = int.from_bytes(digest[:6], "big") / 2**48 < flip_rate
    return 1 - share if is_flipped else share


def rule_bonus(recipe: Any, seed: int, prompts: Sequence[RlPrompt]) -> Bonus:
    """`recipe.rule_weight` times the rule's score of each completion."""
    known = {tuple(prompt.ids): prompt for prompt in prompts}

    def bonus(asked: list[list[int]], texts: list[str]) -> list[float]:
        found = [known[tuple(ids)] for ids in asked]
        return [
            recipe.rule_weight
            * score_text(one.messages[-1]["content"], text, one.reference, recipe.rule_flip_rate, seed)
            for one, text in zip(found, texts, strict=True)
        ]

    return bonus
