"""The left rail: each stage with its count, and a dot while something of it is running."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel

from app.projects.access import Member
from app.runs.routes import PAGES
from app.training.pages import METHODS

# label, path below the project, table counted, kinds of run that make the dot
STAGES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("Prompts", "prompts", "prompt_set", ("import_prompts", "red_team")),
    ("Pairs", "pairs", "pair_set", ("generate", "import_pairs", "revise", "hand_over", "best_of")),
    ("Judge", "judge", "verdict_set", ("judge", "card")),
    ("Review", "review", "queue", ("audit",)),
    ("Train", "train", "snapshot", ("snapshot", *METHODS, "demo_base")),
    ("Benchmarks", "benchmarks", "benchmark", ("benchmark",)),
    ("Grade", "grade", "grading", ("grading",)),
    ("Report", "report", "experiment", ()),
    ("Runs", "runs", "run", ()),
    ("Checkpoints", "checkpoints", "checkpoint", ("import_checkpoint",)),
    ("Settings", "settings", "", ()),
)
FOR_GRADERS = {"Review", "Grade"}
# pages and forms whose address names no stage, and the one they belong to
ELSEWHERE = {
    "annotations": "review", "revisions": "review", "constitutions": "judge", "import": "prompts", "workers": "runs",
    "experiments": "report", "import_annotations": "review", "check_prompts": "prompts", "rate": "judge",
    "peek_hub": "prompts", "new_judge": "judge", "new_endpoint": "checkpoints", "export": "checkpoints",
}  # fmt: skip


@dataclass(frozen=True)
class RailItem:
    """One entry of the rail."""

    label: str
    url: str
    count: int | None
    is_running: bool
    is_here: bool


def read_rail(session: Session, member: Member, path: str) -> list[RailItem]:
    """The rail as this member sees it: one query for the counts, one for what is running."""
    shown = tuple(stage for stage in STAGES if member.may("viewer") or stage[0] in FOR_GRADERS)
    counting, running = _statements(tuple(name for _, _, name, _ in shown if name))
    counts = session.execute(counting, {"project": member.project.id}).one()._mapping
    live = set(session.execute(running, {"project": member.project.id}).scalars())
    root = f"/p/{member.project.slug}"
    here = _stage_of(path.removeprefix(root).strip("/"))
    items = []
    for label, below, name, kinds in shown:
        url = f"{root}/{below}"
        is_running = bool(live & set(kinds)) or (label == "Runs" and bool(live))
        items.append(RailItem(label, url, counts.get(name), is_running, here == below))
    return items


@cache
def _statements(names: tuple[str, ...]) -> tuple[sa.Select[Any], sa.Select[Any]]:
    """What counts a project's rows of these tables, and what tells which kinds of run are running.

    Built once: every page asks them, and building them takes longer than running them.
    """
    tables = SQLModel.metadata.tables
    project: Any = sa.bindparam("project")
    counted = []
    for name in names:
        columns = tables[name].c
        counting = sa.select(sa.func.count()).where(columns.project_id == project)
        if "archived_at" in columns:
            counting = counting.where(columns.archived_at.is_(None))
        counted.append(counting.label(name))
    run = tables["run"]
    running = sa.select(run.c.kind).distinct().where(run.c.project_id == project, run.c.status == "running")
    return sa.select(*counted), running


def _stage_of(below: str) -> str:
    """The stage that a page below the project belongs to: by its own address, or by what it is a part of."""
    first, _, rest = below.partition("/")
    if first == "lineage":
        noun = rest.partition("/")[0]
        return _stage_of("runs" if noun == "run" else PAGES.get(noun, ""))
    if first == "new":
        return next((stage for _, stage, _, kinds in STAGES if rest in kinds), ELSEWHERE.get(rest, ""))
    return ELSEWHERE.get(first, first)
