"""An arm in context: a constitution as the system message, examples and accepted revisions as demonstrations."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_arm
from app.checkpoints.models import Arm, Checkpoint
from app.constitutions.constitutions import PrincipleText, freeze, read_principles
from app.constitutions.models import Constitution
from app.db import get
from app.errors import Invalid
from app.pairs.models import Completion
from app.prompts.models import Prompt
from app.revising.models import Revision, RevisionSet
from app.revising.recipes import InContextFields


def as_system_message(constitution: Constitution, principles: list[PrincipleText]) -> str:
    """A constitution as instructions to the model itself: its preface speaks to judges and is left out."""
    lines = [f"- {' '.join(one.body.split())}" for one in principles if one.weight > 0]
    return "Answer so that what you write keeps to each of these principles:\n" + "\n".join(lines)


def build_in_context_arm(
    session: Session, project_id: int, constitution: Constitution, wanted: InContextFields,
    few_shot: Sequence[str] = (), name: str = "",
) -> Arm:  # fmt: skip
    """The arm of these fields, whose constitution is frozen from now on; raises Invalid."""
    if wanted.checkpoint is not None and get(session, Checkpoint, wanted.checkpoint).role != "policy":
        message = "This checkpoint is a reward model, which writes nothing: choose a policy."
        raise Invalid(message, {"checkpoint": [message]})
    turns = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(few_shot)]
    arm = find_or_make_arm(
        session, project_id, checkpoint=wanted.checkpoint, endpoint=wanted.endpoint,
        system=as_system_message(constitution, read_principles(session, constitution.id)),
        few_shot=[*turns, *_demonstrations(session, wanted)], decoding=wanted.decoding.model_dump(), name=name,
    )  # fmt: skip
    session.flush()
    freeze(session, constitution.id)
    return arm


def _demonstrations(session: Session, wanted: InContextFields) -> list[dict[str, str]]:
    """Questions and what people accepted as their revised answers; only single-turn prompts of the train split."""
    if wanted.revision_set is None or not wanted.n_shown:
        return []
    rows = session.exec(
        select(Prompt, Completion)
        .join(Revision, col(Revision.prompt_id) == col(Prompt.id))
        .join(Completion, col(Completion.id) == col(Revision.revised_id))
        .where(Revision.set_id == wanted.revision_set, Revision.state == "accepted", Prompt.split == "train")
        .order_by(col(Revision.position))
    ).all()
    turns = [
        [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": one.text}]
        for prompt, one in rows
        if sum(message["role"] == "user" for message in prompt.messages) == 1
    ]
    if len(turns) < wanted.n_shown:
        made = get(session, RevisionSet, wanted.revision_set)
        message = (
            f"“{made.name}” has {len(turns)} accepted revisions of single-turn train prompts, fewer than "
            f"{wanted.n_shown}: review more, or show fewer."
        )
        raise Invalid(message, {"revision_set": [message]})
    return [turn for two in turns[: wanted.n_shown] for turn in two]
