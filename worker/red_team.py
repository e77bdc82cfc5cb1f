"""Adversarial prompts from seed prompts: what is to be made is planned first, then written, then sieved and stored.

What a checkpoint wrote is kept line by line in the run's folder, what an endpoint wrote in the call ledger, so that a
run that is taken up again asks only for what is missing; the prompts are stored in one transaction once all are there.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_arm
from app.checkpoints.chat import Target, chat_body
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Arm, Endpoint
from app.checkpoints.naming import store_named
from app.constitutions.constitutions import freeze, read_principles
from app.db import get
from app.errors import AppError, Invalid
from app.prompts.models import SPLITS, Prompt, PromptSet, RejectedRow
from app.revising.attacks import wrap_seed
from app.revising.recipes import RedTeamRecipe
from app.revising.red_team import (
    Attempt,
    Sieve,
    ask_for_prompt,
    continue_prompts,
    find_categories,
    first_paragraph,
    plan_attempts,
)
from app.runs.recipe import sha256_of
from worker.checkpoints import weights_of
from worker.job import Job
from worker.ledger import Unit, add_cost, ask_all_of, calls_cost
from worker.llm import LocalModel, batch_seed


def make_red_team(job: Job) -> None:
    """Writes the prompts and stores them as a prompt set."""
    recipe: RedTeamRecipe = job.recipe
    if job.has_made(PromptSet):
        return
    with job.read() as session:
        chosen = select(Prompt).where(Prompt.set_id == recipe.prompt_set, col(Prompt.split).in_(recipe.splits))
        seeds = list(session.exec(chosen.order_by(col(Prompt.position))).all())
        principles = read_principles(session, recipe.constitution) if recipe.constitution else []
        name = get(session, PromptSet, recipe.prompt_set).name
    if not seeds:
        raise Invalid(f"The prompt set “{name}” has no prompt in {', '.join(recipe.splits)}: choose other splits.")
    categories = find_categories(recipe, [(one.key, one.body) for one in principles], seeds)
    attempts = plan_attempts(recipe, categories, seeds)
    bare = sorted({one.category.name for one in attempts} - {seed.category for seed in seeds})
    if bare:
        job.log(f"no seed carries {', '.join(bare)[:300]}: their examples are drawn from all seeds")
    if recipe.way == "templates":
        texts = {one.number: wrap_seed(one.attack, one.seeds[0].text) for one in attempts}
        writer = None
    else:
        writer = _writer(job, recipe)
        texts = _write(job, recipe, writer, attempts)
    _store(job, recipe, f"red team of {name}", writer, attempts, texts, seeds)


def _writer(job: Job, recipe: RedTeamRecipe) -> Arm:
    with job.write() as session:
        decoding = recipe.decoding.model_dump()
        return find_or_make_arm(
            session, job.project_id, checkpoint=recipe.checkpoint, endpoint=recipe.endpoint, decoding=decoding
        )


class Notes:
    """What was written so far, a line each. A line that a kill cut in half is as if it had not been written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[int, str] = {}
        if path.exists():
            *whole, _ = path.read_text(encoding="utf-8").split("\n")
            self.texts = {row["number"]: row["text"] for row in map(json.loads, whole)}
            path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    def add(self, rows: Sequence[tuple[int, str]]) -> None:
        """Keeps texts by the number of their attempt."""
        self.texts |= dict(rows)
        lines = [json.dumps({"number": number, "text": text}, ensure_ascii=False) + "\n" for number, text in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def _write(job: Job, recipe: RedTeamRecipe, writer: Arm, attempts: list[Attempt]) -> dict[int, str]:
    if writer.endpoint_id is not None:
        return _ask(job, recipe, writer, attempts)
    notes = Notes(job.folder / "written.jsonl")
    with job.read() as session:
        model = LocalModel(weights_of(session, writer.checkpoint_id or 0))
    job.log(f"{writer.name}: {'asked for prompts' if model.has_template else 'continues a list of prompts'}")
    for number, start in enumerate(range(0, len(attempts), recipe.batch_size)):
        batch = attempts[start : start + recipe.batch_size]
        job.progress(start, len(attempts), writer.name)
        if all(one.number in notes.texts for one in batch):
            continue
        asked = [ask_for_prompt(one) if model.has_template else continue_prompts(one) for one in batch]
        samples = model.sample(asked, writer.decoding, batch_seed(job.seed, "red team", number), job.check)
        said = [one.text if model.has_template else first_paragraph(one.text) for one in samples]
        notes.add([(one.number, text) for one, text in zip(batch, said, strict=True)])
        job.spend(generated_tokens=sum(one.n_tokens for one in samples))
    return notes.texts


class Writing:
    """What the call ledger asks an endpoint: a prompt for each attempt. The answers stand in the ledger, so that none
    is paid for twice."""

    def __init__(self, job: Job, recipe: RedTeamRecipe, target: Target, attempts: Sequence[Attempt]) -> None:
        self.job, self.recipe, self.target, self.total = job, recipe, target, len(attempts)
        self._left = deque(attempts)
        self.texts: dict[int, str] = {}
        self.failures: list[str] = []

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """The next attempts."""
        return [self._unit(self._left.popleft()) for _ in range(min(n, len(self._left)))]

    def _unit(self, one: Attempt) -> Unit:
        """Its sample is the attempt's number: two that ask the same are to be two answers."""
        decoding = self.recipe.decoding
        more: dict[str, Any] = {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        body = chat_body(
            self.target, ask_for_prompt(one), max_tokens=decoding.max_new_tokens, temperature=decoding.temperature,
            **more,
        )  # fmt: skip
        key = sha256_of({"origin": self.target.origin, "body": body, "seed": self.job.seed, "kind": "red_team"})
        return Unit(
            key, lambda: (body, {}), lambda known: (one.number, known), one.number,
            lambda answer: {"tokens_out": answer.tokens_out},
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether every attempt was asked for."""
        return not self._left

    @property
    def how_far(self) -> str:
        """For messages."""
        return f"{len(self.texts)} of {self.total} prompts are written"

    def store(self, session: Session, found: list[Any]) -> None:
        """Takes what arrived; what it took to write it is counted with the run."""
        n_tokens = 0
        for number, known in found:
            if known.failure:
                self.failures.append(known.failure)
            else:
                self.texts[number] = known.raw
                n_tokens += int(known.request.get("tokens_out", 0))
        if n_tokens:
            add_cost(session, self.job.run_id, generated_tokens=n_tokens)

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """Moves the bar."""
        self.job.progress(min(len(self.texts), self.total - 1), self.total, f"{n_in_flight} calls in flight")


def _ask(job: Job, recipe: RedTeamRecipe, writer: Arm, attempts: list[Attempt]) -> dict[int, str]:
    with job.read() as session:
        target = target_of(get(session, Endpoint, writer.endpoint_id or 0))
    work = Writing(job, recipe, target, attempts)
    ask_all_of(job, target, work, recipe, calls_cost)
    if work.failures:
        raise AppError(
            f"{len(work.failures):,} of {len(attempts):,} calls failed; the last one: {work.failures[-1]}. What "
            "arrived is kept: resume this run to ask for the rest."
        )
    return work.texts


def sieve_prompts(
    recipe: RedTeamRecipe, attempts: Sequence[Attempt], texts: dict[int, str], seeds: Sequence[Prompt]
) -> tuple[list[tuple[Attempt, str]], list[tuple[int, str, str]]]:
    """(what is kept, what is dropped as (number, kind, reason)), in the order of the attempts.

    A model's prompt is held against all seeds and all prompts before it. A template holds its seed by construction, so
    there the seeds are held against each other, attack by attack.
    """
    kept, dropped = [], []
    sieves: dict[str, Sieve] = {}
    for one in attempts:
        text = texts[one.number].strip()
        core = one.seeds[0].text if one.attack else text
        if one.attack not in sieves:
            sieves[one.attack] = Sieve(recipe.near)
            for seed in () if one.attack else seeds:
                sieves[""].add(seed.text, f"seed prompt {seed.position + 1}")
        if not text:
            dropped.append((one.number, "empty", "empty"))
        elif len(text) > recipe.max_chars:
            dropped.append((one.number, "too long", f"{len(text):,} characters, more than {recipe.max_chars:,}"))
        elif found := sieves[one.attack].find(core):
            kind = "equal" if found[1] else "nearly equal"
            dropped.append((one.number, kind, f"{kind} to {found[0]}: {text[:200]}"))
        else:
            sieves[one.attack].add(core, f"new prompt {one.number + 1}")
            kept.append((one, text))
    return kept, dropped


def _store(
    job: Job, recipe: RedTeamRecipe, wanted: str, writer: Arm | None, attempts: list[Attempt], texts: dict[int, str],
    seeds: list[Prompt],
) -> None:  # fmt: skip
    kept, dropped = sieve_prompts(recipe, attempts, texts, seeds)
    counts = Counter(kind for _, kind, _ in dropped)
    said = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items())) or "none"
    if not kept:
        raise Invalid(f"None of {len(attempts):,} prompts can be used: {said}. Ask for more, or with other settings.")
    rows = [_as_prompt(one, text, writer) for one, text in kept]
    rows = list({row.sha256: row for row in reversed(rows)}.values())[::-1]
    splits = Counter(row.split for row in rows)
    digest = hashlib.sha256("".join(f"{row.sha256} {row.split} {row.grp}\n" for row in rows).encode())
    with job.write() as session:
        session.execute(sa.delete(RejectedRow).where(col(RejectedRow.run_id) == job.run_id))
        session.add_all(RejectedRow(run_id=job.run_id, line=n + 1, reason=why) for n, _, why in dropped)
        made = PromptSet(
            project_id=job.project_id, name="", state="ready", n=len(rows), n_merged=len(kept) - len(rows),
            n_rejected=len(dropped), counts={split: splits[split] for split in SPLITS if splits[split]},
            source=wanted[:500], sha256=digest.hexdigest(), run_id=job.run_id,
        )  # fmt: skip
        store_named(session, made, recipe.name or wanted)
        session.flush()
        for position, row in enumerate(rows):
            row.set_id, row.position = made.id, position
        session.add_all(rows)
        job.made(session, "prompt_set", made.id, made.sha256)
        if writer is not None:
            job.made(session, "arm", writer.id, writer.sha256)
        if recipe.constitution is not None:
            freeze(session, recipe.constitution)
    job.progress(len(attempts), len(attempts))
    job.log(f"{len(rows):,} prompts of {len(attempts):,} made; dropped: {said}")


def _as_prompt(one: Attempt, text: str, writer: Arm | None) -> Prompt:
    """A new prompt. Around a wrapped seed its earlier turns stay; what a model wrote has only its system message."""
    seed = one.seeds[0]
    before = seed.messages[:-1] if writer is None else [m for m in seed.messages[:1] if m["role"] == "system"]
    messages = [*before, {"role": "user", "content": text}]
    numbers = ", ".join(str(some.position + 1) for some in one.seeds)
    made_by = f"attack template {one.attack} around" if writer is None else f"written by {writer.name} after"
    return Prompt(
        set_id=0, position=0, messages=messages, split=seed.split, grp=seed.grp, category=one.category.name,
        source=f"red team: {made_by} seed prompt {numbers}"[:300], licence=seed.licence,
        sha256=sha256_of({"messages": messages, "follow_ups": [], "reference": None}),
    )  # fmt: skip
