"""Strict-format adherence: every prompt sampled several times at temperature 1, and once greedily."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlmodel import col, select

from app.benchmarks.recipes import BenchmarkRecipe
from app.db import get
from app.errors import Invalid
from app.prompts.models import Prompt, PromptSet
from app.prompts.strict_format import is_answer_exact, read_strict_format
from worker.benchmark import Batch, Plan, Row
from worker.checkpoints import weights_of
from worker.job import Job
from worker.llm import LocalModel, batch_seed, plan_batches


@dataclass(frozen=True)
class Asked:
    """One completion to be sampled; `sample` is None for the greedy one."""

    prompt: Prompt
    sample: int | None
    is_truncated: bool


def plan_format(job: Job, recipe: BenchmarkRecipe) -> Plan:
    """Batches of prompts of similar length; the greedy pass comes last."""
    with job.read() as session:
        prompt_set = get(session, PromptSet, recipe.prompt_set or 0)
        wanted = select(Prompt).where(Prompt.set_id == prompt_set.id, col(Prompt.split).in_(recipe.splits))
        prompts = list(session.exec(wanted.order_by(col(Prompt.position))).all())[: recipe.limit]
        model = LocalModel(weights_of(session, recipe.checkpoint))
    if not prompts:
        raise Invalid(
            f"The prompt set “{prompt_set.name}” has no prompt in {', '.join(recipe.splits)}: choose other splits."
        )
    job.log(f"{len(prompts):,} prompts × {recipe.samples} samples and a greedy pass; prompts by {model.rendering}")
    cut = {p.id: model.is_too_long(p.messages, recipe.max_new_tokens) for p in prompts}
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": recipe.max_new_tokens}
    sampled = [Asked(p, k, cut[p.id]) for p in prompts for k in range(recipe.samples)]
    greedy = [Asked(p, None, cut[p.id]) for p in prompts]
    batches = _batches(job, model, sampled, decoding) + _batches(job, model, greedy, {**decoding, "temperature": 0.0})
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


def _batches(job: Job, model: LocalModel, asked: list[Asked], decoding: dict[str, Any]) -> list[Batch]:
    lengths = {one.prompt.id: len(model.encode(one.prompt.messages)) for one in asked if not one.sample}
    pieces = plan_batches([lengths[one.prompt.id] for one in asked], job.recipe.batch_size)
    made = []
    for number, places in enumerate(pieces):
        piece = [asked[place] for place in places]
        seed = batch_seed(job.seed, "strict_format", decoding["temperature"], number)
        made.append(Batch(_keys(piece), partial(_score_batch, job, model, piece, decoding, seed)))
    return made


def _metrics(one: Asked) -> list[str]:
    names = ["format"] + ["accuracy"] * (one.prompt.reference is not None)
    return names if one.sample is not None else [f"{name}_greedy" for name in names]


def _keys(piece: list[Asked]) -> frozenset[tuple[str, str, int]]:
    return frozenset((metric, item_of(one.prompt), one.sample or 0) for one in piece for metric in _metrics(one))


def item_of(prompt: Prompt) -> str:
    """The prompt's name in every set that holds it."""
    return prompt.sha256[:16]


def _score_batch(job: Job, model: LocalModel, piece: list[Asked], decoding: dict[str, Any], seed: int) -> list[Row]:
    found = model.sample([one.prompt.messages for one in piece], decoding, seed, job.check)
    job.spend(generated_tokens=sum(sample.n_tokens for sample in found))
    rows = []
    for one, sample in zip(piece, found, strict=True):
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
        rows += [
            Row(
                metric, item_of(prompt), prompt.grp, float(value), prompt.category, one.sample or 0,
                sample.is_prompt_truncated, detail if place == 0 else {},
            )
            for place, (metric, value) in enumerate(zip(_metrics(one), values, strict=True))
        ]  # fmt: skip
    return rows
