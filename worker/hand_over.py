"""Ready-labelled pairs: revisions beside their originals, and the best of several completions beside the worst.

Both end as a pair set with a verdict set, so that snapshots, SFT, DPO and reward models work on them unchanged. Which
side a completion stands on is drawn by hash, so that no side is always the better one.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.checkpoints.models import Arm, Checkpoint
from app.checkpoints.naming import store_named
from app.db import get, now
from app.errors import Invalid
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.judging.verdicts import sigmoid
from app.pairs.models import Completion, Pair, PairSet
from app.prompts.models import Prompt
from app.revising.models import Revision, RevisionSet
from app.revising.recipes import BestOfRecipe, HandOverRecipe
from worker.checkpoints import weights_of
from worker.generate import pick_prompts
from worker.job import Job
from worker.llm import RewardScorer

CHUNK = 500


@dataclass(frozen=True)
class Labelled:
    """Two completions of one prompt, the first of them preferred, and why. `p`: how sure, where that is known."""

    prompt_id: int
    better: int
    worse: int
    reason: str
    p: float | None = None


def hand_over(job: Job) -> None:
    """The revisions the recipe asks for, as pairs that an imported judge has labelled in their favour."""
    recipe: HandOverRecipe = job.recipe
    if job.has_made(PairSet):
        return
    with job.read() as session:
        made = get(session, RevisionSet, recipe.revision_set)
        rows = _read_revisions(session, recipe)
    if not rows:
        raise Invalid(
            f"“{made.name}” has no revision to hand over: accept some on its page, or choose “not rejected”."
            if recipe.which == "accepted"
            else f"“{made.name}” has no revision that was not rejected: revise again, with other settings."
        )
    with job.write() as session:
        judge = _imported_judge(session, job.project_id, made.name)
        protocol = {"label": "revision", "source": made.name, "revision_set": made.id, "which": recipe.which}
        pairs_id = store_labelled(
            job, session, rows, judge, recipe.name or made.name, made.prompt_set_id, protocol, made.constitution_id
        )
        session.execute(sa.update(RevisionSet).where(col(RevisionSet.id) == made.id).values(pair_set_id=pairs_id))
    job.progress(len(rows), len(rows))
    job.log(f"{len(rows):,} pairs of an original and its revision, the revision preferred")


def _read_revisions(session: Session, recipe: HandOverRecipe) -> list[Labelled]:
    states = ["accepted"] if recipe.which == "accepted" else ["accepted", "proposed"]
    wanted = (
        sa.select(Revision, col(Account.name))
        .outerjoin(Account, col(Account.id) == col(Revision.account_id))
        .where(
            col(Revision.set_id) == recipe.revision_set, col(Revision.state).in_(states),
            col(Revision.revised_id).is_not(None),
        )
        .order_by(col(Revision.position))
    )  # fmt: skip
    found = []
    for revision, name in session.execute(wanted):
        why = f"a revision that {name} accepted" if revision.state == "accepted" else "a revision nobody has looked at"
        found.append(Labelled(revision.prompt_id, revision.revised_id, revision.original_id, why))
    return found


def _imported_judge(session: Session, project_id: int, name: str) -> Judge:
    """The judge that stands for the revisions of a set."""
    wanted = f"revisions: {name}"[:110]
    same = select(Judge).where(Judge.project_id == project_id, Judge.name == wanted, Judge.kind == "imported")
    judge = session.exec(same).first()
    if judge is None:
        judge = Judge(
            project_id=project_id, name="", kind="imported", settings={"label": "revision"}, frozen_at=now()
        )  # fmt: skip
        store_named(session, judge, wanted)
        session.flush()
    return judge


def keep_best(job: Job) -> None:
    """Scores every completion of the arm and pairs each prompt's best with its worst."""
    recipe: BestOfRecipe = job.recipe
    if job.has_made(PairSet):
        return
    prompts = pick_prompts(job, recipe, None)
    with job.read() as session:
        written = _read_completions(session, recipe, prompts)
        scorer = RewardScorer(weights_of(session, recipe.reward))
    rows = [one for some in written.values() for one in some]
    messages = {prompt.id: prompt.messages for prompt in prompts}
    scores: dict[int, float] = {}
    for start in range(0, len(rows), CHUNK):
        job.progress(start, len(rows), "scoring completions")
        chunk = rows[start : start + CHUNK]
        found = scorer.score([messages[one.prompt_id] for one in chunk], [one.text for one in chunk])
        scores |= {one.id: score for one, score in zip(chunk, found, strict=True)}
    labelled = pick_best(prompts, written, scores, job.seed)
    if not labelled:
        raise Invalid(
            "No prompt has two completions that differ in text and score: sample more, at a higher temperature."
        )
    with job.write() as session:
        judge = _reward_judge(session, job.project_id, recipe.reward)
        name = f"best of {get(session, Arm, recipe.arm).name}"
        protocol = {"label": "reward", "source": "best of n", "at_most": recipe.at_most}
        store_labelled(job, session, labelled, judge, recipe.name or name, recipe.prompt_set, protocol, None)
    job.progress(len(rows), len(rows))
    n_most = max(len(some) for some in written.values())
    job.log(
        f"the best of up to {n_most} completions for {len(labelled):,} of {len(prompts):,} prompts; the others have no "
        "two completions of different score and text"
    )
    job.spend(judge_calls=len(rows))


