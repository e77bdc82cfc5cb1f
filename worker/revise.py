"""Critique and revision of an arm's completions, by a local checkpoint or an endpoint.

What is to be revised is fixed before the start, and so are the principles of each completion. A batch (of an endpoint:
a completion) is stored whole, with all its steps: a run that is taken up again revises exactly what is missing, and
UNIQUE (set, original) lets no completion be revised twice. An endpoint's answers stand in the call ledger, so that no
critique is paid for twice either.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.chat import Target, chat_body
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.checkpoints.naming import store_named
from app.constitutions.constitutions import freeze, read_principles
from app.db import get
from app.errors import AppError, Invalid
from app.pairs.models import Completion
from app.prompts.models import Prompt, PromptSet
from app.revising.chain import Chain, pick_principles
from app.revising.models import Revision, RevisionSet
from app.revising.recipes import ReviseRecipe
from app.runs.recipe import sha256_of
from worker.checkpoints import weights_of
from worker.generate import check_truncated, pick_prompts
from worker.job import Job
from worker.ledger import Unit, add_cost, ask_all_of, calls_cost
from worker.llm import LocalModel, batch_seed, plan_batches

SHOWN = 6  # revisions on the run's film strip


@dataclass
class Item:
    """One completion to be revised, and its place in the set."""

    position: int
    prompt: Prompt
    original: Completion
    place: int  # among the originals of its prompt: the sample number of its revision
    chain: Chain


def revise_completions(job: Job) -> None:
    """Revises what this run has not revised yet."""
    recipe: ReviseRecipe = job.recipe
    items = _plan(job, recipe)
    with job.write() as session:
        made = _open_set(session, job, recipe)
        set_id, arm_id = made.id, int(made.arm_id or 0)
    with job.read() as session:
        done = set(session.exec(select(Revision.original_id).where(Revision.set_id == set_id)).all())
    book = Book(job, set_id, arm_id, len(items), len(done))
    if len(done) < len(items) and recipe.endpoint is not None:
        _ask_endpoint(job, recipe, book, [item for item in items if item.original.id not in done])
    elif len(done) < len(items):
        _revise_locally(job, recipe, book, items, done)
    job.progress(len(items), len(items))
    with job.read() as session:
        n_none = _count(session, set_id, col(Revision.revised_id).is_(None))
    job.log(
        f"{len(items) - n_none:,} of {len(items):,} completions revised; {n_none:,} have none, each with its reason"
    )


def _plan(job: Job, recipe: ReviseRecipe) -> list[Item]:
    """The first completions of the arm for each prompt, in the order they were written: later ones change nothing."""
    prompts = pick_prompts(job, recipe, recipe.limit)
    with job.read() as session:
        principles = read_principles(session, recipe.constitution)
        written: dict[int, list[Completion]] = {prompt.id: [] for prompt in prompts}
        of_set = select(Completion).join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
        of_set = of_set.where(Completion.arm_id == recipe.arm, Prompt.set_id == recipe.prompt_set)
        for one in session.exec(of_set.order_by(col(Completion.id))):
            if one.prompt_id in written and len(written[one.prompt_id]) < recipe.samples:
                written[one.prompt_id].append(one)
        if not any(written.values()):
            name = get(session, Arm, recipe.arm).name
            raise Invalid(f"“{name}” has written nothing for these prompts: generate completions first.")
    items: list[Item] = []
    for prompt in prompts:
        for place, one in enumerate(written[prompt.id]):
            rng = random.Random(f"{job.seed} principles {prompt.sha256} {place}")
            picked = pick_principles(principles, recipe.rounds, recipe.principles, rng)
            items.append(
                Item(len(items), prompt, one, place, Chain(one.text, prompt.messages, picked, recipe.few_shot))
            )
    n_bare = sum(not written[prompt.id] for prompt in prompts)
    if n_bare:
        job.log(f"{n_bare:,} of {len(prompts):,} prompts have no completion of this arm and are left out")
    return items


def _open_set(session: Session, job: Job, recipe: ReviseRecipe) -> RevisionSet:
    """The set this run fills, found when an earlier attempt made it, and the arm its revisions stand under.

    That arm is of the imported kind: what it wrote came of originals, critiques and a constitution, so it can write
    nothing for another prompt by itself. Its name says which set it belongs to, and the set says the rest.
    """
    row = session.exec(select(RevisionSet).where(RevisionSet.run_id == job.run_id)).first()
    if row is not None:
        return row
    reviser = (
        get(session, Endpoint, recipe.endpoint).name
        if recipe.endpoint is not None
        else get(session, Checkpoint, recipe.checkpoint or 0).name
    )
    row = RevisionSet(
        project_id=job.project_id, name="", prompt_set_id=recipe.prompt_set, constitution_id=recipe.constitution,
        original_arm_id=recipe.arm, run_id=job.run_id,
        settings={"reviser": reviser, "rounds": recipe.rounds, "principles": recipe.principles},
    )  # fmt: skip
    prompts = get(session, PromptSet, recipe.prompt_set).name
    store_named(session, row, recipe.name or f"revisions of {prompts}")
    session.flush()
    arm = find_or_make_imported_arm(session, job.project_id, f"{row.name}, by {reviser} (set {row.id})"[:120])
    session.flush()
    row.arm_id = arm.id
    freeze(session, recipe.constitution)
    job.made(session, "revision_set", row.id)
    job.made(session, "arm", arm.id, arm.sha256)
    return row


class Book:
    """Where finished chains are written, each once."""

    def __init__(self, job: Job, set_id: int, arm_id: int, total: int, done: int) -> None:
        self.job, self.set_id, self.arm_id, self.total, self.done = job, set_id, arm_id, total, done
        self._to_show: list[tuple[str, str, float | None]] | None = None if done else []

    def write(self, session: Session, items: Sequence[Item]) -> None:
        """Revisions with their steps, and the completion of each that has one, in the caller's transaction."""
        if not items:
            return
        texts = {
            item.original.id: Completion(
                prompt_id=item.prompt.id, arm_id=self.arm_id, run_id=self.job.run_id, sample=item.place,
                text=item.chain.text, n_tokens=item.chain.n_tokens_last,
            )
            for item in items
            if not item.chain.reason
        }  # fmt: skip
        session.add_all(texts.values())
        session.flush()
        session.add_all(
            Revision(
                set_id=self.set_id, position=item.position, prompt_id=item.prompt.id, original_id=item.original.id,
                revised_id=texts[item.original.id].id if item.original.id in texts else None,
                steps=item.chain.steps, reason=item.chain.reason,
            )
            for item in items
        )  # fmt: skip
        more = sa.update(RevisionSet).where(col(RevisionSet.id) == self.set_id)
        session.execute(more.values(n=RevisionSet.n + len(items)))
        add_cost(session, self.job.run_id, generated_tokens=sum(item.chain.n_tokens for item in items))
        self.done += len(items)
        if self._to_show is not None:
            self._to_show += [(item.original.text, item.chain.text, None) for item in items if not item.chain.reason]

    def progress(self, note: str = "") -> None:
        """Moves the bar, and puts the first revisions on the run's film strip."""
        if self._to_show:
            self.job.sampled(0, self._to_show[:SHOWN])
            self._to_show = None
        self.job.progress(min(self.done, self.total - 1), self.total, note)


