"""Real rows for tests of judging: prompts, completions, pairs; and runs done by the real worker function."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from sqlmodel import Session, select

from app import db
from app.checkpoints.arms import find_or_make_imported_arm
from app.judging.models import Judge, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.prompts.models import Prompt, PromptSet
from app.recipes import read_recipe
from app.runs.models import Run
from app.runs.queue import claim, launch, outputs
from app.runs.recipe import sha256_of
from tests.chat_server import Request, asked_nonce, candidates
from worker.child import work

ALL = ["gpu", "io", "cpu"]


def make_pairs(session: Session, project_id: int, texts: Sequence[tuple[str, str, str, str | None]]) -> PairSet:
    """A pair set of (prompt, a, b, reference) rows, as an import would store them."""
    run = Run(project_id=project_id, kind="import_pairs", queue="cpu", recipe={}, recipe_sha256="", status="done")
    arm = find_or_make_imported_arm(session, project_id, "imported")
    n = len(session.exec(select(PairSet.id)).all())
    prompts = PromptSet(project_id=project_id, name=f"prompts {n}", state="ready", n=len(texts))
    session.add_all([run, prompts])
    session.flush()
    pairs = PairSet(project_id=project_id, name=f"pairs {n}", prompt_set_id=prompts.id, n=len(texts), run_id=run.id)
    session.add(pairs)
    session.flush()
    for position, (question, a, b, reference) in enumerate(texts):
        messages = [{"role": "user", "content": question}]
        prompt = Prompt(set_id=prompts.id, position=position, messages=messages, reference=reference, split="train",
                        grp=str(position), sha256=sha256_of([position, messages]))  # fmt: skip
        session.add(prompt)
        session.flush()
        sides = [
            Completion(prompt_id=prompt.id, arm_id=arm.id, run_id=run.id, sample=i, text=t)
            for i, t in enumerate((a, b))
        ]
        session.add_all(sides)
        session.flush()
        session.add(
            Pair(pair_set_id=pairs.id, position=position, prompt_id=prompt.id, a_id=sides[0].id, b_id=sides[1].id)
        )
    session.flush()
    return pairs


def start(project_id: int, **recipe: Any) -> Run:
    """A launched and claimed run of a recipe."""
    with db.transaction() as session:
        launch(session, read_recipe(recipe), project_id=project_id)
    return claim_next()


def claim_next() -> Run:
    """The next runnable run, claimed as a worker would."""
    with db.transaction() as session:
        run = claim(session, ALL, "test", None)
        assert run is not None
        return run


def error_of(run: Run) -> str:
    """Why a run failed."""
    assert run.error is not None
    return run.error


def do(project_id: int, **recipe: Any) -> Run:
    """A recipe done by the real worker function, in this process; the run as it ended."""
    run = start(project_id, **recipe)
    work(run.id, run.attempt)
    return read(Run, run.id)


def spawn(run: Run) -> subprocess.Popen[bytes]:
    """The run's real child process."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker.child", str(run.id), str(run.attempt)],
        stdin=subprocess.PIPE,
        env=dict(os.environ),
    )


def read(kind: Any, key: int) -> Any:
    """A row as it stands."""
    with db.reading() as session:
        return db.get(session, kind, key)


def made(run: Run, noun: str) -> int:
    """The one row called `noun` that a run made."""
    with db.reading() as session:
        (key,) = outputs(session, run.id, noun)
    return key


def endpoint_judge(project_id: int, origin: str, **endpoint: Any) -> int:
    """A judge at an endpoint, made by the runs a person would launch."""
    added = do(project_id, kind="new_endpoint", origin=origin, model="m", **endpoint)
    assert added.status == "done", added.error
    judge = do(project_id, kind="new_judge", judge_kind="endpoint", endpoint=made(added, "endpoint"))
    assert judge.status == "done", judge.error
    return made(judge, "judge")


def set_of(run: Run) -> VerdictSet:
    """The verdict set a run made."""
    found: VerdictSet = read(VerdictSet, made(run, "verdict_set"))
    return found


def judge_row(key: int) -> Judge:
    """A judge."""
    found: Judge = read(Judge, key)
    return found


def by_principle(request: Request) -> str:
    """Long wants the longer, short the shorter; on the whole it likes what is shown first."""
    a, b = candidates(request)
    longer = "tie" if len(a) == len(b) else ("A" if len(a) > len(b) else "B")
    shorter = {"A": "B", "B": "A", "tie": "tie"}[longer]
    told = {"long": longer, "short": shorter}
    system, asked = request["messages"][0]["content"], request["messages"][-1]["content"]
    fields: dict[str, Any] = {"reason": "by the rule"}
    if '"principles"' in asked:
        fields["principles"] = told
    keys = re.findall(r"^- (\w+):", system, re.MULTILINE)
    letter = told[keys[0]] if len(keys) == 1 else "A"
    return json.dumps({**fields, "verdict": letter, "nonce": asked_nonce(request)})
