"""“Try on 10 pairs” and the forecast: real prompts, real answers, and the price before a launch."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.chat import ChatAnswer, ask_each
from app.checkpoints.endpoints import target_of
from app.db import get
from app.errors import Unavailable
from app.judging.asking import Asking
from app.judging.judges import endpoint_of, free_name
from app.judging.material import PairRow, read_guide, read_pairs
from app.judging.models import Call, CallText, Judge, VerdictSet
from app.judging.recipes import JudgeRecipe
from app.judging.rule import opine_by_rule
from app.judging.verdicts import OpinionValue, VerdictValue, add_up
from app.pairs.models import Pair, PairSet

N_TRIED = 10
TRY_S = 20.0  # for one try of one call
ALL_S = 60.0  # for the whole trial
N_SAMPLED = 100  # pairs whose prompts a forecast renders
CHARS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class TriedCall:
    """One order of one pair: what was sent, what came back, and how it was read."""

    opinion: OpinionValue
    messages: list[dict[str, str]] = field(default_factory=list)
    raw: str = ""
    cost_usd: float = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class TriedPair:
    """One pair with its calls and the verdict they add up to."""

    pair: PairRow
    calls: list[TriedCall]
    verdict: VerdictValue


@dataclass(frozen=True)
class Forecast:
    """What a launch would ask for."""

    n_pairs: int
    n_calls: int  # that would be paid for
    n_known: int = 0  # answers already kept
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = None  # None: not an endpoint
    n_calibrated: int = 0  # earlier calls of this endpoint that the estimate rests on


def asking_of(session: Session, judge: Judge, recipe: JudgeRecipe) -> Asking:
    """An endpoint judge with a recipe's settings."""
    target = target_of(endpoint_of(session, judge))
    guide = read_guide(session, recipe.constitution)
    return Asking(
        target, guide, with_reason=recipe.with_reason, temperature=recipe.temperature, max_tokens=recipe.max_tokens
    )


