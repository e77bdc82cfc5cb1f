"""What a queue was drawn from, where the judging ended early or went on afterwards: said in words."""

from dataclasses import dataclass

from sqlmodel import Session

from app.db import get
from app.judging.models import RatingSet, VerdictSet
from app.judging.reweigh import root_of
from app.pairs.models import PairSet
from app.review.models import Queue
from app.runs.models import SAID, Run


@dataclass(frozen=True)
class Part:
    """What a queue stands for. `said` is empty where that is everything the judge was to look at."""

    said: str = ""
    is_outgrown: bool = False  # more is judged now than could be drawn: nothing is estimated of all of it


def read_part(session: Session, queue: Queue) -> Part:
    """From the queue's own draw, the counters of what it was drawn from, and how the judging ended."""
    if queue.kind == "adjudication":
        return Part()  # drawn from what people said
    source, run, wanted = _source(session, queue)
    if run is None:
        return Part()
    what = "completions" if queue.kind == "scoring" else "pairs"
    n_drawn_from = _drawn_from(session, queue)
    went_on = run.is_live or (run.ended_at is not None and run.ended_at > queue.created_at)
    is_outgrown = source.n > n_drawn_from if n_drawn_from is not None else went_on
    this = f"This {'sample' if queue.kind == 'scoring' else queue.kind}"
    again = f"draw another {queue.kind}" if queue.kind != "scoring" else "draw completions again"
    if is_outgrown:
        some = f"{n_drawn_from:,} {what}" if n_drawn_from is not None else f"the {what} that were judged until then"
        estimates = "" if queue.kind == "repair" else ", so nothing is estimated of all of them"
        return Part(
            f"The judging went on after {this.lower()} was drawn from {some}; {source.n:,} are judged now. It stands "
            f"for those it was drawn from alone{estimates}: {again}.", True,
        )  # fmt: skip
    if run.status in ("failed", "cancelled") and source.n < wanted:
        return Part(
            f"The judging {SAID[run.state]} after {source.n:,} of {wanted:,} {what} (run {run.id}). {this} was drawn "
            f"from those {source.n:,}, whichever came first, and says nothing of the others: resume or repeat that "
            f"run, then {again}."
        )
    return Part()


def _source(session: Session, queue: Queue) -> tuple[VerdictSet | RatingSet, Run | None, int]:
    """What a queue was drawn from, the run that judged it, and how much that was to judge."""
    if queue.rating_set_id is not None:
        ratings = get(session, RatingSet, queue.rating_set_id)
        run = get(session, Run, ratings.run_id) if ratings.run_id else None
        return ratings, run, run.total if run else 0
    verdicts = get(session, VerdictSet, queue.verdict_set_id or 0)
    root = root_of(session, verdicts)
    run = get(session, Run, root.run_id) if root.run_id else None
    return verdicts, run, min(get(session, PairSet, root.pair_set_id).n, (run and run.recipe.get("limit")) or 2**62)


def _drawn_from(session: Session, queue: Queue) -> int | None:
    """How much was judged when the queue was drawn; None of one that an early version drew."""
    run = get(session, Run, queue.run_id) if queue.run_id else None
    n = run.cost.get("drawn_from") if run else None
    return None if n is None else int(n)
