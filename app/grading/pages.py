"""What the grading pages list: gradings, and after the closing every grade with the arms behind it."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import col

from app.accounts.models import Account
from app.checkpoints.models import Arm
from app.grading.models import Grade, GradeItem, Grading
from app.pairs.models import Completion
from app.projects.access import Member
from app.tables import Column, Table


def name_for(member: Member, grading: Grading) -> str:
    """What this member may read as the name: a researcher's words could tell a grader what is compared."""
    return grading.name if member.may("viewer") else f"Grading {grading.id}"


def gradings_table(member: Member) -> Table:
    """The project's gradings."""
    root = f"/p/{member.project.slug}/grade"
    of_grading = sa.select(sa.func.count(sa.distinct(col(Grade.item_id)))).join(
        GradeItem, col(GradeItem.id) == col(Grade.item_id)
    )
    graded = of_grading.where(
        col(GradeItem.grading_id) == col(Grading.id), col(Grade.choice) != "skip"
    ).scalar_subquery()
    name: Any = Grading.name if member.may("viewer") else sa.literal("Grading ") + sa.cast(col(Grading.id), sa.String)
    state = sa.case((col(Grading.closed_at).is_(None), "open"), else_="closed")
    columns = [
        Column("name", name, "Grading", href=lambda row: f"{root}/{row['id']}"),
        Column("state", state, "State", "badge"),
        Column("graded", graded, "Graded", "number"),
        Column("planned_n", Grading.planned_n, "Of", "number"),
        Column("created_at", Grading.created_at, "Prepared", "when"),
        Column("closed_at", Grading.closed_at, "Closed", "when"),
        Column("id", Grading.id, is_shown=False),
    ]
    return Table("gradings", columns, Grading, Grading.id, [Grading.project_id == member.project.id])


def grades_table(grading: Grading) -> Table:
    """Every grade of a closed grading, with the arms."""
    left, right, left_arm, right_arm = aliased(Completion), aliased(Completion), aliased(Arm), aliased(Arm)
    columns = [
        Column("id", Grade.id, "Grade", "number"),
        Column("prompt", GradeItem.prompt_id, "Prompt", "number"),
        Column("account", Account.name, "Who"),
        Column("is_simulated", Account.is_simulated, is_shown=False),
        Column("left_arm", left_arm.name, "Left"),
        Column("right_arm", right_arm.name, "Right"),
        Column("choice", Grade.choice, "Choice", "word"),
        Column("left_alignment", Grade.left_alignment, "Left, 1–5", "number"),
        Column("right_alignment", Grade.right_alignment, "Right, 1–5", "number"),
        Column("left_correct", Grade.left_correct, "Left correct"),
        Column("right_correct", Grade.right_correct, "Right correct"),
        Column("seconds", Grade.seconds, "Seconds", "number"),
        Column("left_completion", GradeItem.left_id, is_shown=False),
        Column("right_completion", GradeItem.right_id, is_shown=False),
        Column("made_at", Grade.made_at, is_shown=False),
    ]
    source = (
        sa.join(Grade, GradeItem, col(GradeItem.id) == col(Grade.item_id))
        .join(Account, col(Account.id) == col(Grade.account_id))
        .join(left, col(left.id) == col(GradeItem.left_id))
        .join(right, col(right.id) == col(GradeItem.right_id))
        .join(left_arm, col(left_arm.id) == col(left.arm_id))
        .join(right_arm, col(right_arm.id) == col(right.arm_id))
    )
    return Table(f"grades-{grading.id}", columns, source, Grade.id, [col(GradeItem.grading_id) == grading.id])
