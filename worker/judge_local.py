"""Local judges: a checkpoint by its log-probabilities of A and B in both orders, and a reward model by its scores."""

from collections.abc import Sequence

from app.judging.material import PairRow, chunks, read_guide, read_pairs
from app.judging.prompt import render_local_prompt
from app.judging.verdicts import OpinionValue, choose, sigmoid
from worker.checkpoints import weights_of
from worker.job import Job
from worker.judge_book import Given, VerdictBook
from worker.llm import LocalModel, RewardScorer
from worker.loading import Weights

PAIRS_AT_ONCE = 32


def judge_by_checkpoint(job: Job, book: VerdictBook) -> None:
    """p(A) against p(B) after the judge's prompt; averaged over both orders, which must agree."""
    with job.read() as session:
        guide = read_guide(session, job.recipe.constitution)
    model = LocalModel(_weights(job, book))
    job.log(f"the judge's prompts are rendered by {model.rendering}")
    for ids in chunks(book.to_do, PAIRS_AT_ONCE):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        units = [(pair, is_swapped) for pair in pairs for is_swapped in book.missing_orders(pair.id)]
        prompts = [render_local_prompt(guide, pair.text, is_swapped) for pair, is_swapped in units]
        said = model.log_probs_of([(prompt, ["A", "B"]) for prompt in prompts])
        given, tokens = [], 0
        for (pair, is_swapped), prompt, (log_a, log_b) in zip(units, prompts, said, strict=True):
            p_first = sigmoid(log_a - log_b)
            p_a = 1 - p_first if is_swapped else p_first
            reason = f"p(A) = {p_first:.3f} against B, {'b' if is_swapped else 'a'} shown as A"
            value = OpinionValue(is_swapped, choose(p_a), p_a, {}, reason)
            given.append(Given(pair.id, value, None, model.is_too_long(prompt, 1)))
            tokens += len(model.encode(prompt))
        _store(job, book, given, tokens)


def judge_by_reward(job: Job, book: VerdictBook) -> None:
    """The score of a against the score of b; the sigmoid of their difference is Bradley and Terry's p(a beats b)."""
    scorer = RewardScorer(_weights(job, book))
    for ids in chunks(book.to_do, PAIRS_AT_ONCE):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        scores_a, scores_b = (score_side(scorer, pairs, side) for side in ("a", "b"))
        given, tokens = [], 0
        for pair, a, b in zip(pairs, scores_a, scores_b, strict=True):
            p_a = sigmoid(a - b)
            value = OpinionValue(False, choose(p_a), p_a, {}, f"a scores {a:.3f} and b {b:.3f}")
            lengths = [len(scorer.encode(pair.text.messages, text)) for text in (pair.text.a, pair.text.b)]
            given.append(Given(pair.id, value, None, max(lengths) >= scorer.context))
            tokens += sum(lengths)
        _store(job, book, given, tokens)


def score_side(scorer: RewardScorer, pairs: Sequence[PairRow], side: str) -> list[float]:
    """The reward model's scores of one side of each pair."""
    return scorer.score([pair.text.messages for pair in pairs], [getattr(pair.text, side) for pair in pairs])


def _weights(job: Job, book: VerdictBook) -> Weights:
    assert book.judge.checkpoint_id is not None
    with job.read() as session:
        return weights_of(session, book.judge.checkpoint_id)


def _store(job: Job, book: VerdictBook, given: list[Given], tokens: int) -> None:
    with job.write() as session:
        book.store(session, given)
        book.spend(session, judge_calls=len(given), judge_tokens=tokens)
    book.progress()
    book.check_shares()