def sample_pairs(session: Session, pair_set_id: int, n: int, limit: int | None = None) -> list[PairRow]:
    """Pairs spread evenly over the set (or its first `limit`), the same ones each time."""
    size = min(get(session, PairSet, pair_set_id).n, limit or 2**62)
    first = session.exec(select(sa.func.min(Pair.position)).where(Pair.pair_set_id == pair_set_id)).one() or 0
    places = [first + i * size // min(n, size) for i in range(min(n, size))]
    query = select(Pair.id).where(Pair.pair_set_id == pair_set_id, col(Pair.position).in_(places))
    return read_pairs(session, list(session.exec(query.order_by(col(Pair.position)))))


def orders_of(judge: Judge, recipe: JudgeRecipe) -> tuple[bool, ...]:
    """The orders a judge of this kind is asked in."""
    return (False, True) if recipe.is_both_orders and judge.kind in {"endpoint", "checkpoint"} else (False,)


def try_now(session: Session, judge: Judge, recipe: JudgeRecipe) -> tuple[list[TriedPair], str]:
    """Ten pairs judged in this process, by a rule or an endpoint, and how they were asked."""
    if judge.kind == "rule":
        return try_by_rule(session, judge, recipe), "by the rule: nothing is sent anywhere"
    asking = asking_of(session, judge, recipe)
    pairs = sample_pairs(session, recipe.pair_set, N_TRIED)
    orders = orders_of(judge, recipe)
    session.rollback()  # nothing was written: a slow server must not hold the database's write lock
    return try_by_endpoint(asking, pairs, orders), asking.mode


def try_by_rule(session: Session, judge: Judge, recipe: JudgeRecipe) -> list[TriedPair]:
    """The rule on ten pairs."""
    tried = []
    for pair in sample_pairs(session, recipe.pair_set, N_TRIED):
        opinion = opine_by_rule(pair, judge.settings, recipe.seed)
        tried.append(TriedPair(pair, [TriedCall(opinion)], add_up([opinion])))
    return tried


def try_by_endpoint(asking: Asking, pairs: Sequence[PairRow], orders: Sequence[bool]) -> list[TriedPair]:
    """Asks the endpoint now, within a bounded time. Holds no session: a slow server must block nobody's writes."""
    units = [(pair, order, *asking.request(pair.text, order)) for pair in pairs for order in orders]
    bodies = [body for *_, body in units]
    calls = ask_each(asking.target, bodies, concurrency=10, max_tries=2, timeout_s=TRY_S)

    async def bounded() -> list[ChatAnswer]:
        return await asyncio.wait_for(calls, ALL_S)

    try:
        answers = asyncio.run(bounded())
    except TimeoutError as error:
        raise Unavailable(f"The endpoint did not answer {len(units)} calls within {ALL_S:.0f} s.") from error
    tried: dict[int, list[TriedCall]] = {}
    for (pair, order, known, body), answer in zip(units, answers, strict=True):
        opinion = asking.read(answer.text, known.nonce, order, answer.stop_reason)
        if answer.failure:
            opinion = OpinionValue(order, None, reason=f"no answer after {answer.tries} tries: {answer.failure}")
        tried.setdefault(pair.id, []).append(
            TriedCall(opinion, body["messages"], answer.text, answer.cost_usd, answer.tokens_in, answer.tokens_out)
        )
    return [TriedPair(pair, tried[pair.id], add_up([call.opinion for call in tried[pair.id]])) for pair in pairs]


def forecast(session: Session, project_id: int, judge: Judge, recipe: JudgeRecipe) -> Forecast:
    """Calls, tokens and money of a launch, from the real prompts of a sample of the pairs."""
    n_pairs = min(get(session, PairSet, recipe.pair_set).n, recipe.limit or 2**62)
    orders = orders_of(judge, recipe)
    if judge.kind != "endpoint":
        return Forecast(n_pairs, n_pairs * len(orders))
    asking = asking_of(session, judge, recipe)
    pairs = sample_pairs(session, recipe.pair_set, N_SAMPLED, recipe.limit)
    units = [(pair, order) for pair in pairs for order in orders]
    if not units:
        return Forecast(n_pairs, 0, usd=0.0)
    keys = {asking.sha256(pair.text, order) for pair, order in units}
    known = session.exec(
        select(sa.func.count()).select_from(Call)
        .where(Call.project_id == project_id, Call.sample == 0, Call.state == "answered",
               col(Call.request_sha256).in_(keys))
    ).one()  # fmt: skip
    n_all = n_pairs * len(orders)
    n_known = round(n_all * known / len(keys))
    chars = sum(_chars(asking.request(pair.text, order)[1]["messages"]) for pair, order in units) / len(units)
    n_earlier, per_token, out = _calibrate(session, project_id, asking, recipe)
    tokens_in, tokens_out = (round((n_all - n_known) * each) for each in (chars / per_token, out))
    return Forecast(n_pairs, n_all - n_known, n_known, tokens_in, tokens_out,
                    asking.target.cost_usd(tokens_in, tokens_out), n_earlier)  # fmt: skip


def _chars(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(one["content"]) for one in messages)


def _calibrate(session: Session, project_id: int, asking: Asking, recipe: JudgeRecipe) -> tuple[int, float, float]:
    """(calls it rests on, characters a token, tokens an answer): from this endpoint's newest answers, else by rule."""
    rows = session.exec(
        select(Call, CallText).join(CallText, col(CallText.call_id) == col(Call.id))
        .where(Call.project_id == project_id, Call.state == "answered", Call.tokens_in > 0)
        .order_by(col(Call.id).desc()).limit(50)
    ).all()  # fmt: skip
    mine = [(call, text) for call, text in rows if text.request["body"]["model"] == asking.target.model]
    if not mine:
        guess = (80 if recipe.with_reason else 20) + 12 * len(asking.guide.keys)
        return 0, CHARS_PER_TOKEN, min(guess, recipe.max_tokens)
    chars = sum(_chars(text.request["body"]["messages"]) for _, text in mine)
    tokens_in, tokens_out = (sum(getattr(call, name) for call, _ in mine) for name in ("tokens_in", "tokens_out"))
    return len(mine), chars / tokens_in, tokens_out / len(mine)


def trial_recipe(session: Session, project_id: int, judge: Judge, recipe: JudgeRecipe) -> JudgeRecipe:
    """A judging of ten pairs as a run, for judges that need a worker. Nothing stops it early."""
    name = free_name(session, VerdictSet, project_id, f"trial of {judge.name}"[:100])
    return recipe.model_copy(update={"name": name, "limit": N_TRIED, "max_null": 1.0, "max_truncated": 1.0})
