"""Import of ready-made preferences: prompts, both completions, and the file's labels under their own name.

The labels become the verdicts of a judge of kind `imported`, so that training can use them like any others. Which
side a completion stands on is drawn by hash: some files put the better one always first.
"""

import gc
import hashlib
import os
from array import array
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.naming import store_named
from app.db import get, insert_plain, now
from app.errors import Invalid
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.pairs.fields import PairDraft, longest_text, read_pairs
from app.pairs.models import Completion, Pair, PairSet
from app.prompts.fields import BadField
from app.prompts.files import BadRow
from app.prompts.models import Prompt, PromptSet
from app.prompts.recipes import ImportPairsRecipe
from app.prompts.sources import open_rows, set_name
from worker.compact_map import CompactMap, hash64
from worker.hub import fetch_hub, source_of
from worker.hygiene import check_set
from worker.importing import (
    CHUNK,
    PromptSpool,
    Rejects,
    count_rows,
    encode,
    finish_prompt_set,
    read_facts,
    read_lines,
    start_prompt_set,
    store_prompts,
    store_rows,
)
from worker.job import Job


def import_pairs(job: Job) -> None:
    """Reads a preference file into prompts, completions, pairs and verdicts."""
    recipe: ImportPairsRecipe = job.recipe
    gc.freeze()  # what the libraries made stays anyway: millions of rows need not have it looked through again
    prompts, pairs = job.folder / "prompts.jsonl", job.folder / "pairs.jsonl"
    if not (prompts.exists() and pairs.exists()):
        _validate(job, recipe, prompts, pairs)
    facts = read_facts(prompts)
    wanted = recipe.name or set_name(recipe.path, recipe.format)
    set_id = start_prompt_set(job, wanted, facts, source_of(job, recipe))
    store_prompts(job, prompts, set_id, facts["n"])
    check_set(job, set_id)
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
    """Validated completions and pairs, a line each. The same text for the same prompt is one completion.

    Of each completion and pair only a hash is kept (compact_map.py), and its number within its prompt.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.n = self.n_merged = self.n_completions = 0
        self.completions = CompactMap()  # prompt and text → place in the file of completions
        self.sample_of = array("I")  # completion → number within its prompt
        self.n_samples = array("I")  # prompt → how many completions
        self.labels = CompactMap()  # pair → line and label
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
        """The completion's place in the file of completions."""
        found = self.completions.setdefault(hash64(str(prompt), text), self.n_completions)
        if found is not None:
            return found
        if prompt == len(self.n_samples):
            self.n_samples.append(0)
        sample = self.n_samples[prompt]
        self.n_samples[prompt] = sample + 1
        self.sample_of.append(sample)
        self._texts.write(encode([prompt, sample, text]) + "\n")
        self.n_completions += 1
        return self.n_completions - 1

    def add(self, prompt: int, draft: PairDraft, line: int) -> None:
        """Adds a labelled pair; raises BadField when an earlier line labels the same two texts otherwise."""
        first, second = self._completion(prompt, draft.first), self._completion(prompt, draft.second)
        low, high = min(first, second), max(first, second)
        label = 2 if draft.label == "tie" else int((draft.label == "a") == (first < second))
        known = self.labels.setdefault(hash64(str(low), str(high)), line * 3 + label)
        if known is not None:
            if known % 3 != label:
                raise BadField(f"line {known // 3} labels the same two texts otherwise: leave one of them out")
            self.n_merged += 1
            return
        key = (prompt, self.sample_of[low], self.sample_of[high])
        is_first_a = hashlib.sha256(f"{self.seed}\0{prompt}\0{key}".encode()).digest()[0] % 2 == 0
        a, b = (first, second) if is_first_a else (second, first)
        choice = draft.label if is_first_a or label == 2 else {"a": "b", "b": "a"}[draft.label]
        p_a = draft.p if is_first_a or draft.p is None else 1 - draft.p
        self._pairs.write(encode([prompt, a, b, choice, *([] if p_a is None else [p_a])]) + "\n")
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
    found = fetch_hub(job, recipe)
    for number, row in enumerate(open_rows(found.path, found.format), 1):
        rejects.n_read = number
        if number % 2_000 == 0:
            job.progress(number, 0, f"reading: {number:,} rows")
        if isinstance(row, BadRow):
            rejects.add(row.line, row.reason)
            continue
        line, value = row
        try:
            drafts = read_pairs(value, recipe)
            if recipe.max_chars and longest_text(drafts) > recipe.max_chars:
                n_long += 1
                continue
            for draft in drafts:
                spool.add(writer.add(draft.prompt, line), draft, line)
        except BadField as error:
            rejects.add(line, str(error))
        if recipe.limit and spool.n >= recipe.limit:
            break
    if n_long:
        job.log(f"left out {n_long:,} rows with a text longer than {recipe.max_chars:,} characters")
    if n_long and not spool.n and not rejects.n:
        raise Invalid(f"All {n_long:,} rows hold texts longer than {recipe.max_chars} characters: allow longer ones.")
    if spool.n_merged:
        job.log(f"merged {spool.n_merged:,} exact {'duplicate' if spool.n_merged == 1 else 'duplicates'} of pairs")