def _read_completions(session: Session, recipe: BestOfRecipe, prompts: Sequence[Prompt]) -> dict[int, list[Completion]]:
    written: dict[int, list[Completion]] = {prompt.id: [] for prompt in prompts}
    of_set = select(Completion).join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
    of_set = of_set.where(Completion.arm_id == recipe.arm, Prompt.set_id == recipe.prompt_set)
    for one in session.exec(of_set.order_by(col(Completion.id))):
        some = written.get(one.prompt_id)
        if some is not None and (recipe.at_most is None or len(some) < recipe.at_most):
            some.append(one)
    if not any(written.values()):
        name = get(session, Arm, recipe.arm).name
        raise Invalid(f"“{name}” has written nothing for these prompts: generate completions first.")
    return written


def pick_best(
    prompts: Sequence[Prompt], written: dict[int, list[Completion]], scores: dict[int, float], seed: int
) -> list[Labelled]:
    """Each prompt's best completion by score beside its worst; equal scores are told apart by a seeded draw."""
    found = []
    for prompt in prompts:
        rng = random.Random(f"{seed} best of {prompt.sha256}")
        ranked = sorted(written[prompt.id], key=lambda one: (-scores[one.id], rng.random()))
        if len(ranked) < 2:
            continue
        best, worst = ranked[0], ranked[-1]
        high, low = scores[best.id], scores[worst.id]
        if high > low and best.text.strip() != worst.text.strip():
            why = f"the best of {len(ranked)} scores {high:.3f}, the worst {low:.3f}"
            found.append(Labelled(prompt.id, best.id, worst.id, why, sigmoid(high - low)))
    return found


def _reward_judge(session: Session, project_id: int, checkpoint_id: int) -> Judge:
    """The reward model as a judge: the project's own one, or a new one."""
    same = select(Judge).where(
        Judge.project_id == project_id, Judge.kind == "reward", Judge.checkpoint_id == checkpoint_id
    )
    judge = session.exec(same.order_by(col(Judge.id)).limit(1)).first()
    if judge is None:
        judge = Judge(project_id=project_id, name="", kind="reward", checkpoint_id=checkpoint_id)
        store_named(session, judge, f"reward: {get(session, Checkpoint, checkpoint_id).name}")
    if judge.frozen_at is None:
        judge.frozen_at = now()
    session.add(judge)
    session.flush()
    return judge


def store_labelled(
    job: Job, session: Session, rows: Sequence[Labelled], judge: Judge, wanted: str, prompt_set_id: int,
    protocol: dict[str, Any], constitution_id: int | None,
) -> int:  # fmt: skip
    """Pairs, opinions and verdicts in the caller's transaction; returns the pair set's id."""
    pairs = PairSet(
        project_id=job.project_id, name="", prompt_set_id=prompt_set_id, n=len(rows), run_id=job.run_id
    )  # fmt: skip
    store_named(session, pairs, wanted)
    is_a = [hashlib.sha256(f"{job.seed}\0{row.better}\0{row.worse}".encode()).digest()[0] % 2 == 0 for row in rows]
    verdicts = VerdictSet(
        project_id=job.project_id, name="", pair_set_id=pairs.id, judge_id=judge.id, run_id=job.run_id,
        constitution_id=constitution_id, protocol=protocol, n_a=sum(is_a), n_b=len(rows) - sum(is_a),
    )  # fmt: skip
    store_named(session, verdicts, f"{pairs.name}: {judge.name}")
    session.flush()
    session.execute(
        sa.insert(Pair),
        [
            {
                "pair_set_id": pairs.id, "position": position, "prompt_id": row.prompt_id,
                "a_id": row.better if first else row.worse, "b_id": row.worse if first else row.better,
            }
            for position, (row, first) in enumerate(zip(rows, is_a, strict=True))
        ],
    )  # fmt: skip
    stored = sa.select(col(Pair.id)).where(col(Pair.pair_set_id) == pairs.id).order_by(col(Pair.position))
    for pair_id, row, first in zip(session.execute(stored).scalars().all(), rows, is_a, strict=True):
        known: dict[str, Any] = {"verdict_set_id": verdicts.id, "pair_id": pair_id}
        p_a = None if row.p is None else (row.p if first else 1 - row.p)
        choice = "a" if first else "b"
        session.add(Opinion(**known, judge_id=judge.id, choice=choice, reason=row.reason, p_a=p_a))
        session.add(Verdict(**known, outcome=choice, reason=row.reason, p_a=p_a))
    job.made(session, "pair_set", pairs.id)
    job.made(session, "judge", judge.id)
    job.made(session, "verdict_set", verdicts.id)
    return pairs.id
