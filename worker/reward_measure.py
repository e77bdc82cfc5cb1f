"""The end of a reward model's training: scores of dev rows and of what the project's arms wrote, told in its facts."""

import json
import math
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.checkpoints.models import Arm
from app.pairs.models import Completion
from app.prompts.models import Prompt
from app.training.held_out import ArmScores, Scored, describe_held_out, describe_scores
from worker.job import Job
from worker.llm import RewardScorer
from worker.preferences import Preferences, Row

MOST_ARMS = 12  # the newest ones
COMPLETIONS_AN_ARM = 200


def measure_reward(job: Job, scorer: RewardScorer, preferences: Preferences) -> dict[str, Any]:
    """`held_out` and `scores` for the checkpoint's facts; says in the log what could not be measured."""
    if not preferences.dev:
        job.log("no dev row: how well it reproduces the labels is not measured", "warning")
        return {}
    asked = {_key(row) for row in preferences.train}
    n_shared = sum(_key(row) in asked for row in preferences.dev)
    if n_shared:
        job.log(f"{n_shared} dev rows have a prompt that training reads too: their accuracy flatters", "warning")
    rows, arms = _score_rows(scorer, preferences.dev), _score_arms(job, scorer)
    values = [*rows.chosen, *rows.rejected, *(value for arm in arms for value in arm.values)]
    if not all(map(math.isfinite, values)):
        job.log("some of its scores are no finite numbers, so nothing is measured: it has diverged", "warning")
        return {}
    found = describe_held_out(rows, _share_longer(preferences.train))
    said = found["accuracy"]
    job.log(
        f"on {said['n']} dev rows it prefers the chosen in {said['value']:.2f} "
        f"[{said['low']:.2f}, {said['high']:.2f}], the rule “prefer the {found['length_rule']}” in "
        f"{found['by_length']['value']:.2f}"
    )
    return {"held_out": {**found, "n_shared": n_shared}, "scores": describe_scores(rows, arms)}


def _key(row: Row) -> str:
    return json.dumps(row["prompt"], sort_keys=True)


def _score_rows(scorer: RewardScorer, rows: list[Row]) -> Scored:
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = ([row[side][0]["content"] for row in rows] for side in ("chosen", "rejected"))
    return Scored(
        scorer.score(prompts, chosen), scorer.score(prompts, rejected), [len(one) for one in chosen],
        [len(one) for one in rejected], [_key(row) for row in rows],
    )  # fmt: skip


def _share_longer(rows: list[Row]) -> float:
    """The share of rows whose chosen completion has more characters; equal lengths count one half."""
    lengths = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths) / len(lengths)


def _score_arms(job: Job, scorer: RewardScorer) -> list[ArmScores]:
    with job.read() as session:
        written = _read_arms(session, job.project_id)
    found = []
    for arm, rows in written:
        job.check()
        values = scorer.score([messages for messages, _ in rows], [text for _, text in rows])
        found.append(ArmScores(arm.id, arm.name, arm.method, values))
    return found


def _read_arms(session: Session, project_id: int) -> list[tuple[Arm, list[tuple[list[dict[str, str]], str]]]]:
    """The newest arms with (prompt, completion) on prompts that no training reads; first samples before second ones."""
    is_unread = sa.select(col(Completion.id)).join(Prompt, col(Prompt.id) == col(Completion.prompt_id)).where(
        col(Completion.arm_id) == col(Arm.id), col(Prompt.split) != "train"
    )  # fmt: skip
    arms = session.scalars(
        sa.select(Arm).where(col(Arm.project_id) == project_id, is_unread.exists())
        .order_by(col(Arm.id).desc()).limit(MOST_ARMS)
    ).all()  # fmt: skip
    found = []
    for arm in arms:
        rows = session.execute(
            sa.select(col(Prompt.messages), col(Completion.text))
            .join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
            .where(col(Completion.arm_id) == arm.id, col(Prompt.split) != "train")
            .order_by(col(Completion.sample), col(Completion.prompt_id), col(Completion.id)).limit(COMPLETIONS_AN_ARM)
        ).all()  # fmt: skip
        found.append((arm, [(messages, text) for messages, text in rows]))
    return found
