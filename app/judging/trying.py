"""“Try on 10 pairs” and the forecast: real prompts, real answers, and the price before a launch."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.chat import ChatAnswer, ask_each
from app.checkpoints.endpoints import target_of
from app.db import get
from app.errors import Unavailable
from app.judging.asking import Asking
from app.judging.deciding import decide, still_missing
from app.judging.judges import endpoint_of, free_name
from app.judging.material import PairRow, read_guides, read_pairs
from app.judging.models import Call, CallText, Judge, VerdictSet
from app.judging.protocol import ASKED, Asked, Protocol, Seat, read_protocol
from app.judging.recipes import JudgeRecipe, members_of
from app.judging.rule import opine_by_rule
from app.judging.verdicts import OpinionValue, VerdictValue
from app.pairs.models import Pair, PairSet
from app.runs.models import Run

N_TRIED = 10
TRY_S = 20.0  # for one try of one call
ALL_S = 60.0  # for the whole trial
N_SAMPLED = 100  # pairs whose prompts a forecast renders
CHARS_PER_TOKEN = 4.0
WRITERS = ("generate", "grading", "revise", "red_team")  # kinds whose calls are answered by text, not by a judge


@dataclass(frozen=True)
class TriedCall:
    """One order of one pair: what was sent, what came back, and how it was read."""

    opinion: OpinionValue
    messages: list[dict[str, str]] = field(default_factory=list)
    raw: str = ""
    cost_usd: float = 0
    tokens_in: int = 0
    tokens_out: int = 0
    judge: str = ""


@dataclass(frozen=True)
class Choice:
    """One way to ask about the principles, and what it would take."""

    principle_calls: str
    overall: str
    n_calls: int
    usd: float | None
    has_local: bool = False  # a local checkpoint is asked: it has no joint answer by principle


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
    n_judges: int = 1


def askings_of(session: Session, seat: Seat, recipe: JudgeRecipe) -> dict[str, Asking]:
    """An endpoint judge with a recipe's settings, one asking for each question."""
    target = target_of(endpoint_of(session, get(session, Judge, seat.judge_id)))
    guides = read_guides(session, recipe.constitution, seat.principles)
    return {
        key: Asking(
            target, guide, with_reason=recipe.with_reason, temperature=recipe.temperature,
            max_tokens=recipe.max_tokens, is_by_log_probs=recipe.label == "log_probs",
        )
        for key, guide in guides.items()
    }  # fmt: skip


