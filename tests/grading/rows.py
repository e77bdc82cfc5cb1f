"""Gradings with real rows: two or three arms whose every trace is marked, so that a leak can be searched for."""

import hashlib

from sqlmodel import Session

from app.checkpoints.models import Arm, Checkpoint
from app.grading.items import make_grading
from app.grading.models import Grading
from app.grading.recipes import GradingRecipe
from app.pairs.models import Completion
from app.projects.models import Project
from app.prompts.models import Prompt, PromptSet
from tests.review.rows import make_run

MARK = "zebra"  # stands in every name that could tell who wrote what
FIRST_ID = 771_230_000  # and these digits in every id


def make_marked_grading(
    session: Session, project: Project, n: int = 6, methods: tuple[str, ...] = ("base", "dpo"), n_identical: int = 0
) -> Grading:
    """A grading of n prompts, all pairs of the arms; the first `n_identical` prompts have equal completions."""
    prompts = PromptSet(project_id=project.id, name=f"{MARK} prompts", state="ready", n=n)
    session.add(prompts)
    session.flush()
    run = make_run(session, project, "grading", title=f"{MARK} run", recipe={"kind": "grading", "name": MARK})
    arms = []
    for place, method in enumerate(methods):
        checkpoint = Checkpoint(
            id=FIRST_ID + place, project_id=project.id, name=f"{MARK}-checkpoint-{method}", method=method,
            source=f"/models/{MARK}", path=f"checkpoints/{MARK}",
        )  # fmt: skip
        arm = Arm(
            id=FIRST_ID + 100 + place, project_id=project.id, name=f"{MARK}-arm-{method}", kind="checkpoint",
            method=method, checkpoint_id=checkpoint.id, sha256=hashlib.sha256(bytes([place])).hexdigest(),
        )  # fmt: skip
        session.add(checkpoint)
        session.flush()
        session.add(arm)
        arms.append(arm)
    session.flush()
    written = {}
    for i in range(n):
        text = f"Question {i}?"
        prompt = Prompt(
            id=FIRST_ID + 200 + i, set_id=prompts.id, position=i, messages=[{"role": "user", "content": text}],
            reference=f"Truth {i}", split="test", grp=str(i), sha256=hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        session.add(prompt)
        session.flush()
        for place, arm in enumerate(arms):
            said = f"The same to {i}." if i < n_identical else f"To question {i}, in manner {'αβγ'[place]}."
            completion = Completion(
                id=FIRST_ID + 1000 + 10 * i + place, prompt_id=prompt.id, arm_id=arm.id, run_id=run.id, text=said
            )
            session.add(completion)
            written[prompt.id, arm.id] = completion
    session.flush()
    recipe = GradingRecipe(
        name=f"{MARK} grading", prompt_set=prompts.id, arms=[arm.id for arm in arms], is_all_pairs=True
    )
    return make_grading(session, recipe, project.id, run.id, 7, [arm.id for arm in arms], written)
