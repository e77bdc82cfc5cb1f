"""Pausing a run when its reward and what only watches part, so that people can look at ten items.

What they get are the same dev prompts as the flight recorder sampled them at two steps: when the watcher liked them
best, and now; pairs with the watcher's verdicts, drawn as a blind audit. It says where to look, and not that anything
is wrong: whether the watcher or the reward is right is what people find out. A run pauses once. Of several processes
the first has the pauser; all of them ask it at the same steps, and stop at the same one.
"""

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.naming import store_named
from app.db import get
from app.judging.judges import freeze_judge, make_judge
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.judging.recipes import NewJudgeRecipe
from app.judging.verdicts import OpinionValue, VerdictValue, add_up, choose, sigmoid
from app.pairs.models import Completion, Pair, PairSet
from app.prompts.models import Prompt
from app.review.queues import make_queue
from app.review.recipes import AuditRecipe
from app.runs.models import Metric, Run, Sampled
from app.runs.queue import outputs
from app.training.health import Turn, find_turn
from app.training.models import Snapshot
from worker.job import Cancelled, Job
from worker.several import Released
from worker.together import from_first

ITEMS = 10
CURVES = ("dev_reward", "dev_accuracy", "dev_held_out")


class Paused(Cancelled):
    """The run waits for people: it has a state to resume from, and the message says why."""


@dataclass(frozen=True)
class Item:
    """One prompt, as it was answered at two steps."""

    prompt_id: int
    then: Sampled
    now: Sampled


class Pauser:
    """Of one run, whose recipe asks for it."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def has_turned(self) -> bool:
        """Whether to pause now: what trains has risen and what watches has fallen, for the first time."""
        with self.job.read() as session:
            if outputs(session, self.job.run_id, "queue"):
                return False
            turn = self._find_turn(session)
            return turn is not None and bool(self._items(session, turn))

    def pause(self, step: int) -> Paused:
        """Makes the queue; what to raise once the state of `step` is stored."""
        with self.job.write() as session:
            turn = self._find_turn(session)
            assert turn is not None  # has_turned() has just said so, and nobody else writes this run's curves
            items = self._items(session, turn)
            queue = _hand_over(session, self.job, turn, items)
            session.execute(sa.update(Run).where(col(Run.id) == self.job.run_id).values(done=step))
        self.job.log(f"paused after step {step}", "warning")
        return Paused(
            f"Paused after step {step}: the held-out scorer liked step {turn.best[0]} best ({turn.best[1]:.3g}, "
            f"now {turn.watcher[1]:.3g}) while what trains rose from {turn.then[1]:.3g} to {turn.proxy[1]:.3g}. Which "
            f"of the two is right is for people to say: {len(items)} pairs of samples of both steps wait in review "
            f"queue {queue}. Resume goes on exactly where it stopped, and this run will not pause again."
        )

    def _find_turn(self, session: Session) -> Turn | None:
        points = sa.select(col(Metric.name), col(Metric.step), col(Metric.value)).where(
            col(Metric.run_id) == self.job.run_id, col(Metric.name).in_(CURVES)
        )
        curves: dict[str, list[tuple[int, float | None]]] = {}
        for name, step, value in session.execute(points.order_by(col(Metric.step))):
            curves.setdefault(name, []).append((step, value))
        return find_turn(curves)

    def _items(self, session: Session, turn: Turn) -> list[Item]:
        """The first prompts whose two samples differ, with the rows of their prompt set."""
        sampled: dict[int, dict[int, Sampled]] = {}
        steps = (turn.best[0], turn.watcher[0])
        of_run = select(Sampled).where(Sampled.run_id == self.job.run_id, col(Sampled.step).in_(steps))
        for row in session.exec(of_run.order_by(col(Sampled.place))):
            sampled.setdefault(row.place, {})[row.step] = row
        ids = _prompt_ids(session, self.job.recipe)
        found = []
        for rows in sampled.values():
            then, now = (rows.get(step) for step in steps)
            prompt = ids.get(str(now.detail.get("messages"))) if now is not None else None
            if then is None or now is None or prompt is None or then.text == now.text:
                continue
            if then.detail["held_out"] is not None and now.detail["held_out"] is not None:
                found.append(Item(prompt, then, now))
        return found[:ITEMS]


def pauser_of(job: Job) -> Pauser | None:
    """The pauser of a run whose recipe asks for one."""
    return Pauser(job) if may_pause(job.recipe) else None


def may_pause(recipe: Any) -> bool:
    """Whether a recipe asks for a pause: every process of the run then asks at the same steps."""
    return bool(getattr(recipe, "is_paused_at_turn", False))


def has_turned(pauser: Pauser | None) -> bool:
    """Whether to pause now, as the first process finds it; every process calls it, and only the first has a pauser."""
    return from_first(lambda: pauser is not None and pauser.has_turned())


def stop_paused(pauser: Pauser | None, step: int) -> Exception:
    """What each process raises to pause once the state of `step` is stored."""
    return pauser.pause(step) if pauser is not None else Released()


def name_messages(messages: list[dict[str, str]]) -> str:
    """What a prompt's messages are known by in a sample's detail."""
    return json.dumps(messages, ensure_ascii=False, sort_keys=True)


def _prompt_ids(session: Session, recipe: Any) -> dict[str, int]:
    """The prompt set's rows by their messages."""
    query = sa.select(col(Prompt.id), col(Prompt.messages)).where(col(Prompt.set_id) == prompt_set_of(session, recipe))
    return {name_messages(messages): key for key, messages in session.execute(query)}