def _revise_locally(job: Job, recipe: ReviseRecipe, book: Book, items: list[Item], done: set[int]) -> None:
    with job.read() as session:
        model = LocalModel(weights_of(session, recipe.checkpoint or 0))
    job.log(f"requests are rendered by {model.rendering}")
    decoding: dict[str, Any] = recipe.decoding.model_dump()
    n_new = recipe.decoding.max_new_tokens
    lengths = [len(model.encode(item.chain.request())) for item in items]
    n_truncated = sum(n > model.context - n_new for n in lengths)
    check_truncated(n_truncated, len(items), recipe.max_truncated, n_new, model.context)
    # The plan is made of all items, stored or not, so that it is the same whenever the run is taken up again.
    for number, places in enumerate(plan_batches(lengths, recipe.batch_size)):
        batch = [items[place] for place in places]
        if all(item.original.id in done for item in batch):
            continue
        step = 0
        while live := [item for item in batch if not item.chain.is_over]:
            book.progress(f"batch {number + 1}, request {step + 1}")
            seed = batch_seed(job.seed, "revise", number, step)
            said = model.sample([item.chain.request() for item in live], decoding, seed, job.check)
            for item, one in zip(live, said, strict=True):
                item.chain.take(one.text, one.stop_reason, one.n_tokens, one.is_prompt_truncated)
            step += 1
        with job.write() as session:
            book.write(session, batch)
    book.progress()


