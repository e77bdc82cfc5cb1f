"""Blind items: making them, handing them out, and taking grades. Nothing here tells a grader which arm wrote what."""

import itertools
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.db import get, now
from app.errors import Conflict, Invalid, NotFound
from app.grading.models import CHOICES, ArmGuess, Grade, GradeItem, Grading
from app.grading.recipes import GradingRecipe
from app.pairs.models import Completion
from app.projects.access import Member
from app.prompts.models import Prompt

CORRECT = ("yes", "partly", "no")


@dataclass(frozen=True)
class Marks:
    """What a grader says of one item."""

    choice: str
    left_alignment: int | None = None
    right_alignment: int | None = None
    left_correct: str | None = None
    right_correct: str | None = None
    seconds: float = 0.0


def project_grading(session: Session, member: Member, grading_id: int) -> Grading:
    """A grading of this project; raises NotFound."""
    grading = get(session, Grading, grading_id)
    if grading.project_id != member.project.id:
        raise NotFound(f"There is no grading {grading_id}.")
    return grading


def find_item(session: Session, member: Member, token: str) -> tuple[GradeItem, Grading]:
    """The item behind a token, of this project and to be shown; raises NotFound."""
    item = session.exec(select(GradeItem).where(GradeItem.token == token)).first() if token.isascii() else None
    grading = session.get(Grading, item.grading_id) if item else None
    if item is None or grading is None or item.is_identical or grading.project_id != member.project.id:
        raise NotFound("There is no such item.")
    return item, grading


def make_grading(
    session: Session, recipe: GradingRecipe, project_id: int, run_id: int, seed: int, arms: Sequence[int],
    written: Mapping[tuple[int, int], Completion],
) -> Grading:  # fmt: skip
    """Stores the grading with its items, or finds the one this run has made.

    `written` maps (prompt, arm) to the completion. Sides are dealt so that each arm of a pair stands left for half of
    the prompts. Completions that read the same are ties, counted and never shown.
    """
    known = session.exec(select(Grading).where(Grading.run_id == run_id)).first()
    if known is not None:
        return known
    rng = random.Random(seed)
    every_two = itertools.combinations(arms, 2)
    prompts = sorted({prompt for prompt, _ in written})
    rows: list[GradeItem] = []
    for one, other in every_two if recipe.is_all_pairs else [(arms[0], arm) for arm in arms[1:]]:
        is_turned = [place % 2 == 0 for place in range(len(prompts))]
        rng.shuffle(is_turned)
        for prompt, turned in zip(prompts, is_turned, strict=True):
            left, right = written[prompt, one], written[prompt, other]
            is_identical = left.text.strip() == right.text.strip()
            if turned:
                left, right = right, left
            rows.append(GradeItem(
                token=secrets.token_urlsafe(18), grading_id=0, position=0, prompt_id=prompt, left_id=left.id,
                right_id=right.id, is_identical=is_identical,
            ))  # fmt: skip
    rng.shuffle(rows)
    n_identical = sum(row.is_identical for row in rows)
    grading = Grading(
        project_id=project_id, name=recipe.name or f"Grading of {len(rows) - n_identical} items",
        prompt_set_id=recipe.prompt_set, seed=seed, planned_n=len(rows) - n_identical, n_identical=n_identical,
        arms=list(arms), run_id=run_id,
    )  # fmt: skip
    session.add(grading)
    session.flush()
    for position, row in enumerate(rows):
        row.grading_id, row.position = grading.id, position
    session.add_all(rows)
    session.flush()
    return grading


def next_item(session: Session, grading: Grading, account_id: int) -> GradeItem | None:
    """What this person grades next: the items with the fewest grades first, so that all get some."""
    if grading.closed_at is not None or has_ended(session, grading, account_id):
        return None
    by_me = sa.select(col(Grade.item_id)).where(col(Grade.account_id) == account_id)
    n = sa.select(sa.func.count()).where(col(Grade.item_id) == col(GradeItem.id)).scalar_subquery()
    open_items = (
        select(GradeItem)
        .where(GradeItem.grading_id == grading.id, ~col(GradeItem.is_identical), col(GradeItem.id).not_in(by_me))
        .order_by(n, col(GradeItem.position))
    )
    return session.exec(open_items.limit(1)).first()


