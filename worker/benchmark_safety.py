"""PKU-SafeRLHF: does a reward (a model's, or a policy's implicit one) rank pairs as people did; is what it writes safe.

The implicit reward of a policy is β·(log π(y|x) − log π_ref(y|x)) (Rafailov et al. 2023, equation 5). β > 0 scales it
and changes no order, so none is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlmodel import Session, col, select

from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.arms import put_before
from app.checkpoints.models import Checkpoint
from app.db import get
from app.errors import Invalid
from app.judging.models import Judge
from app.prompts.models import Prompt
from app.runs.recipe import sha256_of
from worker.benchmark import Batch, Plan, Row
from worker.benchmark_hub import as_settings, pin_commits
from worker.benchmark_pku import ON_HUB, SafetyPair, SafetyPrompt, read_pku
from worker.benchmark_safe_judge import Rate, make_rater, refuses
from worker.checkpoints import weights_of
from worker.job import Job
from worker.llm import LocalModel, RewardScorer, batch_seed, plan_batches

ScoreTexts = Callable[[list[tuple[str, str]]], list[float]]


@dataclass(frozen=True)
class Policy:
    """Who writes, and what stands before each prompt."""

    model: LocalModel
    preamble: list[dict[str, str]]

    def asked(self, text: str) -> list[dict[str, str]]:
        """What the model reads."""
        return put_before(self.preamble, _asked(text))


def plan_safety(job: Job, recipe: BenchmarkRecipe) -> Plan:
    """Pairs are scored by the reward there is; prompts are answered greedily, and the answers judged."""
    commits = {} if recipe.data else pin_commits(job, recipe.benchmark, ON_HUB)
    pairs, prompts = read_pku(recipe.data, commits)
    with job.read() as session:
        checkpoint, preamble = recipe.subject(session)
        is_reward = get(session, Checkpoint, checkpoint).role == "reward"
        kept = _prompts_of(session, recipe) if recipe.prompt_set is not None else None
        judge = get(session, Judge, recipe.judge) if recipe.judge is not None else None
        weights = weights_of(session, checkpoint)
        reference = weights_of(session, recipe.reference) if recipe.reference is not None else None
    pairs = [pair for pair in pairs if kept is None or pair.prompt in kept][: recipe.limit]
    prompts = [] if is_reward else prompts[: recipe.limit]
    batches, n_cut = [], None
    if is_reward:
        batches += _reward_batches(recipe, pairs, RewardScorer(weights))
    else:
        policy = Policy(LocalModel(weights), preamble)
        pairs = pairs if reference is not None else []
        if reference is not None:
            score = partial(_implicit_rewards, policy, Policy(LocalModel(reference), []))
            batches += _pair_batches(recipe, pairs, "implicit", score, partial(_is_too_long, policy))
        else:
            job.log("no reference, so no implicit reward: only the policy's own completions are scored", "warning")
        batches += _prompt_batches(job, policy, recipe, prompts, make_rater(job, judge))
        n_cut = (
            sum(policy.model.is_too_long(policy.asked(p.text), recipe.max_new_tokens) for p in prompts)
            if prompts
            else None
        )
    if not batches:
        raise Invalid(
            "Nothing to score: a reward model needs pairs; a policy a reference for them, or prompts to answer."
        )
    job.log(f"{len(pairs):,} pairs, {len(prompts):,} prompts")
    decoding = {"temperature": 0.0, "max_new_tokens": recipe.max_new_tokens} if prompts else {}
    settings = _settings(recipe, pairs, prompts, judge) | as_settings(commits)
    return Plan(settings, decoding, batches, n_cut, len(prompts))


def _settings(
    recipe: BenchmarkRecipe, pairs: list[SafetyPair], prompts: list[SafetyPrompt], judge: Judge | None
) -> dict[str, Any]:
    return {
        "limit": recipe.limit,
        "n_items": len(pairs) + len(prompts),
        "items_sha256": sha256_of([[p.name, p.safer, p.better] for p in pairs] + [p.text for p in prompts]),
        **({"max_new_tokens": recipe.max_new_tokens} if prompts else {}),
        **({"judge": f"{judge.name} (#{judge.id})"} if judge and prompts else {}),
        **({"only_splits": sorted(recipe.splits)} if recipe.prompt_set is not None else {}),
    }


def _prompts_of(session: Session, recipe: BenchmarkRecipe) -> set[str]:
    """Texts of the prompts that scores may be about: those of the recipe's set and splits."""
    wanted = select(Prompt).where(Prompt.set_id == recipe.prompt_set, col(Prompt.split).in_(recipe.splits))
    kept = {prompt.text for prompt in session.exec(wanted).all()}
    if not kept:
        raise Invalid("The prompt set has no prompt in these splits.", {"splits": ["no prompt there"]})
    return kept


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# ----------------------------------------------------------------------------------------------------------- pairs


def _reward_batches(recipe: BenchmarkRecipe, pairs: list[SafetyPair], scorer: RewardScorer) -> list[Batch]:
    def is_cut(prompt: str, text: str) -> bool:
        return len(scorer.tokenizer(prompt + text)["input_ids"]) > scorer.context

    return _pair_batches(recipe, pairs, "reward", partial(_reward_scores, scorer), is_cut)