class Revising:
    """What the call ledger asks an endpoint: each completion's requests one after another, many completions at once.

    A request is decided by its completion, its fence included, so an answer that was paid for is found again.
    """

    def __init__(self, job: Job, recipe: ReviseRecipe, book: Book, target: Target, items: Sequence[Item]) -> None:
        self.job, self.recipe, self.book, self.target = job, recipe, book, target
        self.ready = deque(items)
        self.failures: list[str] = []

    def next_units(self, session: Session, n: int) -> list[Unit]:
        """The next requests."""
        return [self._unit(self.ready.popleft()) for _ in range(min(n, len(self.ready)))]

    def _unit(self, item: Item) -> Unit:
        decoding = self.recipe.decoding
        more = {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        body = chat_body(
            self.target, item.chain.request(), max_tokens=decoding.max_new_tokens, temperature=decoding.temperature,
            **more,
        )  # fmt: skip
        key = sha256_of({"origin": self.target.origin, "body": body, "seed": self.job.seed, "kind": "revise"})
        return Unit(
            key, lambda: (body, {}), lambda known: (item, known), item.place,
            lambda answer: {"tokens_out": answer.tokens_out},
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether no completion waits for its next request."""
        return not self.ready

    @property
    def how_far(self) -> str:
        """For messages."""
        return f"{self.book.done} of {self.book.total} completions are revised"

    def store(self, session: Session, found: list[Any]) -> None:
        """Takes what arrived into its chains; those that are over are written, the others ask again."""
        finished: list[Item] = []
        for item, known in found:
            if known.failure:
                self.failures.append(known.failure)
                continue
            said = str(known.request.get("stop_reason", ""))
            stop_reason = {"length": "length", "content_filter": "refused"}.get(said, "stop")
            item.chain.take(known.raw, stop_reason, int(known.request.get("tokens_out", 0)))
            if item.chain.is_over:
                finished.append(item)
            else:
                self.ready.appendleft(item)  # what was begun is ended first
        self.book.write(session, finished)

    def after(self, n_in_flight: int, spent_usd: float) -> None:
        """Moves the bar."""
        self.book.progress(f"{len(self.failures)} calls failed" if self.failures else "")


def _ask_endpoint(job: Job, recipe: ReviseRecipe, book: Book, items: list[Item]) -> None:
    with job.read() as session:
        target = target_of(get(session, Endpoint, recipe.endpoint or 0))
    work = Revising(job, recipe, book, target, items)
    ask_all_of(job, target, work, recipe, calls_cost)
    if work.failures:
        raise AppError(
            f"{len(work.failures):,} calls failed; the last one: {work.failures[-1]}. What was revised is stored: "
            "resume this run to ask for the rest."
        )


def _count(session: Session, set_id: int, *where: Any) -> int:
    query = sa.select(sa.func.count()).where(col(Revision.set_id) == set_id, *where)
    return int(session.execute(query).scalar_one())
