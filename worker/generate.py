"""Completions of one arm or two, and the pairs made of them.

What is to be written is fixed before the start: prompts by hash, batches by length, each batch with its own seed. A
batch is stored whole, so a resumed run writes exactly what is missing, with the same texts as if it had never stopped.
An endpoint is asked through the call ledger: each answer is stored with its completion, and none is paid for twice.
"""

import gc
import hashlib
import itertools
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa
import torch
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_arm, put_before
from app.checkpoints.chat import Target
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.checkpoints.naming import store_named
from app.db import get
from app.errors import AppError, Invalid
from app.grading.recipes import GradingRecipe
from app.pairs.asking import ask_for_completion
from app.pairs.models import Completion, Pair, PairSet
from app.pairs.recipes import GenerateRecipe, Split
from app.prompts.models import Prompt, PromptSet
from app.prompts.strict_format import score_by_rule
from worker.checkpoints import weights_of
from worker.job import Job, turns_of
from worker.ledger import Known, Limits, Unit, ask_all_of, writing_cost
from worker.llm import LocalModel, RewardScorer, Sample, batch_seed, plan_batches
from worker.vllm_model import VllmModel

CHUNK = 500
SHOWN = 6  # completions on the run's film strip


class TooManyTruncated(AppError):
    """Too many prompts do not fit the context beside their completion."""

    status_code = 422


@dataclass(frozen=True)
class Item:
    """One completion to be written."""

    prompt: Prompt
    sample: int


def generate_pairs(job: Job) -> None:
    """Samples what is missing, then pairs what is there."""
    recipe: GenerateRecipe = job.recipe
    prompts = pick_prompts(job, recipe, recipe.limit)
    arms = _arms(job, recipe)
    write_completions(job, arms, [Item(prompt, sample) for prompt in prompts for sample in range(recipe.samples)])
    if recipe.pairing != "none":
        make_pairs(job, recipe, prompts, arms)


def write_completions(job: Job, arms: Sequence[Arm], items: list[Item]) -> None:
    """Writes each arm's completion of each item that this run has not stored; the recipe says the batch size."""
    total = len(items) * len(arms)
    for place, arm in enumerate(arms):
        missing = _missing(job, items, arm)
        done = (place + 1) * len(items) - len(missing)
        if missing and arm.endpoint_id is not None:
            _ask_endpoint(job, arm, missing, done, total)
        elif missing:
            _sample_locally(job, arm, items, missing, done, total)
        job.progress((place + 1) * len(items), total, arm.name)
    with job.write() as session:
        for arm in arms:
            job.made(session, "arm", arm.id, arm.sha256)


class OfPrompts(Protocol):
    """A recipe that names prompts and their splits."""

    prompt_set: int
    splits: list[Split]


def pick_prompts(job: Job, recipe: OfPrompts, limit: int | None) -> list[Prompt]:
    """The prompts of the recipe's splits; with a limit those of the lowest hash, so that no part is missed."""
    with job.read() as session:
        chosen = select(Prompt).where(Prompt.set_id == recipe.prompt_set, col(Prompt.split).in_(recipe.splits))
        prompts = list(session.exec(chosen.order_by(col(Prompt.position))).all())
        name = get(session, PromptSet, recipe.prompt_set).name
    if not prompts:
        raise Invalid(f"The prompt set “{name}” has no prompt in {', '.join(recipe.splits)}: choose other splits.")
    if limit and limit < len(prompts):
        by_hash = sorted(prompts, key=lambda p: hashlib.sha256(f"{job.seed}\0{p.sha256}".encode()).digest())
        prompts = sorted(by_hash[:limit], key=lambda p: p.position)
    return prompts


