"""The rule judge: format and exact answer, with errors on purpose. An oracle where it reads gold answers."""

from typing import Any

from app.judging.material import PairRow, chunks, read_pairs
from app.judging.verdicts import OpinionValue, is_flipped
from app.prompts.strict_format import score_by_rule
from worker.job import Job
from worker.judge_book import Given, VerdictBook

SWAP = {"a": "b", "b": "a", "tie": "tie"}


def judge_by_rule(job: Job, book: VerdictBook) -> None:
    """Scores both completions by the rule; equal scores tie; a seeded share of the labels is flipped."""
    for ids in chunks(book.to_do):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        given = [Given(pair.id, opine_by_rule(pair, book.judge.settings, job.seed)) for pair in pairs]
        with job.write() as session:
            book.store(session, given)
            book.spend(session, judge_calls=len(given))
        book.progress()
        book.check_shares()


def opine_by_rule(pair: PairRow, settings: dict[str, Any], seed: int) -> OpinionValue:
    """The rule's opinion of one pair. By principle: what format alone and answer alone would say."""
    weights = {"format": settings["format_weight"], "answer": settings["answer_weight"]}
    said: dict[str, str] = {}
    totals = {"a": 0.0, "b": 0.0}
    for name, weight in weights.items():
        if not weight:
            continue
        alone = {"format": (weight, 0.0), "answer": (0.0, weight)}[name]
        scores = {
            side: score_by_rule(text, pair.reference if name == "answer" else None, *alone)
            for side, text in (("a", pair.text.a), ("b", pair.text.b))
        }
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
