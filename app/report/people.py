"""What people said: blind grading once it is closed, and the audit of the judge. Nothing is filled in for them."""

from dataclasses import dataclass

from sqlmodel import Session

from app.db import get
from app.grading.items import count_graded
from app.grading.models import Grading
from app.grading.results import Results, read_results
from app.judging.models import Judge, VerdictSet
from app.report.arms import Material
from app.review.agreement import Agreement, read_agreement
from app.review.models import Queue


@dataclass(frozen=True)
class GradingLine:
    """A grading of the experiment. `results` is None while it is sealed, or when nobody graded."""

    grading: Grading
    seed: int
    n_graded: int
    results: Results | None

    @property
    def is_open(self) -> bool:
        """Whether people may still grade."""
        return self.grading.closed_at is None


@dataclass(frozen=True)
class AuditLine:
    """An audit of the experiment's verdicts."""

    agreement: Agreement
    judge: Judge
    seed: int


def read_gradings(session: Session, material: Material) -> list[GradingLine]:
    """The gradings that the experiment prepared."""
    found = []
    for step in material.of_kind("grading"):
        key = material.made(step, "grading")
        if key is None:
            continue
        grading = get(session, Grading, key)
        n_graded = count_graded(session, grading)
        has_results = grading.closed_at is not None and n_graded > 0
        found.append(GradingLine(grading, step.seed, n_graded, read_results(session, grading) if has_results else None))
    return found


def read_audits(session: Session, material: Material) -> list[AuditLine]:
    """The audits that the experiment drew."""
    found = []
    for step in material.of_kind("audit"):
        key = material.made(step, "queue")
        queue = get(session, Queue, key) if key is not None else None
        if queue is None or queue.kind != "audit":
            continue
        judge = get(session, Judge, get(session, VerdictSet, queue.verdict_set_id or 0).judge_id)
        found.append(AuditLine(read_agreement(session, queue), judge, step.seed))
    return found