def _arms(job: Job, recipe: GenerateRecipe) -> list[Arm]:
    decoding = recipe.decoding.model_dump()
    with job.write() as session:
        for key in (recipe.checkpoint, recipe.other_checkpoint):
            if key is not None and get(session, Checkpoint, key).role != "policy":
                raise Invalid(
                    f"Checkpoint {key} is a reward model, which scores texts and writes none: choose a policy."
                )
        arms = [
            find_or_make_arm(
                session, job.project_id, checkpoint=recipe.checkpoint, endpoint=recipe.endpoint, system=recipe.system,
                few_shot=recipe.turns(), decoding=decoding,
            )
        ]  # fmt: skip
        if recipe.other_checkpoint is not None:
            arms.append(
                find_or_make_arm(
                    session, job.project_id, checkpoint=recipe.other_checkpoint, system=recipe.system,
                    few_shot=recipe.turns(), decoding=decoding,
                )
            )  # fmt: skip
    if len(arms) == 2 and arms[0].id == arms[1].id:
        raise Invalid(
            "The two checkpoints are the same: choose another one to pair with.", {"other_checkpoint": ["the same"]}
        )
    return arms


def _missing(job: Job, items: list[Item], arm: Arm) -> list[Item]:
    """What this run has not stored yet."""
    with job.read() as session:
        rows = session.execute(
            sa.select(col(Completion.prompt_id), col(Completion.sample)).where(
                col(Completion.run_id) == job.run_id, col(Completion.arm_id) == arm.id
            )
        )
        stored = {(prompt_id, sample) for prompt_id, sample in rows}
    return [item for item in items if (item.prompt.id, item.sample) not in stored]


def _sample_locally(job: Job, arm: Arm, items: list[Item], missing: list[Item], done: int, total: int) -> None:
    recipe: GenerateRecipe | GradingRecipe = job.recipe
    n_new = int(arm.decoding["max_new_tokens"])
    with job.read() as session:
        weights = weights_of(session, arm.checkpoint_id or 0)
    is_vllm = isinstance(recipe, GenerateRecipe) and recipe.backend == "vllm"
    model = VllmModel(weights) if is_vllm else LocalModel(weights)
    job.log(f"{arm.name}: prompts by {model.rendering}")
    texts = {item.prompt.id: put_before(arm.preamble, item.prompt.messages) for item in items}
    lengths = {key: len(model.encode(messages)) for key, messages in texts.items()}
    n_truncated = sum(n > model.context - n_new for n in lengths.values())
    check_truncated(n_truncated, len(texts), recipe.max_truncated, n_new, model.context)
    wanted = {(item.prompt.id, item.sample) for item in missing}
    # The plan is made of all items, stored or not, so that it is the same whenever the run is taken up again.
    for number, places in enumerate(plan_batches([lengths[item.prompt.id] for item in items], recipe.batch_size)):
        batch = [items[place] for place in places]
        if wanted.isdisjoint((item.prompt.id, item.sample) for item in batch):
            continue
        job.progress(done, total, arm.name)
        messages = [texts[item.prompt.id] for item in batch]
        samples = model.sample(messages, arm.decoding, batch_seed(job.seed, arm.sha256, number), job.check)
        if done == 0:
            shown = list(zip(messages, samples, strict=True))[:SHOWN]
            job.sampled(0, [(model.render(asked), one.text, None, turns_of(asked)) for asked, one in shown])
        _store(job, arm, list(zip(batch, samples, strict=True)))
        done += len(batch)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_truncated(n_truncated: int, n: int, max_truncated: float, n_new: int, context: int) -> None:
    """Raises TooManyTruncated before anything is generated."""
    if n_truncated > max_truncated * n:
        raise TooManyTruncated(
            f"{n_truncated:,} of {n:,} prompts ({n_truncated / n:.0%}) do not fit the context of {context:,} tokens "
            f"beside {n_new:,} new ones and would lose their beginning; at most "
            f"{max_truncated:.0%} may. Choose shorter prompts, fewer new tokens, or allow a larger share."
        )


