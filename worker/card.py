"""The Judge Card: probe pairs made of the project's own, judged like any others, and what their verdicts add up to.

The probes are real rows in a hidden (archived) pair set, so they go through the same asking, ledger, cache and reading
as the labels do. What was planned stands in the card's row from the start, so a resumed run goes on with the same.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import get, now
from app.errors import AppError
from app.judging.judges import free_name
from app.judging.material import PairRow, chunks, read_pairs
from app.judging.models import CallText, Judge, Opinion, Verdict, VerdictSet
from app.judging.reading import read_verdict
from app.pairs.models import Completion, Pair, PairSet
from app.review.card_lines import Judged, Line, Reading, make_lines, verdict_of
from app.review.card_recipes import CardRecipe
from app.review.cards import People, read_people
from app.review.models import JudgeCard
from worker.card_probes import Probe, plan_probes, without
from worker.job import Job
from worker.judge import judge_set

SHOWN = 2  # examples a probe
LONGEST = 2_000  # characters of a text in an example


def make_card(job: Job) -> None:
    """Plans the probes, has them judged, and writes the card."""
    recipe: CardRecipe = job.recipe
    with job.write() as session:
        card = _open(session, job, recipe)
        card_id, pair_set_id, plan = card.id, card.protocol["probes"], list(card.probes)
    if card.n:
        return  # an attempt before this one got to the end
    name = f"Judge Card {card_id}: probes"
    verdict_set_id = judge_set(job, recipe.judging(pair_set_id), name=name, is_hidden=True)
    with job.read() as session:
        judge = get(session, Judge, recipe.judge)
        people = read_people(session, recipe.pair_set, recipe.audit)
        judged = read_judged(session, verdict_set_id, plan, judge, people)
        verdict_set = get(session, VerdictSet, verdict_set_id)
        prompts = _prompts(session, plan)
    lines = make_lines(judged, recipe.limits, judge.kind, verdict_set.protocol["is_both_orders"], recipe.seed)
    with job.write() as session:
        card = get(session, JudgeCard, card_id)
        card.lines = [line.stored() for line in lines]
        card.probes = choose_examples(judged, prompts)
        card.is_passed, card.n = verdict_of(lines), len(judged)
        n_people = sum(one.people is not None for one in judged)
        card.protocol = card.protocol | verdict_set.protocol | {
            "verdict_set": verdict_set_id, "n_people": n_people, "is_simulated": people.is_simulated and n_people > 0
        }  # fmt: skip
        session.add(card)
    job.log(_said(lines))


def _open(session: Session, job: Job, recipe: CardRecipe) -> JudgeCard:
    """The run's card with its plan and hidden pairs: those an earlier attempt made, else new ones."""
    known = session.exec(select(JudgeCard).where(JudgeCard.run_id == job.run_id)).first()
    if known is not None:
        return known
    people = read_people(session, recipe.pair_set, recipe.audit)
    pairs = read_pairs(session, _sample(session, recipe, people))
    plan = plan_probes(pairs, recipe.n, recipe.seed)
    source = get(session, PairSet, recipe.pair_set)
    hidden = PairSet(
        project_id=job.project_id, prompt_set_id=source.prompt_set_id, n=len(plan), run_id=job.run_id,
        name=free_name(session, PairSet, job.project_id, f"Judge Card probes of run {job.run_id}"), archived_at=now(),
    )  # fmt: skip
    session.add(hidden)
    session.flush()
    _store_pairs(session, job, hidden.id, plan)
    kept = [{"key": one.key, "of": one.of, "aim": one.aim, "payload": one.payload} for one in plan]
    card = JudgeCard(
        project_id=job.project_id, judge_id=recipe.judge, constitution_id=recipe.constitution,
        pair_set_id=recipe.pair_set, run_id=job.run_id, limits=recipe.limits, probes=kept,
        protocol={"probes": hidden.id, "audit": recipe.audit},
    )  # fmt: skip
    session.add(card)
    session.flush()
    job.made(session, "judge_card", card.id)
    return card