def _pair_batches(
    recipe: BenchmarkRecipe, pairs: list[SafetyPair], by: str, score: ScoreTexts, is_cut: Callable[[str, str], bool]
) -> list[Batch]:
    lengths = [len(pair.prompt) + max(len(text) for text in pair.texts) for pair in pairs]
    made = []
    for places in plan_batches(lengths, recipe.batch_size):
        piece = [pairs[place] for place in places]
        keys = frozenset((f"{metric}_{by}", pair.name, 0) for pair in piece for metric in _labels(pair))
        made.append(Batch(keys, partial(_score_pairs, piece, by, score, is_cut)))
    return made


def _labels(pair: SafetyPair) -> dict[str, int]:
    """metric → the side people chose, for those labels the pair has."""
    found = {"safer": pair.safer, "better": pair.better}
    return {name: side for name, side in found.items() if side is not None}


def _score_pairs(piece: list[SafetyPair], by: str, score: ScoreTexts, is_cut: Callable[[str, str], bool]) -> list[Row]:
    scores = score([(pair.prompt, text) for pair in piece for text in pair.texts])
    rows = []
    for pair, first, second in zip(piece, scores[::2], scores[1::2], strict=True):
        both = (first, second)
        is_truncated = any(is_cut(pair.prompt, text) for text in pair.texts)
        for place, (metric, side) in enumerate(_labels(pair).items()):
            mine, other = both[side], both[1 - side]
            value = 1.0 if mine > other else 0.5 if mine == other else 0.0
            detail = {"prompt": pair.prompt, "choices": list(pair.texts), "scores": list(both), "right": side}
            rows.append(
                Row(f"{metric}_{by}", pair.name, sha256_of(pair.prompt)[:16], value, pair.category, 0, is_truncated,
                    detail if place == 0 else {"right": side})
            )  # fmt: skip
    return rows


def _reward_scores(scorer: RewardScorer, texts: list[tuple[str, str]]) -> list[float]:
    return scorer.score([_asked(prompt) for prompt, _ in texts], [text for _, text in texts])


def _implicit_rewards(policy: Policy, reference: Policy, texts: list[tuple[str, str]]) -> list[float]:
    """log π − log π_ref of each text with its end token, as DPO is trained."""
    end = policy.model.tokenizer.eos_token or ""

    def read(by: Policy) -> list[list[float]]:
        asked = [(by.asked(prompt), [_fitting(policy.model, text) + end]) for prompt, text in texts]
        return by.model.log_probs_of(asked)

    of_policy, of_reference = read(policy), read(reference)
    return [a[0] - b[0] for a, b in zip(of_policy, of_reference, strict=True)]


def _fitting(model: LocalModel, text: str) -> str:
    """The beginning of a text that is longer than the whole context; counted as truncated."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = model.context - 16
    return text if len(ids) <= room else str(model.tokenizer.decode(ids[:room], skip_special_tokens=True))


def _is_too_long(policy: Policy, prompt: str, text: str) -> bool:
    n = len(policy.model.tokenizer(text, add_special_tokens=False)["input_ids"])
    return policy.model.is_too_long(policy.asked(prompt), n + 1)


# --------------------------------------------------------------------------------------------------------- prompts


def _prompt_batches(
    job: Job, policy: Policy, recipe: BenchmarkRecipe, prompts: list[SafetyPrompt], rate: Rate | None
) -> list[Batch]:
    metrics = ["refusal_match"] + ["judged_safe"] * (rate is not None)
    made = []
    for number, places in enumerate(plan_batches([len(p.text) for p in prompts], recipe.batch_size)):
        piece = [prompts[place] for place in places]
        keys = frozenset((metric, prompt.name, 0) for prompt in piece for metric in metrics)
        made.append(
            Batch(keys, partial(_answer_prompts, job, policy, piece, rate, batch_seed(job.seed, "pku", number)))
        )
    return made


def _answer_prompts(job: Job, policy: Policy, piece: list[SafetyPrompt], rate: Rate | None, seed: int) -> list[Row]:
    decoding = {"temperature": 0.0, "max_new_tokens": job.recipe.max_new_tokens}
    found = policy.model.sample([policy.asked(prompt.text) for prompt in piece], decoding, seed, job.check)
    job.spend(generated_tokens=sum(sample.n_tokens for sample in found))
    ratings = rate([(p.text, s.text) for p, s in zip(piece, found, strict=True)]) if rate else [None] * len(piece)
    rows = []
    for prompt, sample, rating in zip(piece, found, ratings, strict=True):
        detail: dict[str, Any] = {"prompt": prompt.text, "completion": sample.text, "stop_reason": sample.stop_reason}
        common: dict[str, Any] = {
            "cluster": prompt.name,
            "category": prompt.category,
            "is_truncated": sample.is_prompt_truncated,
        }
        rows.append(Row("refusal_match", prompt.name, value=float(refuses(sample.text)), detail=detail, **common))
        if rating is not None:
            rows.append(Row("judged_safe", prompt.name, value=rating.value, detail={"judge": rating.said}, **common))
    return rows
