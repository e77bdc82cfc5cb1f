"""Measuring a policy on dev prompts: KL(π‖π_ref) of whole completions, and how good they are.

The KL is Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) along completions y that π sampled at temperature 1: each term is
exact over the vocabulary, so its mean is unbiased and never noisier than the mean of log π(y|x)/π_ref(y|x) (Amini,
Vieira and Cotterell 2025, 2504.10637), which is stored beside it as a check.
"""

from typing import Any

import torch
from sqlmodel import col, select
from torch import Tensor

from app.db import get
from app.errors import AppError
from app.prompts.models import Prompt, PromptSet
from app.training.measured import MeasureRecipe
from worker.checkpoints import weights_of
from worker.job import Job, SampledText
from worker.llm import RewardScorer
from worker.loading import context_of, encode_prompt, load_full, load_tokenizer, render_prompt
from worker.recorder import told_of
from worker.rewards import score_text
from worker.rollout import Rollout, end_ids_of, positions, sample, seeded

BATCH = 32


@torch.no_grad()
def divergences(policy: Any, reference: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """KL (b,) by the whole vocabulary at each step, and log π/π_ref (b,) of the sampled tokens."""
    kls, ratios = [], []
    for row in range(len(rollout.ids)):  # one at a time: two tables of all logits of one completion
        ids, mask = rollout.ids[row : row + 1], rollout.attention[row : row + 1]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask), "use_cache": False}
        p, q = (
            torch.log_softmax(model(**given, logits_to_keep=rollout.n + 1).logits[0, :-1].float(), -1)
            for model in (policy, reference)
        )
        kept, said = rollout.mask[row], rollout.tokens[row].unsqueeze(1)
        kls.append(((p.exp() * (p - q)).sum(-1) * kept).sum())
        ratios.append(((p - q).gather(1, said).squeeze(1) * kept).sum())
    return torch.stack(kls), torch.stack(ratios)


def dev_prompts_of(job: Job, tokenizer: Any, longest: int | None) -> list[tuple[Prompt, list[int]]]:
    """The first dev prompts that leave room for an answer, with their token ids."""
    recipe: MeasureRecipe = job.recipe
    with job.read() as session:
        name = get(session, PromptSet, recipe.prompt_set).name
        dev = select(Prompt).where(Prompt.set_id == recipe.prompt_set, Prompt.split == "dev")
        rows = session.exec(dev.order_by(col(Prompt.position))).all()
    found = [(row, encode_prompt(tokenizer, render_prompt(tokenizer, row.messages))) for row in rows]
    kept = [(row, ids) for row, ids in found if longest is None or len(ids) <= longest]
    if recipe.quality == "rule":
        kept = [(row, ids) for row, ids in kept if row.reference is not None]
    if len(kept) < 2:
        raise AppError(
            f"The prompt set {name} has {len(kept)} dev prompts that can be measured: at least two are needed. Choose "
            "a set with a dev split, fewer new tokens or, where prompts lack gold answers, another quality."
        )
    return kept[: recipe.n_prompts]


def measure(job: Job) -> None:
    """Samples, compares with the reference, scores; every completion is stored with its KL."""
    recipe: MeasureRecipe = job.recipe
    with job.read() as session:
        start, other = weights_of(session, recipe.checkpoint), weights_of(session, recipe.reference)
        scorer = weights_of(session, recipe.reward) if recipe.reward is not None else None
    tokenizer = load_tokenizer(start)
    if load_tokenizer(other).get_vocab() != tokenizer.get_vocab():
        raise AppError("The reference reads other tokens than the checkpoint writes: a KL needs one tokenizer.")
    context = context_of(start)
    prompts = dev_prompts_of(job, tokenizer, context - recipe.max_new_tokens if context else None)
    policy, reference = (load_full(one, recipe.dtype).eval().requires_grad_(False) for one in (start, other))
    reward = RewardScorer(scorer) if scorer is not None else None
    asked = [one for one in prompts for _ in range(recipe.samples)]
    ends = end_ids_of(policy, tokenizer)
    groups = {name: place for place, name in enumerate(dict.fromkeys(prompt.grp for prompt, _ in prompts))}
    rows: list[SampledText] = []
    n_tokens = 0.0
    for begin in range(0, len(asked), BATCH):
        job.progress(begin, len(asked))
        chunk = asked[begin : begin + BATCH]
        rollout = sample(
            policy, [ids for _, ids in chunk], recipe.max_new_tokens, 1.0, ends, tokenizer.pad_token_id,
            seeded(job.seed, "measure", begin), job.check,
        )  # fmt: skip
        kls, ratios = divergences(policy, reference, rollout)
        told = told_of(rollout, tokenizer, ends)
        texts = [one.text for one in told]
        scores = _scores(recipe, reward, [prompt for prompt, _ in chunk], texts)
        n_tokens += float(rollout.mask.sum())
        for place, (prompt, _) in enumerate(chunk):
            detail = {"prompt": float(prompt.id), "kl": float(kls[place]), "log_ratio": float(ratios[place])}
            detail |= {"group": float(groups[prompt.grp]), "length": float(told[place].n_tokens)}
            rows.append((prompt.messages[-1]["content"], texts[place], scores[place], detail))
    _store(job, rows, n_tokens)


def _scores(
    recipe: MeasureRecipe, reward: RewardScorer | None, prompts: list[Prompt], texts: list[str]
) -> list[float | None]:
    if reward is not None:
        return list(reward.score([prompt.messages for prompt in prompts], texts))
    if recipe.quality == "rule":
        pairs = zip(prompts, texts, strict=True)
        return [score_text(one.messages[-1]["content"], text, one.reference, 0.0, 0) for one, text in pairs]
    return [None] * len(texts)


def _store(job: Job, rows: list[SampledText], n_tokens: float) -> None:
    job.sampled(0, rows)
    means = {"kl": sum(row[3]["kl"] for row in rows if len(row) == 4) / len(rows)}
    scores = [row[2] for row in rows if row[2] is not None]
    if scores:
        means["dev_reward"] = sum(scores) / len(scores)
    job.metric(0, **means)
    job.spend(generated_tokens=n_tokens)
    job.progress(len(rows), len(rows), f"KL {means['kl']:.2f}" + (f", {means['dev_reward']:.2f}" if scores else ""))