def _ids(session: Session, query: Any) -> "array[int]":
    """The ids that a query finds, eight bytes each."""
    return array("q", session.connection().execute(query).scalars().yield_per(10_000))


def _prompt_ids(session: Session, set_id: int) -> "array[int]":
    """Ids of the set's prompts by position."""
    return _ids(session, sa.select(col(Prompt.id)).where(col(Prompt.set_id) == set_id).order_by(col(Prompt.position)))


def _store_completions(job: Job, spool: Path, set_id: int) -> int:
    with job.write() as session:
        set_name = get(session, PromptSet, set_id).name
        arm_id = find_or_make_imported_arm(session, job.project_id, f"{set_name}: imported").id
        prompt_ids = _prompt_ids(session, set_id)
        done = count_rows(session, col(Completion.run_id) == job.run_id)
    rows = (
        {
            "prompt_id": prompt_ids[prompt], "arm_id": arm_id, "run_id": job.run_id, "sample": sample, "text": text,
            "n_tokens": 0, "stop_reason": "imported", "is_prompt_truncated": False,
        }
        for prompt, sample, text in read_lines(spool, done)
    )  # fmt: skip
    return store_rows(job, Completion, rows, (done, 0), "storing completions")


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
                protocol={"label": recipe.label, "source": recipe.source or Path(source_of(job, recipe)).name},
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
    """Pairs with the file's labels as verdicts. Completions stand in the order of their file, so their ids do too."""
    with job.read() as session:
        prompt_ids = _prompt_ids(session, set_id)
        done = count_rows(session, col(Pair.pair_set_id) == pair_set_id)
        mine = sa.select(col(Completion.id)).where(col(Completion.run_id) == job.run_id)
        ids = _ids(session, mine.order_by(col(Completion.id)))
    known: dict[str, Any] = {"verdict_set_id": verdict_set_id, "by_principle": {}, "p_a": None}
    opinion = {**known, "judge_id": judge_id, "is_swapped": False, "sample": 0, "principle": "",
               "reason": "the file's own label"}  # fmt: skip
    verdict = {**known, "reason": "", "votes": {}, "is_flip": False, "need": 0.0}
    lines = read_lines(spool, done)
    while chunk := list(islice(lines, CHUNK)):
        pairs = [
            {"pair_set_id": pair_set_id, "position": done + place, "prompt_id": prompt_ids[prompt], "a_id": ids[a],
             "b_id": ids[b]}
            for place, (prompt, a, b, *_) in enumerate(chunk)
        ]  # fmt: skip
        choices = Counter(one[3] for one in chunk)
        with job.write() as session:
            insert_plain(session, Pair, pairs)
            stored = sa.select(col(Pair.id)).where(col(Pair.pair_set_id) == pair_set_id, col(Pair.position) >= done)
            labelled = list(zip(_ids(session, stored.order_by(col(Pair.position))), chunk, strict=True))
            for table, row, name in ((Opinion, opinion, "choice"), (Verdict, verdict, "outcome")):
                rows = [
                    {**row, "pair_id": pair_id, name: one[3], "p_a": one[4] if len(one) > 4 else None}
                    for pair_id, one in labelled
                ]
                insert_plain(session, table, rows)
            counted = get(session, VerdictSet, verdict_set_id)
            counted.n_a += choices["a"]
            counted.n_b += choices["b"]
            counted.n_tie += choices["tie"]
        done += len(chunk)
        job.progress(done, 0, f"storing pairs and labels: {done:,}")
