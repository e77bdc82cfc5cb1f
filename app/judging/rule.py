"""The rule judge's opinion: format and exact answer, with errors on purpose. An oracle where it reads gold answers."""

from typing import Any

from app.judging.material import PairRow
from app.judging.verdicts import OpinionValue, is_flipped
from app.prompts.strict_format import score_by_rule

SWAP = {"a": "b", "b": "a", "tie": "tie"}


def opine_by_rule(pair: PairRow, settings: dict[str, Any], seed: int) -> OpinionValue:
    """The rule's opinion of one pair. By principle: what format alone and answer alone would say."""
    said: dict[str, str] = {}
    totals = {"a": 0.0, "b": 0.0}
    for name in ("format", "answer"):
        weight = settings[f"{name}_weight"]
        if not weight:
            continue
        alone = (weight, 0.0) if name == "format" else (0.0, weight)
        reference = pair.reference if name == "answer" else None
        scores = {side: score_by_rule(getattr(pair.text, side), reference, *alone) for side in totals}
        said[name] = _better(scores)
        totals = {side: totals[side] + scores[side] for side in totals}
    choice = _better(totals)
    reason = f"by the rule, a scores {totals['a']:g} and b {totals['b']:g}"
    if choice != "tie" and is_flipped(seed, pair.position, settings.get("flip_rate", 0.0)):
        # The principles are flipped along, so that nothing but the reason tells an error on purpose from a label.
        choice, said = SWAP[choice], {name: SWAP[one] for name, one in said.items()}
        reason += f"; flipped on purpose (flip rate {settings['flip_rate']:g})"
    return OpinionValue(False, choice, None, said, reason)


def _better(scores: dict[str, float]) -> str:
    return "tie" if scores["a"] == scores["b"] else ("a" if scores["a"] > scores["b"] else "b")