def last_graded(session: Session, grading: Grading, account_id: int, before: GradeItem | None = None) -> str | None:
    """The token of the item this person graded last (before the one given): where U leads back to."""
    mine = (
        sa.select(col(GradeItem.token), col(GradeItem.id))
        .join(Grade, col(Grade.item_id) == col(GradeItem.id))
        .where(col(GradeItem.grading_id) == grading.id, col(Grade.account_id) == account_id)
        .order_by(col(Grade.made_at).desc(), col(Grade.id).desc())
    )
    tokens = [row.token for row in session.execute(mine.limit(1 if before is None else 10_000))]
    if before is not None and before.token in tokens:
        tokens = tokens[tokens.index(before.token) + 1 :]
    return tokens[0] if tokens else None


def has_ended(session: Session, grading: Grading, account_id: int) -> bool:
    """Whether this person has ended their part: their grades stand, and they may be asked to guess the arms."""
    made = select(ArmGuess.id).where(ArmGuess.grading_id == grading.id, ArmGuess.account_id == account_id)
    return session.exec(made).first() is not None


def read_item(session: Session, item: GradeItem) -> tuple[Prompt, str, str]:
    """The prompt and the two texts, left and right."""
    left, right = get(session, Completion, item.left_id), get(session, Completion, item.right_id)
    return get(session, Prompt, item.prompt_id), left.text, right.text


def own_grade(session: Session, item: GradeItem, account_id: int) -> Grade | None:
    """What this person said of an item."""
    return session.exec(select(Grade).where(Grade.item_id == item.id, Grade.account_id == account_id)).first()


def check_marks(marks: Marks) -> None:
    """Raises Invalid, by field, for marks that are missing or out of range. A skip needs none."""
    wrong: dict[str, list[str]] = {}
    if marks.choice not in CHOICES:
        wrong["choice"] = [f"one of {', '.join(CHOICES)}"]
    for side in ("left", "right"):
        alignment, correct = getattr(marks, f"{side}_alignment"), getattr(marks, f"{side}_correct")
        if alignment is None and marks.choice != "skip":
            wrong[f"{side}_alignment"] = ["give 1 to 5"]
        if alignment is not None and not 1 <= alignment <= 5:
            wrong[f"{side}_alignment"] = ["1 to 5"]
        if correct is None and marks.choice != "skip":
            wrong[f"{side}_correct"] = ["say yes, partly or no"]
        if correct is not None and correct not in CORRECT:
            wrong[f"{side}_correct"] = ["yes, partly or no"]
    if wrong:
        said = "; ".join(f"{name.replace('_', ' ')}: {', '.join(what)}" for name, what in wrong.items())
        raise Invalid(f"Something is missing: {said}.", wrong)


def give_grade(session: Session, item: GradeItem, grading: Grading, account_id: int, marks: Marks) -> Grade:
    """Stores a person's grade of an item; until the grading is closed they may change it. Blind all the while."""
    check_marks(marks)
    # The row is locked, so that a closing waits for this grade or is seen by it.
    closed_at = session.exec(select(Grading.closed_at).where(Grading.id == grading.id).with_for_update()).one()
    if closed_at is not None:
        raise Conflict("This grading is closed: no grade can be given or changed.")
    if has_ended(session, grading, account_id):
        raise Conflict("You have ended your part of this grading: your grades stand.")
    values = {name: getattr(marks, name) for name in Marks.__dataclass_fields__}
    row = own_grade(session, item, account_id)
    if row is None:
        row = Grade(item_id=item.id, account_id=account_id, **values)
        try:
            with session.begin_nested():
                session.add(row)
            return row
        except IntegrityError:  # the same key twice: the second press changes the first one's row
            row = own_grade(session, item, account_id)
            assert row is not None
    for name, value in values.items():
        setattr(row, name, value)
    session.flush()
    return row


def close_grading(session: Session, grading: Grading) -> None:
    """Ends a grading: from now on its results are shown and no grade is taken. Raises Conflict if it is closed."""
    closed = session.execute(
        sa.update(Grading)
        .where(col(Grading.id) == grading.id, col(Grading.closed_at).is_(None))
        .values(closed_at=now())
    )
    if closed.rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict("This grading was closed before.")
    session.refresh(grading)


def count_graded(session: Session, grading: Grading, account_id: int | None = None) -> int:
    """Items with at least one grade that is no skip; with an account, items that person has dealt with."""
    graded = (
        sa.select(sa.func.count(sa.distinct(col(Grade.item_id))))
        .join(GradeItem, col(GradeItem.id) == col(Grade.item_id))
        .where(col(GradeItem.grading_id) == grading.id)
    )
    if account_id is None:
        graded = graded.where(col(Grade.choice) != "skip")
    else:
        graded = graded.where(col(Grade.account_id) == account_id)
    return int(session.execute(graded).scalar_one())
