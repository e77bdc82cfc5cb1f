"""Local judges: a checkpoint by its log-probabilities of A and B in both orders, and a reward model by its scores."""

from collections.abc import Sequence

from app.db import get
from app.judging.material import PairRow, chunks, read_guides, read_pairs
from app.judging.models import Judge
from app.judging.prompt import render_local_prompt
from app.judging.protocol import Asked, Seat
from app.judging.verdicts import OpinionValue, choose, sigmoid
from worker.checkpoints import weights_of
from worker.job import Job
from worker.judge_book import Given, VerdictBook, given
from worker.ledger import add_cost
from worker.llm import LocalModel, RewardScorer
from worker.loading import Weights

PAIRS_AT_ONCE = 32


def judge_by_checkpoint(job: Job, book: VerdictBook, seat: Seat) -> None:
    """p(A) against p(B) after the judge's prompt, one question for each principle where they are separate."""
    with job.read() as session:
        guides = read_guides(session, book.recipe.constitution, seat.principles)
    model = LocalModel(_weights(job, seat))
    job.log(f"the judge's prompts are rendered by {model.rendering}")
    for ids in chunks(book.to_do, PAIRS_AT_ONCE):
        with job.read() as session:
            pairs = read_pairs(session, ids)
        units = [(pair, asked) for pair in pairs for asked in book.missing(seat, pair.id)]
        prompts = [render_local_prompt(guides[asked.principle], pair.text, asked.is_swapped) for pair, asked in units]
        said = model.log_probs_of([(prompt, ["A", "B"]) for prompt in prompts])
        found, tokens = [], 0
        for (pair, asked), prompt, (log_a, log_b) in zip(units, prompts, said, strict=True):
            value = _read_letters(log_a, log_b, asked.is_swapped)
            found.append(given(seat, pair.id, asked, value, None, model.is_too_long(prompt, 1)))
            tokens += len(model.encode(prompt))
        _store(job, book, found, tokens)


def _read_letters(log_a: float, log_b: float, is_swapped: bool) -> OpinionValue:
    p_first = sigmoid(log_a - log_b)
    p_a = 1 - p_first if is_swapped else p_first
    reason = f"p(A) = {p_first:.3f} against B, {'b' if is_swapped else 'a'} shown as A"
    return OpinionValue(is_swapped, choose(p_a), p_a, {}, reason)


def judge_by_reward(job: Job, book: VerdictBook, seat: Seat) -> None:
    """The score of a against the score of b; the sigmoid of their difference is Bradley and Terry's p(a beats b)."""
    scorer = RewardScorer(_weights(job, seat))
    for ids in chunks(book.to_do, PAIRS_AT_ONCE):
        with job.read() as session:
            pairs = [pair for pair in read_pairs(session, ids) if book.missing(seat, pair.id)]
        scores_a, scores_b = (score_side(scorer, pairs, side) for side in ("a", "b"))
        found, tokens = [], 0
        for pair, a, b in zip(pairs, scores_a, scores_b, strict=True):
            p_a = sigmoid(a - b)
            value = OpinionValue(False, choose(p_a), p_a, {}, f"a scores {a:.3f} and b {b:.3f}")
            lengths = [len(scorer.encode(pair.text.messages, text)) for text in (pair.text.a, pair.text.b)]
            found.append(given(seat, pair.id, Asked(False), value, None, max(lengths) >= scorer.context))
            tokens += sum(lengths)
        _store(job, book, found, tokens)


def score_side(scorer: RewardScorer, pairs: Sequence[PairRow], side: str) -> list[float]:
    """The reward model's scores of one side of each pair."""
    return scorer.score([pair.text.messages for pair in pairs], [getattr(pair.text, side) for pair in pairs])


def _weights(job: Job, seat: Seat) -> Weights:
    with job.read() as session:
        judge = get(session, Judge, seat.judge_id)
        assert judge.checkpoint_id is not None
        return weights_of(session, judge.checkpoint_id)


def _store(job: Job, book: VerdictBook, found: list[Given], tokens: int) -> None:
    with job.write() as session:
        labels = book.store(session, found)
        add_cost(session, job.run_id, judge_calls=len(found), judge_tokens=tokens, **labels)
    book.progress()
    book.check_shares()