def prompt_set_of(session: Session, recipe: Any) -> int:
    """Where a run's dev prompts come from."""
    if getattr(recipe, "prompt_set", None) is not None:
        return int(recipe.prompt_set)
    return get(session, PairSet, get(session, Snapshot, recipe.snapshot).pair_set_id).prompt_set_id


def _hand_over(session: Session, job: Job, turn: Turn, items: list[Item]) -> int:
    """Pairs of then (a) and now (b), the watcher's verdicts on them, and a blind audit of all of them; its id."""
    judge = _watcher(session, job)
    name = f"Run {job.run_id}: step {turn.best[0]} against step {turn.watcher[0]}"
    pairs = PairSet(
        project_id=job.project_id, name="", prompt_set_id=prompt_set_of(session, job.recipe), n=len(items),
        run_id=job.run_id,
    )  # fmt: skip
    store_named(session, pairs, name)
    session.flush()
    verdicts = VerdictSet(project_id=job.project_id, name="", pair_set_id=pairs.id, judge_id=judge.id)
    store_named(session, verdicts, name)
    session.flush()
    arms = [
        find_or_make_imported_arm(session, job.project_id, f"run {job.run_id} at step {step}").id
        for step in (turn.best[0], turn.watcher[0])
    ]
    for position, item in enumerate(items):
        a, b = (
            _completion(job, item.prompt_id, arm, row) for arm, row in zip(arms, (item.then, item.now), strict=True)
        )
        session.add_all([a, b])
        session.flush()
        pair = Pair(pair_set_id=pairs.id, position=position, prompt_id=item.prompt_id, a_id=a.id, b_id=b.id)
        session.add(pair)
        session.flush()
        _judge(session, verdicts, pair, item, judge.kind == "reward")
    session.flush()
    recipe = AuditRecipe(verdict_set=verdicts.id, n=len(items), seed=job.seed, name=name)
    queue = make_queue(session, recipe, job.project_id, job.run_id)
    session.flush()
    for noun, row in (("pair_set", pairs), ("verdict_set", verdicts), ("queue", queue)):
        job.made(session, noun, row.id)
    return queue.id


def _watcher(session: Session, job: Job) -> Judge:
    """The held-out judge; a held-out reward model as one."""
    if job.recipe.held_out is None:
        return get(session, Judge, job.recipe.held_out_judge)
    mine = select(Judge).where(Judge.project_id == job.project_id, Judge.checkpoint_id == job.recipe.held_out)
    judge = session.exec(mine.where(Judge.kind == "reward")).first()
    if judge is None:
        recipe = NewJudgeRecipe(judge_kind="reward", checkpoint=job.recipe.held_out)
        judge = make_judge(session, job.project_id, recipe)
    freeze_judge(session, judge)
    return judge


def _completion(job: Job, prompt_id: int, arm_id: int, row: Sampled) -> Completion:
    stop_reason = "stop" if row.detail.get("ended") else "length"
    return Completion(
        prompt_id=prompt_id, arm_id=arm_id, run_id=job.run_id, text=row.text, n_tokens=int(row.detail["length"]),
        stop_reason=stop_reason,
    )  # fmt: skip


def _judge(session: Session, verdicts: VerdictSet, pair: Pair, item: Item, is_logit: bool) -> None:
    """The watcher's scores as a verdict. Those of a reward model give Bradley and Terry's p(a beats b), as
    worker/judge_local.py has it; of any other the higher score wins, and no probability is made up."""
    a, b = (float(row.detail["held_out"]) for row in (item.then, item.now))
    p_a = sigmoid(a - b) if is_logit else None
    choice = choose(p_a) if p_a is not None else "tie" if a == b else "a" if a > b else "b"
    said = OpinionValue(False, choice, p_a, {}, f"a scores {a:.3f} and b {b:.3f}")
    value: VerdictValue = add_up([said])
    session.add(Opinion(
        verdict_set_id=verdicts.id, pair_id=pair.id, judge_id=verdicts.judge_id, choice=said.choice, p_a=p_a,
        reason=said.reason,
    ))  # fmt: skip
    session.add(Verdict(
        verdict_set_id=verdicts.id, pair_id=pair.id, outcome=value.outcome, p_a=p_a, reason=value.reason,
        need=value.need,
    ))  # fmt: skip
    counter = f"n_{value.outcome}"
    setattr(verdicts, counter, getattr(verdicts, counter) + 1)
