"""A data set on huggingface.co, streamed by the library `datasets` into the run's folder before it is imported."""

import json
import re
from typing import Any

from app.errors import Invalid
from app.prompts.files import MAX_DECODED
from worker.job import Job

# owner/name, name, owner/name:split, owner/name/config:split
HUB_ID = re.compile(
    r"(?P<id>[\w.-]{1,96}(?:/[\w.-]{1,96})?)(?:/(?P<config>[\w.-]{1,96}))?(?::(?P<split>[\w.\[\]%-]{1,60}))?"
)


def fetch_hub(job: Job, recipe: Any) -> Any:
    """The recipe itself; where it names a data set on the hub, one that names the copy in the run's folder."""
    if recipe.format != "hub":
        return recipe
    copy = job.folder / "hub.jsonl"
    if not copy.exists():
        _stream(job, recipe.path, recipe.limit, copy)
    return recipe.model_copy(update={"path": str(copy.resolve()), "format": "jsonl"})


def _stream(job: Job, name: str, limit: int | None, copy: Any) -> None:
    known = HUB_ID.fullmatch(name)
    if known is None or name.startswith((".", "/")):
        raise _bad(f"{name} is no data set's id such as owner/name, owner/name:split or owner/name/config:split.")
    from datasets import load_dataset

    split = known["split"] or "train"
    job.log(f"asking huggingface.co for {name}, split {split}")
    part = copy.with_suffix(".partial")
    size = 0
    try:
        rows = load_dataset(known["id"], known["config"], split=split, streaming=True)
        with part.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows, 1):
                size += file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                if size > MAX_DECODED:
                    raise _bad(f"{name} holds more than {MAX_DECODED // 2**20:,} MB of text: name a smaller split.")
                if number % 200 == 0:
                    job.progress(number, 0, f"fetching: {number:,} rows")
                if limit and number >= 2 * limit + 1000:
                    break
    except (OSError, ValueError, RuntimeError) as error:  # what the library raises for a missing set, split or network
        raise _bad(
            f"{name} ({split}) is not to be had from huggingface.co ({str(error)[:200]}): check the id, the split and "
            "the network, or download it and give the file."
        ) from error
    part.replace(copy)


def _bad(message: str) -> Invalid:
    return Invalid(message, {"path": [message]})