def _sample(session: Session, recipe: CardRecipe, people: People) -> list[int]:
    """The own pairs: audited ones first, then others, both at random. Raises AppError where a set is empty."""
    every = list(session.exec(select(Pair.id).where(Pair.pair_set_id == recipe.pair_set).order_by(col(Pair.id))))
    if not every:
        raise AppError("This pair set is empty: there is nothing to make probes of.")
    draw = random.Random(recipe.seed)
    draw.shuffle(every)
    every.sort(key=lambda pair: pair not in people.labels)  # stable: the order within both is the drawn one
    return every[: recipe.n_own]


def _store_pairs(session: Session, job: Job, hidden_id: int, plan: Sequence[Probe]) -> None:
    """The probes as pairs: own completions are the very rows, texts that were made become rows of their own."""
    arm = find_or_make_imported_arm(session, job.project_id, "Judge Card probes")
    rows = {
        pair.id: pair for ids in chunks(sorted({one.of for one in plan}), 500)
        for pair in session.exec(select(Pair).where(col(Pair.id).in_(ids)))
    }  # fmt: skip
    samples: Counter[int] = Counter()
    made: list[Completion] = []
    for probe in plan:
        for text in (probe.a, probe.b):
            if text is not None:
                prompt_id = rows[probe.of].prompt_id
                made.append(
                    Completion(
                        prompt_id=prompt_id, arm_id=arm.id, run_id=job.run_id, sample=samples[prompt_id],
                        text=text, stop_reason="imported",
                    )
                )  # fmt: skip
                samples[prompt_id] += 1
    session.add_all(made)
    session.flush()
    written = iter(made)
    for position, probe in enumerate(plan):
        row = rows[probe.of]
        a = row.a_id if probe.a is None else next(written).id
        b = row.b_id if probe.b is None else next(written).id
        session.add(Pair(pair_set_id=hidden_id, position=position, prompt_id=row.prompt_id, a_id=a, b_id=b))


def read_judged(
    session: Session, verdict_set_id: int, plan: Sequence[dict[str, Any]], judge: Judge, people: People
) -> list[Judged]:
    """Every probe pair with its verdict and readings, in the plan's order."""
    a, b = aliased(Completion), aliased(Completion)
    columns: list[Any] = [Verdict, Pair.position, Pair.prompt_id, a.text, b.text]
    rows = session.execute(
        sa.select(*columns)
        .select_from(Verdict)
        .join(Pair, col(Pair.id) == col(Verdict.pair_id))
        .join(a, col(a.id) == col(Pair.a_id))
        .join(b, col(b.id) == col(Pair.b_id))
        .where(col(Verdict.verdict_set_id) == verdict_set_id)
        .order_by(col(Pair.position))
    ).all()
    readings = _readings(session, verdict_set_id, {row[0].pair_id: plan[row[1]]["payload"] for row in rows})
    own = own_sides(session, judge, [one["of"] for one in plan if one["key"] == "own"])
    found = []
    for verdict, position, prompt_id, text_a, text_b in rows:
        planned = plan[position]
        is_own = planned["key"] == "own"
        found.append(
            Judged(
                key=planned["key"], of=planned["of"], prompt=prompt_id, a=text_a, b=text_b, outcome=verdict.outcome,
                is_flip=verdict.is_flip, p_a=verdict.p_a, aim=planned["aim"],
                people=people.labels.get(planned["of"]) if is_own else None,
                own=own.get(planned["of"], "") if is_own else "", readings=readings.get(verdict.pair_id, ()),
            )
        )  # fmt: skip
    return found


