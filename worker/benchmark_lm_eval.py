"""Benchmarks that lm-eval defines: multiple choice by log-likelihood, item by item."""

from functools import partial
from typing import Any

import lm_eval

from app.benchmarks.definitions import DEFINITIONS
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.arms import put_before
from app.errors import Invalid
from worker.benchmark import Batch, Plan, Row, check_truncated
from worker.benchmark_data import ON_HUB, write_tasks
from worker.benchmark_hub import as_settings, check_commits, explained, pin_commits
from worker.checkpoints import weights_of
from worker.job import Job
from worker.llm import render_messages
from worker.lm_eval_model import Item, WatchedLM, hash_items, load_tasks, read_items, score_items
from worker.loading import load_full, load_tokenizer


def plan_lm_eval(job: Job, recipe: BenchmarkRecipe) -> Plan:
    """The tasks' items in batches of similar length, longest first."""
    folder = job.folder / "lm_eval"
    repo = ON_HUB.get(recipe.benchmark) if not recipe.data else None
    commits = pin_commits(job, recipe.benchmark, [repo]) if repo else {}
    names = write_tasks(recipe.benchmark, recipe.data, recipe.num_fewshot, folder, commits)
    with explained(repo or ""):
        tasks = load_tasks(names, folder, recipe.num_fewshot)
    for task in tasks.values():
        check_commits(commits, {repo: task.dataset} if repo else {})
    job.check()
    lm, preamble = load_lm(job, recipe)
    if recipe.use_chat_template and not lm.tokenizer.chat_template:
        raise Invalid("This checkpoint's tokenizer has no chat template.", {"use_chat_template": ["there is none"]})
    if preamble:  # lm-eval drops a system message that a template refuses, without a word: here that is an error
        render_messages(lm.tokenizer, put_before(preamble, [{"role": "user", "content": "?"}]))
    items = read_items(lm, tasks, recipe.limit, recipe.use_chat_template, preamble)
    n_truncated = sum(item.is_truncated for item in items)
    check_truncated(n_truncated, len(items), recipe.max_truncated)
    job.log(f"{len(items):,} items, {sum(len(i.requests) for i in items):,} requests, {n_truncated:,} items truncated")
    items.sort(key=lambda item: (-item.n_tokens, item.name))
    pieces = [items[i : i + recipe.batch_size] for i in range(0, len(items), recipe.batch_size)]
    return Plan(
        settings=_settings(recipe, items) | as_settings(commits),
        decoding={},
        batches=[
            Batch(_keys(recipe.benchmark, piece), partial(_score_batch, lm, recipe.benchmark, piece))
            for piece in pieces
        ],
        n_truncated=n_truncated,
        n_items=len(items),
    )


def load_lm(job: Job, recipe: BenchmarkRecipe) -> tuple[WatchedLM, list[dict[str, str]]]:
    """The recipe's checkpoint behind lm-eval's interface, and what stands before its prompts."""
    with job.read() as session:
        checkpoint, preamble = recipe.subject(session)
        weights = weights_of(session, checkpoint)
    return WatchedLM(load_full(weights).eval(), load_tokenizer(weights), recipe.batch_size, job.check), preamble


def _settings(recipe: BenchmarkRecipe, items: list[Item]) -> dict[str, Any]:
    in_order = sorted(items, key=lambda item: item.name)
    return {
        "num_fewshot": recipe.num_fewshot,
        "limit": recipe.limit,
        "use_chat_template": recipe.use_chat_template,
        **({"fewshot_as_multiturn": True} if recipe.use_chat_template and recipe.num_fewshot else {}),
        "n_items": len(
            {item.name.partition("/")[2] if recipe.benchmark == "truthfulqa" else item.name for item in items}
        ),
        "items_sha256": hash_items(in_order),
        "chance": _chances(recipe.benchmark, in_order),
        "lm_eval": lm_eval.__version__,
    }


def _chances(benchmark: str, items: list[Item]) -> dict[str, float]:
    """What choosing at random, or even weights, would score on these items."""
    shares: dict[str, list[float]] = {}
    for item in items:
        n = len(item.requests)
        for metric in _metrics_of(benchmark, item):
            shares.setdefault(metric, []).append(
                sum(item.doc["mc2_targets"]["labels"]) / n if metric == "mc2" else 1 / n
            )
    return {metric: round(sum(values) / len(values), 6) for metric, values in shares.items()}


def _metrics_of(benchmark: str, item: Item) -> list[str]:
    """Our names of the metrics an item yields."""
    if benchmark == "truthfulqa":
        return [item.task.task_name.removeprefix("truthfulqa_")]
    return list(DEFINITIONS[benchmark].metrics)


def _name(item: Item) -> str:
    """An item's name within the benchmark: mc1 and mc2 are two metrics of one question."""
    task, _, number = item.name.partition("/")
    return number if not task.startswith("mmlu_") else f"{task.removeprefix('mmlu_')}/{number}"


def _cluster(benchmark: str, item: Item) -> str:
    if benchmark == "demo_facts":
        return str(item.doc["group"])
    if benchmark == "hellaswag":
        return str(item.doc.get("source_id") or _name(item))[:200]
    return _name(item)


def _category(benchmark: str, item: Item) -> str:
    if benchmark == "mmlu":
        return _name(item).partition("/")[0].replace("_", " ")
    if benchmark == "demo_facts":
        return str(item.doc["group"]).partition("/")[0]
    if benchmark == "hellaswag":
        return str(item.doc.get("source_id") or "").partition("~")[0]
    return str(item.doc.get("category", ""))


def _keys(benchmark: str, items: list[Item]) -> frozenset[tuple[str, str, int]]:
    return frozenset((metric, _name(item), 0) for item in items for metric in _metrics_of(benchmark, item))


def _score_batch(lm: WatchedLM, benchmark: str, items: list[Item]) -> list[Row]:
    rows = []
    for item, found, lls in score_items(lm, items):
        for place, metric in enumerate(_metrics_of(benchmark, item)):
            rows.append(
                Row(
                    metric=metric,
                    item=_name(item),
                    cluster=_cluster(benchmark, item),
                    category=_category(benchmark, item)[:120],
                    value=found["acc" if metric in {"mc1", "mc2"} else metric],
                    is_truncated=item.is_truncated,
                    # The words are the same for every metric of an item, so they are kept once.
                    detail=_detail(item, metric, lls) if place == 0 else {},
                )
            )
    return rows


def _detail(item: Item, metric: str, lls: list[float]) -> dict[str, Any]:
    right = item.task.doc_to_target(item.doc)
    if metric == "mc2":
        right = [place for place, label in enumerate(item.doc["mc2_targets"]["labels"]) if label]
    return {
        "prompt": item.task.doc_to_text(item.doc),
        "choices": [str(choice) for choice in item.task.doc_to_choice(item.doc)],
        "log_likelihoods": [round(ll, 6) for ll in lls],
        "right": right,
        "picked": max(range(len(lls)), key=lls.__getitem__),
    }
