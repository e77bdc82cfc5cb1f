"""Strict-format adherence: every prompt sampled several times at temperature 1, and once greedily."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlmodel import col, select

from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.arms import put_before
from app.db import get
from app.errors import Invalid
from app.prompts.models import Prompt, PromptSet
from app.prompts.strict_format import is_answer_exact, read_strict_format
from worker.benchmark import Batch, Plan, Row
from worker.checkpoints import weights_of
from worker.job import Job
from worker.llm import LocalModel, RewardScorer, Sample, batch_seed, plan_batches


@dataclass(frozen=True)
class Asked:
    """One completion to be sampled; `sample` is None for the greedy one."""

    prompt: Prompt
    sample: int | None
    is_truncated: bool


@dataclass(frozen=True)
class Models:
    """Who writes, what stands before each prompt, and who scores what was written (to the prompt alone)."""

    writer: LocalModel
    scorer: RewardScorer | None
    preamble: list[dict[str, str]]

    def asked(self, prompt: Prompt) -> list[dict[str, str]]:
        """What the writer reads."""
        return put_before(self.preamble, prompt.messages)


def plan_format(job: Job, recipe: BenchmarkRecipe) -> Plan:
    """Batches of prompts of similar length; the greedy pass comes last."""
    with job.read() as session:
        prompt_set = get(session, PromptSet, recipe.prompt_set or 0)
        wanted = select(Prompt).where(Prompt.set_id == prompt_set.id, col(Prompt.split).in_(recipe.splits))
        prompts = list(session.exec(wanted.order_by(col(Prompt.position))).all())[: recipe.limit]
        checkpoint, preamble = recipe.subject(session)
        model = LocalModel(weights_of(session, checkpoint))
        scorer = RewardScorer(weights_of(session, recipe.scorer)) if recipe.scorer is not None else None
        models = Models(model, scorer, preamble)
    if not prompts:
        raise Invalid(
            f"The prompt set “{prompt_set.name}” has no prompt in {', '.join(recipe.splits)}: choose other splits."
        )
    job.log(f"{len(prompts):,} prompts × {recipe.samples} samples and a greedy pass; prompts by {model.rendering}")
    cut = {p.id: model.is_too_long(models.asked(p), recipe.max_new_tokens) for p in prompts}
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": recipe.max_new_tokens}
    sampled = [Asked(p, k, cut[p.id]) for p in prompts for k in range(recipe.samples)]
    greedy = [Asked(p, None, cut[p.id]) for p in prompts]
    batches = _batches(job, models, sampled, decoding)
    batches += _batches(job, replace(models, scorer=None), greedy, {**decoding, "temperature": 0.0})
    return Plan(
        settings={
            "prompts_sha256": prompt_set.sha256,
            "splits": sorted(recipe.splits),
            "limit": recipe.limit,
            "n_items": len(prompts),
            "samples": recipe.samples,
            "max_new_tokens": recipe.max_new_tokens,
            "temperature": 1.0,
        },
        decoding=decoding,
        batches=batches,
        n_truncated=sum(cut.values()),
        n_items=len(prompts),
    )


def _batches(job: Job, models: Models, asked: list[Asked], decoding: dict[str, Any]) -> list[Batch]:
    lengths = {one.prompt.id: len(models.writer.encode(models.asked(one.prompt))) for one in asked if not one.sample}
    pieces = plan_batches([lengths[one.prompt.id] for one in asked], job.recipe.batch_size)
    made = []
    for number, places in enumerate(pieces):
        piece = [asked[place] for place in places]
        seed = batch_seed(job.seed, "strict_format", decoding["temperature"], number)
        made.append(Batch(_keys(piece, models), partial(_score_batch, job, models, piece, decoding, seed)))
    return made


def _metrics(one: Asked) -> list[str]:
    names = ["format"] + ["accuracy"] * (one.prompt.reference is not None)
    return names if one.sample is not None else [f"{name}_greedy" for name in names]


def _keys(piece: list[Asked], models: Models) -> frozenset[tuple[str, str, int]]:
    more = ["reward"] if models.scorer else []
    return frozenset((metric, item_of(one.prompt), one.sample or 0) for one in piece for metric in _metrics(one) + more)


def item_of(prompt: Prompt) -> str:
    """The prompt's name in every set that holds it."""
    return prompt.sha256[:16]


def _score_batch(job: Job, models: Models, piece: list[Asked], decoding: dict[str, Any], seed: int) -> list[Row]:
    found = models.writer.sample([models.asked(one.prompt) for one in piece], decoding, seed, job.check)
    job.spend(generated_tokens=sum(sample.n_tokens for sample in found))
    prompts = [one.prompt.messages for one in piece]
    rewards = models.scorer.score(prompts, [sample.text for sample in found]) if models.scorer else None
    rows = []
    for place, (one, sample) in enumerate(zip(piece, found, strict=True)):
        rows += _rows(one, sample)
        if rewards is not None:
            prompt = one.prompt
            rows.append(
                Row("reward", item_of(prompt), prompt.grp, rewards[place], prompt.category, one.sample or 0,
                    sample.is_prompt_truncated)
            )  # fmt: skip
    return rows


def _rows(one: Asked, sample: Sample) -> list[Row]:
    """Format and exact answer of one completion; the words are kept once, with the format."""
    prompt = one.prompt
    values = [read_strict_format(sample.text).is_strict]
    if prompt.reference is not None:
        values.append(is_answer_exact(sample.text, prompt.reference))
    detail = {
        "prompt": prompt.text,
        "completion": sample.text,
        "reference": prompt.reference,
        "n_tokens": sample.n_tokens,
        "stop_reason": sample.stop_reason,
    }
    return [
        Row(
            metric, item_of(prompt), prompt.grp, float(value), prompt.category, one.sample or 0,
            sample.is_prompt_truncated, detail if place == 0 else {},
        )
        for place, (metric, value) in enumerate(zip(_metrics(one), values, strict=True))
    ]  # fmt: skip
