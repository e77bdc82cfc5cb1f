"""Real rows for tests of critique and revision: a constitution, an arm's completions, revisions in every state."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.models import Arm
from app.constitutions.constitutions import PrincipleText, add_version
from app.constitutions.models import Constitution
from app.pairs.models import Completion
from app.projects.models import Project
from app.prompts.models import Prompt, PromptSet
from app.revising.models import Revision, RevisionSet
from app.runs.models import Run
from app.runs.recipe import sha256_of

PRINCIPLES = (PrincipleText("honest", "It invents nothing."), PrincipleText("kind", "It is friendly.", 3.0))


def make_constitution(
    session: Session, project: Project, principles: Sequence[PrincipleText] = PRINCIPLES
) -> Constitution:
    """Version 1 of a small constitution."""
    return add_version(session, project.id, "small", "Be good.", principles)


def make_originals(
    session: Session, project: Project, n: int, samples: int = 1, splits: Sequence[str] = ("train",)
) -> tuple[PromptSet, Arm]:
    """n prompts, and what an imported arm wrote for them."""
    prompts = PromptSet(project_id=project.id, name="questions", state="ready", n=n)
    run = Run(project_id=project.id, kind="generate", queue="cpu", recipe={}, recipe_sha256="", status="done")
    session.add_all([prompts, run])
    session.flush()
    arm = find_or_make_imported_arm(session, project.id, "SECRET-MODEL")
    session.flush()
    for place in range(n):
        messages = [{"role": "user", "content": f"Question {place} about topic {place * 7}?"}]
        prompt = Prompt(
            set_id=prompts.id, position=place, messages=messages, split=splits[place % len(splits)],
            grp=f"group-{place}", category="safety" if place % 2 else "tea",
            sha256=sha256_of({"messages": messages, "follow_ups": [], "reference": None}),
        )  # fmt: skip
        session.add(prompt)
        session.flush()
        for sample in range(samples):
            text = f"Rude answer {place}.{sample}"
            session.add(Completion(prompt_id=prompt.id, arm_id=arm.id, run_id=run.id, sample=sample, text=text))
    session.flush()
    return prompts, arm


def make_revisions(session: Session, project: Project, n: int) -> RevisionSet:
    """n revisions nobody has looked at; the last one has no text, only a reason."""
    prompts, arm = make_originals(session, project, n, splits=("train", "train", "dev"))
    constitution = make_constitution(session, project)
    revised = find_or_make_imported_arm(session, project.id, "REVISED-BY-MODEL")
    run = Run(project_id=project.id, kind="revise", queue="cpu", recipe={}, recipe_sha256="", status="done")
    session.add(run)
    session.flush()
    made = RevisionSet(
        project_id=project.id, name="kinder answers", prompt_set_id=prompts.id, constitution_id=constitution.id,
        original_arm_id=arm.id, arm_id=revised.id, n=n, run_id=run.id,
        settings={"reviser": "SECRET-REVISER", "rounds": 1, "principles": "drawn"},
    )  # fmt: skip
    session.add(made)
    session.flush()
    originals = session.exec(select(Completion).where(Completion.arm_id == arm.id).order_by(col(Completion.id))).all()
    for place, one in enumerate(originals):
        text = one.text.replace("Rude", "Friendly")
        step = {"principle": "kind", "body": "It is friendly.", "critique": f"Critique {place}: it is rude.",
                "is_critique_cut": False, "revision": text}  # fmt: skip
        completion = None
        if place < n - 1:
            completion = Completion(prompt_id=one.prompt_id, arm_id=revised.id, run_id=run.id, text=text)
            session.add(completion)
            session.flush()
        session.add(
            Revision(
                set_id=made.id, position=place, prompt_id=one.prompt_id, original_id=one.id, steps=[step],
                revised_id=completion.id if completion else None,
                reason="" if completion else "the revision equals the original",
            )
        )  # fmt: skip
    session.flush()
    return made


def revisions_of(session: Session, set_id: int) -> list[Revision]:
    """A set's revisions in order."""
    return list(session.exec(select(Revision).where(Revision.set_id == set_id).order_by(col(Revision.position))))