def sample_pairs(session: Session, pair_set_id: int, n: int, limit: int | None = None) -> list[PairRow]:
    """Pairs spread evenly over the set (or its first `limit`), the same ones each time."""
    size = min(get(session, PairSet, pair_set_id).n, limit or 2**62)
    first = session.exec(select(sa.func.min(Pair.position)).where(Pair.pair_set_id == pair_set_id)).one() or 0
    places = [first + i * size // min(n, size) for i in range(min(n, size))]
    query = select(Pair.id).where(Pair.pair_set_id == pair_set_id, col(Pair.position).in_(places))
    return read_pairs(session, list(session.exec(query.order_by(col(Pair.position)))))


def try_now(session: Session, judge: Judge, recipe: JudgeRecipe) -> tuple[list[TriedPair], str]:
    """Ten pairs judged in this process, by rules and endpoints, and how they were asked."""
    protocol = read_protocol(session, judge, recipe.model_dump(), recipe.constitution)
    askings = {seat: askings_of(session, seat, recipe) for seat in protocol.seats if seat.kind == "endpoint"}
    rules = {seat: get(session, Judge, seat.judge_id).settings for seat in protocol.seats if seat.kind == "rule"}
    pairs = sample_pairs(session, recipe.pair_set, N_TRIED)
    session.rollback()  # nothing was written: a slow server must not hold the database's write lock
    calls: dict[int, list[TriedCall]] = {pair.id: [] for pair in pairs}
    for seat, settings in rules.items():
        for pair in pairs:
            value = replace(opine_by_rule(pair, settings, recipe.seed), judge_id=seat.judge_id)
            calls[pair.id].append(TriedCall(value, judge=seat.name))
    try:
        asyncio.run(asyncio.wait_for(_ask_all(protocol, askings, pairs, calls), ALL_S))
    except TimeoutError as error:
        raise Unavailable(f"The endpoint did not answer for {len(pairs)} pairs within {ALL_S:.0f} s.") from error
    tried = [
        TriedPair(pair, calls[pair.id], decide(protocol, [one.opinion for one in calls[pair.id]])) for pair in pairs
    ]
    modes = {asking.mode for one in askings.values() for asking in one.values()}
    return tried, "; ".join(sorted(modes)) or "by the rule: nothing is sent anywhere"


async def _ask_all(
    protocol: Protocol, askings: dict[Seat, dict[str, Asking]], pairs: Sequence[PairRow],
    calls: dict[int, list[TriedCall]],
) -> None:  # fmt: skip
    """Asks the endpoints, wave by wave, until each has said what it has to. Holds no session."""
    for seat, mine in askings.items():
        while True:
            wanted = [
                (pair, asked) for pair in pairs
                for asked in still_missing(protocol, seat, [one.opinion for one in calls[pair.id]])
            ]  # fmt: skip
            if not wanted:
                break
            sent = [mine[asked.principle].request(pair.text, asked.is_swapped) for pair, asked in wanted]
            target = mine[wanted[0][1].principle].target
            answers = await ask_each(target, [body for _, body in sent], concurrency=10, max_tries=2, timeout_s=TRY_S)
            for (pair, asked), (known, body), answer in zip(wanted, sent, answers, strict=True):
                value = _read_tried(mine[asked.principle], asked, known.nonce, answer)
                value = replace(value, judge_id=seat.judge_id, sample=asked.sample, principle=asked.principle)
                calls[pair.id].append(
                    TriedCall(value, body["messages"], answer.text, answer.cost_usd, answer.tokens_in,
                              answer.tokens_out, seat.name)
                )  # fmt: skip


def _read_tried(asking: Asking, asked: Asked, nonce: str, answer: ChatAnswer) -> OpinionValue:
    if answer.failure:
        reason = f"no answer after {answer.tries} tries: {answer.failure}"
        return OpinionValue(asked.is_swapped, None, reason=reason)
    request = {"nonce": nonce, "stop_reason": answer.stop_reason, **asking.kept(answer)}
    return asking.read(answer.text, request, asked.is_swapped)


def needs_worker(session: Session, judge: Judge) -> bool:
    """Whether trying a judge loads a local model, which only a worker does."""
    return any(one.kind in {"checkpoint", "reward"} for one in members_of(session, judge))


def forecast(session: Session, project_id: int, judge: Judge, recipe: JudgeRecipe) -> Forecast:
    """Calls, tokens and money of a launch at most, from the real prompts of a sample of the pairs."""
    n_pairs = min(get(session, PairSet, recipe.pair_set).n, recipe.limit or 2**62)
    protocol = read_protocol(session, judge, recipe.model_dump(), recipe.constitution)
    total = Forecast(n_pairs, 0)
    for seat in protocol.seats:
        one = _forecast_seat(session, project_id, seat, recipe, n_pairs)
        usd = one.usd if total.usd is None else total.usd + (one.usd or 0)
        total = Forecast(
            n_pairs, total.n_calls + one.n_calls, total.n_known + one.n_known, total.tokens_in + one.tokens_in,
            total.tokens_out + one.tokens_out, usd, max(total.n_calibrated, one.n_calibrated),
            len(protocol.seats),
        )  # fmt: skip
    return total


def _forecast_seat(session: Session, project_id: int, seat: Seat, recipe: JudgeRecipe, n_pairs: int) -> Forecast:
    n_each = len(seat.orders) * len(seat.principles) * seat.n_votes
    if seat.kind != "endpoint":
        return Forecast(n_pairs, n_pairs * n_each)
    askings = askings_of(session, seat, recipe)
    pairs = sample_pairs(session, recipe.pair_set, N_SAMPLED, recipe.limit)
    units = [(pair, order, asking) for pair in pairs for order in seat.orders for asking in askings.values()]
    if not units:
        return Forecast(n_pairs, 0, usd=0.0)
    keys = {asking.sha256(pair.text, order) for pair, order, asking in units}
    known = session.exec(
        select(sa.func.count()).select_from(Call)
        .where(Call.project_id == project_id, Call.sample < seat.n_votes, Call.state == "answered",
               col(Call.request_sha256).in_(keys))
    ).one()  # fmt: skip
    n_all = n_pairs * n_each
    n_known = round(n_all * known / (len(keys) * seat.n_votes))
    chars = sum(chars_of(one.request(pair.text, order)[1]["messages"]) for pair, order, one in units) / len(units)
    asking = next(iter(askings.values()))
    guess = (80 if recipe.with_reason else 20) + 12 * len(asking.guide.keys)
    n_earlier, per_token, out = calibrate(session, project_id, asking.target.model, min(guess, recipe.max_tokens))
    tokens_in, tokens_out = (round((n_all - n_known) * each) for each in (chars / per_token, out))
    return Forecast(n_pairs, n_all - n_known, n_known, tokens_in, tokens_out,
                    asking.target.cost_usd(tokens_in, tokens_out), n_earlier)  # fmt: skip


def compare_choices(session: Session, project_id: int, judge: Judge, recipe: JudgeRecipe) -> list[Choice]:
    """What each way to ask about the principles would cost: jointly, and one by one."""
    if recipe.constitution is None or not any(one.kind in ASKED for one in members_of(session, judge)):
        return []
    found, has_local = [], any(one.kind == "checkpoint" for one in members_of(session, judge))
    for calls, overall in (("joint", "holistic"), ("separate", "weighted"), ("separate", "holistic")):
        other = recipe.model_copy(update={"principle_calls": calls, "overall": overall})
        price = forecast(session, project_id, judge, other)
        found.append(Choice(calls, overall, price.n_calls, price.usd, has_local))
    return found


def chars_of(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(one["content"]) for one in messages)


def calibrate(
    session: Session, project_id: int, model: str, guess: float, field: str = "verdict"
) -> tuple[int, float, float]:
    """(calls it rests on, characters a token, tokens an answer): from this model's newest answers, else by rule.

    Only answers to the same kind of question count: those whose request asks for this field.
    """
    rows = session.exec(
        select(Call, CallText).join(CallText, col(CallText.call_id) == col(Call.id))
        .join(Run, col(Run.id) == col(Call.run_id))
        .where(Call.project_id == project_id, Call.state == "answered", Call.tokens_in > 0,
               col(Run.kind).not_in(WRITERS))
        .order_by(col(Call.id).desc()).limit(50)
    ).all()  # fmt: skip
    bodies = [(call, text.request["body"], text) for call, text in rows]
    mine = [
        (call, text) for call, body, text in bodies
        if body["model"] == model and f'"{field}": ' in body["messages"][-1]["content"]
    ]  # fmt: skip
    if not mine:
        return 0, CHARS_PER_TOKEN, guess
    chars = sum(chars_of(text.request["body"]["messages"]) for _, text in mine)
    tokens_in, tokens_out = (sum(getattr(call, name) for call, _ in mine) for name in ("tokens_in", "tokens_out"))
    return len(mine), chars / tokens_in, tokens_out / len(mine)


def trial_recipe(session: Session, project_id: int, judge: Judge, recipe: JudgeRecipe) -> JudgeRecipe:
    """A judging of ten pairs as a run, for judges that need a worker. Nothing stops it early."""
    name = free_name(session, VerdictSet, project_id, f"trial of {judge.name}"[:100])
    return recipe.model_copy(update={"name": name, "limit": N_TRIED, "max_null": 1.0, "max_truncated": 1.0})
