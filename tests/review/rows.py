"""Real rows for tests of people's work: prompts, pairs, a judge and its verdicts, and people."""

import hashlib

from sqlmodel import Session, col, select

from app.accounts.logins import make_account, make_login
from app.accounts.models import Account
from app.checkpoints.models import Arm
from app.constitutions.models import Constitution, Principle
from app.db import get, reading, transaction
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.projects.models import Membership, Project
from app.prompts.models import Prompt, PromptSet
from app.runs.models import QUEUES, Run
from app.runs.queue import claim, launch
from app.runs.recipe import Recipe
from worker.child import work


def make_run(session: Session, project: Project, kind: str = "generate", **more: object) -> Run:
    """A run that is over."""
    run = Run(project_id=project.id, kind=kind, queue="cpu", recipe={"kind": kind}, recipe_sha256="", status="done")
    for name, value in more.items():
        setattr(run, name, value)
    session.add(run)
    session.flush()
    return run


def make_pairs(session: Session, project: Project, n: int, splits: tuple[str, ...] = ("train",)) -> PairSet:
    """n pairs, one a prompt; splits are dealt in turn."""
    prompts = PromptSet(project_id=project.id, name="capitals", state="ready", n=n)
    arm = Arm(project_id=project.id, name="ARM-OF-PAIRS", kind="imported", sha256="0" * 64)
    session.add_all([prompts, arm])
    session.flush()
    run = make_run(session, project)
    pairs = PairSet(project_id=project.id, name="capital pairs", prompt_set_id=prompts.id, n=n, run_id=run.id)
    session.add(pairs)
    session.flush()
    for i in range(n):
        text = f"What is the capital of country {i}?"
        prompt = Prompt(
            set_id=prompts.id, position=i, messages=[{"role": "user", "content": text}], reference=f"City {i}",
            split=splits[i % len(splits)], grp=f"country-{i}", sha256=hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        session.add(prompt)
        session.flush()
        sides = [
            Completion(
                prompt_id=prompt.id, arm_id=arm.id, run_id=run.id, sample=k, text=f"It is city {i}, says {side}."
            )
            for k, side in enumerate("ab")
        ]
        session.add_all(sides)
        session.flush()
        session.add(Pair(pair_set_id=pairs.id, position=i, prompt_id=prompt.id, a_id=sides[0].id, b_id=sides[1].id))
    session.flush()
    return pairs


def make_verdicts(session: Session, project: Project, pairs: PairSet, outcomes: list[str | None]) -> VerdictSet:
    """A verdict for each pair, the outcomes dealt in turn; each with one opinion that names a principle."""
    constitution = Constitution(project_id=project.id, name="Truth", version=1)
    session.add(constitution)
    session.flush()
    session.add(Principle(constitution_id=constitution.id, key="true", body="Prefer what is true.", position=0))
    judge = Judge(project_id=project.id, name="a rule", kind="rule")
    session.add(judge)
    session.flush()
    found = VerdictSet(
        project_id=project.id, name="verdicts by rule", pair_set_id=pairs.id, judge_id=judge.id,
        constitution_id=constitution.id, run_id=make_run(session, project, "judge").id,
    )  # fmt: skip
    session.add(found)
    session.flush()
    in_order = select(Pair).where(Pair.pair_set_id == pairs.id).order_by(col(Pair.position))
    for i, pair in enumerate(session.exec(in_order).all()):
        outcome = outcomes[i % len(outcomes)]
        why = "the judge’s secret reason" if outcome else "no verdict in the answer"
        session.add(Verdict(verdict_set_id=found.id, pair_id=pair.id, outcome=outcome, reason=why,
                            need=1.0 if outcome is None else i / 1000, is_flip=i % 5 == 0))  # fmt: skip
        session.add(Opinion(verdict_set_id=found.id, pair_id=pair.id, judge_id=judge.id, choice=outcome, reason=why,
                            by_principle={"true": outcome} if outcome else {}))  # fmt: skip
        setattr(found, f"n_{outcome or 'null'}", getattr(found, f"n_{outcome or 'null'}") + 1)
    session.flush()
    return found


def make_person(
    session: Session, project: Project, name: str, role: str, *, is_simulated: bool = False
) -> tuple[Account, str]:
    """A member of the project and the cookie they are signed in with."""
    account = make_account(session, name, is_simulated=is_simulated)
    session.add(Membership(project_id=project.id, account_id=account.id, role=role))
    return account, make_login(session, account, "session")


def do(project: Project, recipe: Recipe) -> Run:
    """Launches a recipe and does its run here and now, as a worker's child would; raises if it failed."""
    with transaction() as session:
        run_id = launch(session, recipe, project_id=project.id).id
    return do_run(run_id)


def do_run(run_id: int) -> Run:
    """Does one queued run here and now."""
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
        assert run is not None and run.id == run_id
    work(run.id, run.attempt)
    with reading() as session:
        run = get(session, Run, run_id)
        assert run.status == "done", run.error
        return run
