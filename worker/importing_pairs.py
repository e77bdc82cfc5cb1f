"""Import of ready-made preferences: prompts, both completions, and the file's labels under their own name.

The labels become the verdicts of a judge of kind `imported`, so that training can use them like any others. Which
side a completion stands on is drawn by hash: some files put the better one always first.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Self, TextIO

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.naming import store_named
from app.db import get, now
from app.errors import Invalid
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.pairs.fields import read_pair
from app.pairs.models import Completion, Pair, PairSet
from app.prompts.fields import BadField
from app.prompts.files import BadRow, find_file, read_rows
from app.prompts.models import Prompt, PromptSet
from app.prompts.recipes import ImportPairsRecipe
from worker.importing import (
    CHUNK,
    PromptSpool,
    Rejects,
    finish_prompt_set,
    read_facts,
    read_lines,
    start_prompt_set,
    store_prompts,
)
from worker.job import Job


def import_pairs(job: Job) -> None:
    """Reads a preference file into prompts, completions, pairs and verdicts."""
    recipe: ImportPairsRecipe = job.recipe
    prompts, pairs = job.folder / "prompts.jsonl", job.folder / "pairs.jsonl"
    if not (prompts.exists() and pairs.exists()):
        _validate(job, recipe, prompts, pairs)
    facts = read_facts(prompts)
    wanted = recipe.name or Path(recipe.path).name.split(".")[0]
    set_id = start_prompt_set(job, wanted, facts, recipe.path)
    store_prompts(job, prompts, set_id, facts["n"])
    total = _store_completions(job, job.folder / "completions.jsonl", set_id)
    pair_set_id, verdict_set_id, judge_id = _start_sets(job, recipe, set_id, wanted)
    _store_pairs(job, pairs, set_id, pair_set_id, verdict_set_id, judge_id)
    with job.write() as session:
        pair_set, verdict_set = get(session, PairSet, pair_set_id), get(session, VerdictSet, verdict_set_id)
        pair_set.n = verdict_set.n
        finish_prompt_set(session, job, set_id)
        job.made(session, "pair_set", pair_set_id)
        job.made(session, "judge", judge_id)
        job.made(session, "verdict_set", verdict_set_id)
    job.log(f"{pair_set.n:,} pairs of {total:,} completions for {facts['n']:,} prompts")


class PairSpool:
    """Validated completions and pairs, a line each. The same text for the same prompt is one completion."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.n = self.n_merged = 0
        self.completions: dict[tuple[int, str], int] = {}  # (prompt, hash of text) → sample
        self.samples: dict[int, int] = {}  # prompt → how many completions
        self.labels: dict[tuple[int, int, int], tuple[bool, int]] = {}  # pair → label, line
        self._pairs = self._begin("pairs")
        self._texts = self._begin("completions")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pairs.close()
        self._texts.close()

    def _begin(self, name: str) -> TextIO:
        return (self.folder / f"{name}.partial").open("w", encoding="utf-8")

    def _completion(self, prompt: int, text: str) -> int:
        key = (prompt, hashlib.sha256(text.encode()).hexdigest())
        if key not in self.completions:
            self.completions[key] = self.samples.get(prompt, 0)
            self.samples[prompt] = self.completions[key] + 1
            row = {"prompt": prompt, "sample": self.completions[key], "text": text}
            self._texts.write(json.dumps(row, ensure_ascii=False) + "\n")
        return self.completions[key]

    def add(self, prompt: int, chosen: str, rejected: str, line: int) -> None:
        """Adds a labelled pair; raises BadField when an earlier line labels the same two texts the other way."""
        first, second = self._completion(prompt, chosen), self._completion(prompt, rejected)
        key = (prompt, min(first, second), max(first, second))
        is_low_chosen = first < second
        if key in self.labels:
            known, at = self.labels[key]
            if known != is_low_chosen:
                raise BadField(f"line {at} labels the same two texts the other way round: leave one of them out")
            self.n_merged += 1
            return
        self.labels[key] = (is_low_chosen, line)
        digest = hashlib.sha256(f"{self.seed}\0{prompt}\0{key}".encode()).digest()
        is_chosen_a = digest[0] % 2 == 0
        a, b = (first, second) if is_chosen_a else (second, first)
        row = {"prompt": prompt, "a": a, "b": b, "choice": "a" if is_chosen_a else "b"}
        self._pairs.write(json.dumps(row) + "\n")
        self.n += 1

    def finish(self) -> None:
        """Gives both spools their names, the pairs last."""
        for name, file in (("completions", self._texts), ("pairs", self._pairs)):
            file.close()
            os.replace(self.folder / f"{name}.partial", self.folder / f"{name}.jsonl")


def _validate(job: Job, recipe: ImportPairsRecipe, prompts: Path, pairs: Path) -> None:
    split = PromptSpool(prompts, recipe.dev_share, recipe.test_share, set())
    with split as writer, PairSpool(pairs.parent, job.seed) as spool:
        rejects = Rejects(job)
        _read_pairs(job, recipe, writer, spool, rejects)
        rejects.settle(spool.n, recipe.may_reject)
        writer.n_merged = spool.n_merged  # a prompt with several pairs is no duplicate
        spool.finish()
        writer.finish(rejects.n)


