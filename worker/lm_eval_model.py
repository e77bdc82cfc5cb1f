"""lm-eval's tasks on a loaded checkpoint: items, their requests, and what the task makes of the answers."""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.checkpoints.arms import put_before
from app.errors import AppError, Invalid
from app.runs.recipe import sha256_of

os.environ.setdefault("TQDM_DISABLE", "1")
# It warns once for every truncated request; the run counts and shows them instead.
logging.getLogger("lm_eval").setLevel(logging.ERROR)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

# What lm-eval's evaluator gives its few-shot sampler unless told otherwise.
FEWSHOT_SEED = 1234


class WatchedLM(HFLM):
    """lm-eval's Hugging Face model around a loaded one; asks before every forward pass whether to go on."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, watch: Callable[[], None]) -> None:
        self._watch = watch
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        self._watch()
        return super()._model_call(inps, attn_mask, labels)


@dataclass
class Item:
    """One document of one task, with the requests it needs."""

    task: ConfigurableTask
    name: str
    doc: dict[str, Any]
    requests: list[Instance]
    n_tokens: int  # of its longest request
    is_truncated: bool  # the model sees less than the whole request: lm-eval cuts from the left


def load_tasks(names: list[str], folder: Path, num_fewshot: int) -> dict[str, ConfigurableTask]:
    """The tasks whose files lie in `folder`, by name."""
    tasks: dict[str, ConfigurableTask] = TaskManager(include_path=str(folder), include_defaults=False).load(names)[
        "tasks"
    ]
    for task in tasks.values():
        if num_fewshot:
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


def read_items(
    lm: WatchedLM, tasks: dict[str, ConfigurableTask], limit: int | None, use_chat_template: bool,
    preamble: Sequence[dict[str, str]] = (),
) -> list[Item]:  # fmt: skip
    """Every item of every task with its requests, as lm-eval builds them; the preamble stands before each chat."""
    items: list[Item] = []

    def render(chat: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(lm.apply_chat_template(put_before(list(preamble), chat), add_generation_prompt))

    for name, task in tasks.items():
        task.build_all_requests(
            limit=limit,
            apply_chat_template=use_chat_template,
            fewshot_as_multiturn=use_chat_template,  # what lm-eval's command does with a template
            chat_template=render if use_chat_template else None,
            tokenizer_name=lm.tokenizer_name if use_chat_template else "",
        )
        of_doc: dict[int, list[Instance]] = {}
        for request in task.instances:
            of_doc.setdefault(int(request.doc_id or 0), []).append(request)
        for doc_id, requests in of_doc.items():
            requests.sort(key=lambda request: request.idx)
            n_tokens = max(_count_tokens(lm, name, doc_id, *request.args) for request in requests)
            # The last token is never an input, so one more than the context fits.
            is_truncated = n_tokens > lm.max_length + 1
            items.append(Item(task, f"{name}/{doc_id}", requests[0].doc, requests, n_tokens, is_truncated))
    return items


def _count_tokens(lm: WatchedLM, task: str, doc_id: int, context: str, choice: str) -> int:
    """Of a request; raises Invalid for a choice that cannot be scored, where lm-eval would only break off."""
    n = len(lm.tok_encode(context + choice))
    if n <= lm.max_length and choice.strip():
        return n
    n_choice = len(lm._encode_pair(context, choice)[1])
    if not n_choice:
        raise Invalid(f"{task}, item {doc_id}: an empty choice has no log-likelihood. Take the item out of the files.")
    if n_choice > lm.max_length:
        raise Invalid(
            f"{task}, item {doc_id}: a choice of {n_choice} tokens does not fit this model's context of "
            f"{lm.max_length}. Take the item out of the files, or use a model with a longer context."
        )
    return n


def score_items(lm: WatchedLM, items: list[Item]) -> list[tuple[Item, dict[str, float], list[float]]]:
    """Each item with its metrics by lm-eval's name, and the log-likelihood of each choice."""
    requests = [request for item in items for request in item.requests]
    answers = iter(lm.loglikelihood(requests, disable_tqdm=True))
    scored = []
    for item in items:
        # These tasks have no filter but lm-eval's default, "take the first answer".
        found = [next(answers) for _ in item.requests]
        if not all(math.isfinite(ll) for ll, _ in found):
            raise AppError(
                f"{item.name}: this model's log-likelihoods are not finite numbers. Its weights are damaged, or the "
                "training that made them has diverged."
            )
        metrics = item.task.process_results(item.doc, found)
        scored.append((item, {name: float(value) for name, value in metrics.items()}, [float(ll) for ll, _ in found]))
    return scored


def hash_items(items: list[Item]) -> str:
    """What the items ask, in one hash: two arms are compared on the same items or not at all."""
    return sha256_of([json.loads(json.dumps([item.name, item.doc], default=str)) for item in items])