def _store(job: Job, arm: Arm, written: Sequence[tuple[Item, Sample]]) -> None:
    with job.write() as session:
        _add(session, job, arm, written)
    job.spend(generated_tokens=sum(one.n_tokens for _, one in written))


def _add(session: Session, job: Job, arm: Arm, written: Sequence[tuple[Item, Sample]]) -> None:
    session.add_all(
        Completion(
            prompt_id=item.prompt.id, arm_id=arm.id, run_id=job.run_id, sample=item.sample, text=one.text,
            n_tokens=one.n_tokens, stop_reason=one.stop_reason, is_prompt_truncated=one.is_prompt_truncated,
        )
        for item, one in written
    )  # fmt: skip


class Asking:
    """What the call ledger asks an endpoint: the missing completions of one arm.

    Each is stored in the transaction that holds its answer.
    """

    def __init__(self, job: Job, arm: Arm, target: Target, missing: Sequence[Item], done: int, total: int) -> None:
        self.job, self.arm, self.target, self.done, self.total = job, arm, target, done, total
        self._left = deque(missing)
        self.failures: list[str] = []

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """The next completions."""
        return [self._unit(self._left.popleft()) for _ in range(min(n, len(self._left)))]

    def _unit(self, item: Item) -> Unit:
        key, body = ask_for_completion(self.target, self.arm.preamble, self.arm.decoding, item.prompt, self.job.seed)
        return Unit(
            key, lambda: (body, {}), lambda known: (item, known), item.sample,
            lambda answer: {"tokens_out": answer.tokens_out},
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether every completion was asked for."""
        return not self._left

    @property
    def how_far(self) -> str:
        """For messages."""
        return f"{self.done:,} of {self.total:,} completions are written"

    def store(self, session: Session, found: list[tuple[Item, Known]]) -> None:
        """Writes completions in the transaction that holds their answers."""
        good = [(item, _as_sample(known)) for item, known in found if not known.failure]
        self.failures += [known.failure for _, known in found if known.failure]
        _add(session, self.job, self.arm, good)
        self.done += len(good)

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """Moves the bar."""
        failed = f" · {len(self.failures)} calls failed" if self.failures else ""
        self.job.progress(self.done, self.total, f"{self.arm.name} · ${spent_usd:.4f}{failed}")


def _ask_endpoint(job: Job, arm: Arm, missing: list[Item], done: int, total: int) -> None:
    with job.read() as session:
        target = target_of(get(session, Endpoint, arm.endpoint_id or 0))
    work = Asking(job, arm, target, missing, done, total)
    ask_all_of(job, target, work, Limits(job.recipe.budget_usd), writing_cost)
    if work.failures:
        raise AppError(
            f"{len(work.failures):,} of {len(missing):,} calls failed; the last one: {work.failures[-1]}. What arrived "
            "is stored: resume this run to ask for the rest."
        )


def _as_sample(known: Known) -> Sample:
    said = str(known.request["stop_reason"])
    stop_reason = {"length": "length", "content_filter": "refused"}.get(said, "stop")
    return Sample(known.raw, int(known.request["tokens_out"]), stop_reason, False)


# ------------------------------------------------------------------------------------------------------------ pairs


def make_pairs(job: Job, recipe: GenerateRecipe, prompts: list[Prompt], arms: list[Arm]) -> None:
    """Pairs the stored completions; the same completions and seed give the same pairs."""
    with job.read() as session:
        rows = select(Completion).where(Completion.run_id == job.run_id)
        written: dict[tuple[int, int], list[Completion]] = {}
        for one in session.exec(rows.order_by(col(Completion.sample))):
            written.setdefault((one.prompt_id, one.arm_id), []).append(one)
    scores = _scores(job, prompts, written) if recipe.pairing == "best_worst" else {}
    found = []
    for prompt in prompts:
        sides = [written[prompt.id, arm.id] for arm in arms]
        rng = random.Random(f"{job.seed} pairs {prompt.sha256}")
        found += [(prompt.id, a.id, b.id) for a, b in pick_pairs(sides, recipe, scores, rng)]
    if not found:
        raise Invalid(
            "No pair could be made: the completions of every prompt are equal. Sample at a higher temperature."
        )
    n_short = len(prompts) * recipe.pairs_per_prompt - len(found)
    if n_short:
        job.log(f"{n_short:,} pairs fewer than asked for: identical texts, or equal scores, make no pair")
    _store_pairs(job, recipe, found)


def pick_pairs(
    sides: Sequence[Sequence[Completion]], recipe: GenerateRecipe, scores: Mapping[int, float], rng: random.Random
) -> list[tuple[Completion, Completion]]:
    """At most `pairs_per_prompt` pairs of one prompt's completions (a list for each arm); sides are drawn.

    Completions of the same text make no pair, and no two pairs hold the same two texts.
    """
    if recipe.pairing == "across":
        possible = list(itertools.product(sides[0], sides[1]))
        rng.shuffle(possible)
    elif recipe.pairing == "best_worst":
        ranked = sorted((one for side in sides for one in side), key=lambda one: (-scores[one.id], one.id))
        ends = zip(ranked, reversed(ranked), strict=True)
        possible = [(best, worst) for best, worst in ends if scores[best.id] > scores[worst.id]]
    else:
        possible = [two for side in sides for two in itertools.combinations(side, 2)]
        rng.shuffle(possible)
    picked, seen = [], set()
    for one, other in possible:
        texts = frozenset((one.text.strip(), other.text.strip()))
        if len(texts) == 2 and texts not in seen:
            seen.add(texts)
            picked.append((one, other) if rng.random() < 0.5 else (other, one))
    return picked[: recipe.pairs_per_prompt]


def _scores(job: Job, prompts: list[Prompt], written: dict[tuple[int, int], list[Completion]]) -> dict[int, float]:
    """Completion → score, by the reward model, else by the strict format alone (never by the gold answer)."""
    messages = {prompt.id: prompt.messages for prompt in prompts}
    rows = [one for completions in written.values() for one in completions]
    if job.recipe.scorer is None:
        return {one.id: score_by_rule(one.text, None) for one in rows}
    with job.read() as session:
        scorer = RewardScorer(weights_of(session, job.recipe.scorer))
    scores: dict[int, float] = {}
    for start in range(0, len(rows), CHUNK):
        job.progress(start, len(rows), "scoring completions")
        chunk = rows[start : start + CHUNK]
        found = scorer.score([messages[one.prompt_id] for one in chunk], [one.text for one in chunk])
        scores |= {one.id: score for one, score in zip(chunk, found, strict=True)}
    return scores


def _store_pairs(job: Job, recipe: GenerateRecipe, found: list[tuple[int, int, int]]) -> None:
    with job.write() as session:
        row = session.exec(select(PairSet).where(PairSet.run_id == job.run_id)).first()
        if row is None:
            row = PairSet(project_id=job.project_id, name="", prompt_set_id=recipe.prompt_set, run_id=job.run_id)
            store_named(session, row, recipe.name or f"pairs of run {job.run_id}")
        set_id = row.id
        stored = sa.select(sa.func.count()).where(col(Pair.pair_set_id) == set_id)
        done = int(session.execute(stored).scalar_one())
    for start in range(done, len(found), CHUNK):
        with job.write() as session:
            session.add_all(
                Pair(pair_set_id=set_id, position=position, prompt_id=prompt_id, a_id=a_id, b_id=b_id)
                for position, (prompt_id, a_id, b_id) in enumerate(found[start : start + CHUNK], start)
            )
        job.progress(min(start + CHUNK, len(found)), len(found), "storing pairs")
    with job.write() as session:
        get(session, PairSet, set_id).n = len(found)
        job.made(session, "pair_set", set_id)