def _readings(session: Session, verdict_set_id: int, payloads: dict[int, str]) -> dict[int, list[Reading]]:
    """Opinions by pair. An answer is read once more without what it quotes of the attack: it must say the same."""
    found: dict[int, list[Reading]] = {}
    query = (
        select(Opinion, CallText)
        .outerjoin(CallText, col(CallText.call_id) == col(Opinion.call_id))
        .where(Opinion.verdict_set_id == verdict_set_id)
        .order_by(col(Opinion.id))
    )
    for opinion, text in session.exec(query):
        is_injected = False
        payload = payloads.get(opinion.pair_id, "")
        if text is not None and payload and opinion.choice is not None:
            nonce, stop_reason = text.request["nonce"], text.request.get("stop_reason", "stop")
            bare = without(text.raw, payload)
            is_injected = bare != text.raw and (
                read_verdict(bare, nonce, stop_reason=stop_reason).choice
                != read_verdict(text.raw, nonce, stop_reason=stop_reason).choice
            )
        is_answer = text is not None
        found.setdefault(opinion.pair_id, []).append(
            Reading(opinion.is_swapped, opinion.choice, opinion.reason, is_answer, is_answer, is_injected)
        )
    return found


def own_sides(session: Session, judge: Judge, pair_ids: Sequence[int]) -> dict[int, str]:
    """pair → the side that the judge's own model wrote, where it wrote just one of them."""
    if judge.checkpoint_id is not None and judge.kind == "checkpoint":
        mine: Any = col(Arm.checkpoint_id) == get(session, Checkpoint, judge.checkpoint_id).id
    elif judge.endpoint_id is not None:
        endpoint = get(session, Endpoint, judge.endpoint_id)
        same = select(Endpoint.id).where(Endpoint.origin == endpoint.origin, Endpoint.model == endpoint.model)
        mine = col(Arm.endpoint_id).in_(same)
    else:
        return {}
    a, b = aliased(Completion), aliased(Completion)
    by_me = sa.select(col(Arm.id)).where(mine)
    found: dict[int, str] = {}
    for ids in chunks(pair_ids, 500):
        rows = session.execute(
            sa.select(col(Pair.id), col(a.arm_id).in_(by_me), col(b.arm_id).in_(by_me))
            .join(a, col(a.id) == col(Pair.a_id))
            .join(b, col(b.id) == col(Pair.b_id))
            .where(col(Pair.id).in_(ids))
        )
        found |= {pair: "a" if is_a else "b" for pair, is_a, is_b in rows if bool(is_a) != bool(is_b)}
    return found


def _prompts(session: Session, plan: Sequence[dict[str, Any]]) -> dict[int, str]:
    """pair → its prompt as text."""
    found: dict[int, str] = {}
    for ids in chunks(sorted({one["of"] for one in plan}), 500):
        pairs: list[PairRow] = read_pairs(session, ids)
        found |= {pair.id: pair.text.prompt for pair in pairs}
    return found


AGAINST: dict[str, Callable[[Judged], bool]] = {
    "own": lambda one: one.is_flip,
    "twin": lambda one: one.outcome != "tie",
    "constant": lambda one: one.outcome == one.aim,
    "attack": lambda one: one.outcome == one.aim or any(said.is_injected for said in one.readings),
    "list": lambda one: one.outcome == one.aim,
}


def choose_examples(judged: Sequence[Judged], prompts: dict[int, str]) -> list[dict[str, Any]]:
    """A few probes of each kind, those that speak against the judge first."""
    shown: list[dict[str, Any]] = []
    for key, is_against in AGAINST.items():
        mine = [(not is_against(one), one) for one in judged if one.key == key]
        mine.sort(key=lambda found: found[0])
        shown += [_example(one, not is_well, prompts[one.of]) for is_well, one in mine[:SHOWN]]
    return shown


def _example(one: Judged, is_against: bool, prompt: str) -> dict[str, Any]:
    readings = [
        {"is_swapped": said.is_swapped, "choice": said.choice, "reason": said.reason[:LONGEST]} for said in one.readings
    ]
    return {
        "key": one.key, "is_against": is_against, "prompt": prompt[:LONGEST], "a": one.a[:LONGEST],
        "b": one.b[:LONGEST], "aim": one.aim, "outcome": one.outcome, "of": one.of, "readings": readings,
    }  # fmt: skip


def _said(lines: Sequence[Line]) -> str:
    gated = [f"{line.name.lower()}: {line.state}" for line in lines if line.is_gated]
    result = {True: "passed", False: "failed", None: "undecided"}[verdict_of(lines)]
    return f"the card is {result}; {', '.join(gated)}"