def _read_pairs(job: Job, recipe: ImportPairsRecipe, writer: PromptSpool, spool: PairSpool, rejects: Rejects) -> None:
    n_long = 0
    for number, row in enumerate(read_rows(find_file(recipe.path)), 1):
        if number % 200 == 0:
            job.progress(number, 0, f"reading: {number:,} rows")
        if isinstance(row, BadRow):
            rejects.add(row.line, row.reason)
            continue
        line, value = row
        try:
            draft = read_pair(value, recipe)
            longest = max(draft.prompt.n_chars, len(draft.chosen), len(draft.rejected))
            if recipe.max_chars and longest > recipe.max_chars:
                n_long += 1
                continue
            spool.add(writer.add(draft.prompt, line), draft.chosen, draft.rejected, line)
        except BadField as error:
            rejects.add(line, str(error))
        if recipe.limit and spool.n >= recipe.limit:
            break
    if n_long:
        job.log(f"left out {n_long:,} rows with a text longer than {recipe.max_chars:,} characters")
    if n_long and not spool.n and not rejects.n:
        raise Invalid(f"All {n_long:,} rows hold texts longer than {recipe.max_chars} characters: allow longer ones.")
    if spool.n_merged:
        job.log(f"merged {spool.n_merged:,} exact duplicates of pairs")


def _prompt_ids(session: Session, set_id: int) -> list[int]:
    """Ids of the set's prompts by position."""
    found = select(Prompt.id).where(Prompt.set_id == set_id).order_by(col(Prompt.position))
    return list(session.exec(found).all())


def _store_completions(job: Job, spool: Path, set_id: int) -> int:
    with job.write() as session:
        set_name = get(session, PromptSet, set_id).name
        arm_id = find_or_make_imported_arm(session, job.project_id, f"{set_name}: imported").id
        prompt_ids = _prompt_ids(session, set_id)
        done = _n(session, col(Completion.run_id) == job.run_id)
    pending: list[Completion] = []
    place = done
    for place, row in enumerate(read_lines(spool, done), done + 1):
        pending.append(
            Completion(
                prompt_id=prompt_ids[row["prompt"]], arm_id=arm_id, run_id=job.run_id, sample=row["sample"],
                text=row["text"], stop_reason="imported",
            )
        )  # fmt: skip
        if len(pending) == CHUNK:
            _store(job, pending, f"storing completions: {place:,}")
            pending = []
    _store(job, pending, f"storing completions: {place:,}")
    return place


def _store(job: Job, rows: list[Any], note: str) -> None:
    with job.write() as session:
        session.add_all(rows)
    job.progress(0, 0, note)


def _n(session: Session, condition: Any) -> int:
    return int(session.execute(sa.select(sa.func.count()).where(condition)).scalar_one())


def _start_sets(job: Job, recipe: ImportPairsRecipe, set_id: int, wanted: str) -> tuple[int, int, int]:
    """The pair set, verdict set and judge this run fills: those an earlier attempt began, else new ones."""
    with job.write() as session:
        pair_set = session.exec(select(PairSet).where(PairSet.run_id == job.run_id)).first()
        if pair_set is None:
            pair_set = PairSet(project_id=job.project_id, name="", prompt_set_id=set_id, run_id=job.run_id)
            store_named(session, pair_set, wanted)
        verdict_set = session.exec(select(VerdictSet).where(VerdictSet.run_id == job.run_id)).first()
        if verdict_set is None:
            judge = _imported_judge(session, job.project_id, recipe)
            verdict_set = VerdictSet(
                project_id=job.project_id, name="", pair_set_id=pair_set.id, judge_id=judge.id, run_id=job.run_id,
                protocol={"label": recipe.label, "source": recipe.source or Path(recipe.path).name},
            )  # fmt: skip
            store_named(session, verdict_set, f"{wanted}: {judge.name}")
        return pair_set.id, verdict_set.id, verdict_set.judge_id


def _imported_judge(session: Session, project_id: int, recipe: ImportPairsRecipe) -> Judge:
    """The judge that stands for these labels, shared by all files whose labels have this name."""
    same = select(Judge).where(Judge.project_id == project_id, Judge.name == recipe.labeller, Judge.kind == "imported")
    judge = session.exec(same).first()
    if judge is None:
        judge = Judge(
            project_id=project_id, name="", kind="imported", settings={"label": recipe.label}, frozen_at=now()
        )
        store_named(session, judge, recipe.labeller)
    return judge


def _store_pairs(job: Job, spool: Path, set_id: int, pair_set_id: int, verdict_set_id: int, judge_id: int) -> None:
    with job.read() as session:
        prompt_ids = _prompt_ids(session, set_id)
        done = _n(session, col(Pair.pair_set_id) == pair_set_id)
        texts = session.execute(
            sa.select(col(Completion.prompt_id), col(Completion.sample), col(Completion.id)).where(
                col(Completion.run_id) == job.run_id
            )
        )
        ids = {(prompt, sample): key for prompt, sample, key in texts}
    rows = list(read_lines(spool))
    for start in range(done, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        with job.write() as session:
            pairs = []
            for position, row in enumerate(chunk, start):
                prompt_id = prompt_ids[row["prompt"]]
                a_id, b_id = ids[prompt_id, row["a"]], ids[prompt_id, row["b"]]
                pairs.append(
                    Pair(pair_set_id=pair_set_id, position=position, prompt_id=prompt_id, a_id=a_id, b_id=b_id)
                )
            session.add_all(pairs)
            session.flush()
            for pair, row in zip(pairs, chunk, strict=True):
                known: dict[str, Any] = {"verdict_set_id": verdict_set_id, "pair_id": pair.id}
                session.add(Opinion(**known, judge_id=judge_id, choice=row["choice"], reason="the file's own label"))
                session.add(Verdict(**known, outcome=row["choice"]))
            counted = get(session, VerdictSet, verdict_set_id)
            counted.n_a += sum(row["choice"] == "a" for row in chunk)
            counted.n_b += sum(row["choice"] == "b" for row in chunk)
        job.progress(start + len(chunk), len(rows), "storing pairs and labels")
