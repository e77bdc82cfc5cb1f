"""The test split is scored once per checkpoint and measurement."""

import pytest

from app import db
from app.benchmarks.recipes import BenchmarkRecipe
from app.checkpoints.models import Checkpoint
from app.errors import Conflict
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import Run
from app.runs.queue import cancel, launch


@pytest.fixture
def ids(project: Project) -> tuple[int, int]:
    with db.transaction() as session:
        checkpoint = Checkpoint(project_id=project.id, name="base", method="base")
        prompts = PromptSet(project_id=project.id, name="prompts", state="ready")
        session.add_all([checkpoint, prompts])
        session.flush()
        return checkpoint.id, prompts.id


def start(project: Project, ids: tuple[int, int], **changes: object) -> int:
    given = {"checkpoint": ids[0], "prompt_set": ids[1], "benchmark": "strict_format", **changes}
    with db.transaction() as session:
        return launch(session, BenchmarkRecipe.model_validate(given), project_id=project.id).id


def test_a_second_draw_from_test_is_refused_whatever_its_seed(project: Project, ids: tuple[int, int]) -> None:
    first = start(project, ids)
    for changes in ({}, {"seed": 2}, {"name": "again", "batch_size": 2}):
        with pytest.raises(Conflict, match=f"Run {first} has scored"):
            start(project, ids, **changes)


def test_dev_may_be_scored_again_and_so_may_what_never_was(project: Project, ids: tuple[int, int]) -> None:
    assert start(project, ids, splits=["dev"]) != start(project, ids, splits=["dev"])
    first = start(project, ids)
    with db.transaction() as session:
        cancel(session, db.get(session, Run, first))
    assert start(project, ids) != first
    assert start(project, ids, samples=4) != first
