"""What an arm wrote, as rows for SFT: a stronger teacher's completions, or imported ones."""

import json
import time
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import col

from app.checkpoints.models import Arm
from app.db import get
from app.errors import Invalid
from app.pairs.models import Completion
from app.prompts.models import Prompt
from app.runs.models import Run
from app.training.recipes import SftRecipe
from worker.job import Job
from worker.preferences import Preferences, Row
from worker.saving import is_whole, save_folder
from worker.several import is_first

FILE = "rows.jsonl"
WAIT_S = 0.2
SPLITS = ("train", "dev")  # test and out-of-distribution prompts never train


def demonstrations_of(job: Job) -> Preferences:
    """The rows that the run's recipe asks for; frozen in the run's folder, so that a resumed run reads the same ones.

    The first completions of each prompt, by finished runs, that are not empty and came to their own end.
    """
    frozen = job.folder / "demonstrations"
    if not is_first():  # of several processes the first freezes them, the others read
        while not is_whole(frozen):
            job.check()
            time.sleep(WAIT_S)
    if not is_whole(frozen):
        found = _read(job)
        _, sha256 = save_folder(frozen, lambda folder: _write(found, folder / FILE))
        job.log(f"{len(found):,} completions to copy; the frozen file's manifest is {sha256[:12]}")
    with (frozen / FILE).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    return Preferences(by_split["train"], by_split["dev"])


def _write(rows: list[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _read(job: Job) -> list[Row]:
    recipe: SftRecipe = job.recipe
    query = (
        sa.select(Prompt, col(Completion.text), col(Completion.stop_reason))
        .join(Completion, col(Completion.prompt_id) == col(Prompt.id))
        .join(Run, col(Run.id) == col(Completion.run_id))
        .where(col(Prompt.set_id) == recipe.prompt_set, col(Prompt.split).in_(SPLITS))
        .where(col(Completion.arm_id) == recipe.arm, col(Run.status) == "done")
        .order_by(col(Prompt.position), col(Completion.id))
    )
    found: list[Row] = []
    n_of: Counter[int] = Counter()
    left_out: Counter[str] = Counter()
    with job.read() as session:
        name = get(session, Arm, recipe.arm or 0).name
        for prompt, text, stop_reason in session.execute(query):
            why = {"length": "cut off", "refused": "withheld"}.get(stop_reason, "" if text.strip() else "empty")
            if why:
                left_out[why] += 1
            elif n_of[prompt.id] < recipe.samples:
                n_of[prompt.id] += 1
                said = [{"role": "assistant", "content": text}]
                found.append({"prompt": prompt.messages, "chosen": said, "split": prompt.split})
    if left_out:
        job.log(f"left out of what “{name}” wrote: " + ", ".join(f"{n:,} {why}" for why, n in left_out.items()))
    if not any(row["split"] == "train" for row in found):
        raise Invalid(
            f"“{name}” has written nothing for train prompts of this set that came to its end: generate completions "
            "first, with room for them to end.", {"arm": ["nothing to copy"]}
        )  # fmt: skip
    return found
