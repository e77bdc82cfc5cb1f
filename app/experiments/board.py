"""An experiment as rows for the board, the terminal and JSON: steps by seed, how far, how long still."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session, col, select

from app.experiments.models import Experiment, Step
from app.runs.models import Run
from app.runs.routes import seconds_left

# CPU seconds of the demo's steps, by kind. Only the proportions matter: they are scaled by what this experiment's own
# finished steps took.
USUAL_S = {
    "import_prompts": 1, "import_pairs": 2, "import_checkpoint": 4, "new_endpoint": 1, "new_judge": 1, "demo_base": 41,
    "generate": 8, "judge": 2, "audit": 1, "snapshot": 1, "sft": 14, "reward": 15, "dpo": 25, "simpo": 20, "kto": 25,
    "ppo": 30, "grpo": 21, "rloo": 21,
    "benchmark": 7, "grading": 6,
}  # fmt: skip


@dataclass
class Cell:
    """A step of one seed, with its run if it has one."""

    step: Step
    run: Run | None

    @property
    def state(self) -> str:
        """The step's status in a reader's words."""
        return self.step.state(self.run)

    @property
    def seconds(self) -> float | None:
        """How long the run took, or has been going."""
        if self.run is None or self.run.started_at is None:
            return None
        return ((self.run.ended_at or datetime.now(UTC)) - self.run.started_at).total_seconds()


@dataclass
class BoardRow:
    """A step of the file: one cell for all seeds, or one a seed."""

    name: str
    arm: str
    kind: str
    cells: list[Cell]
    is_shared: bool


@dataclass
class Board:
    """What the page draws."""

    experiment: Experiment
    rows: list[BoardRow]
    n_done: int
    n_lost: int
    n: int
    seconds_left: float | None

    @property
    def cells(self) -> list[Cell]:
        """Every step of every seed."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def running(self) -> list[Cell]:
        """Cells whose run is going on now."""
        return [cell for cell in self.cells if cell.state in {"running", "cancelling"}]

    @property
    def paused(self) -> list[Cell]:
        """Cells whose run waits for people."""
        return [cell for cell in self.cells if cell.state == "paused"]

    @property
    def is_live(self) -> bool:
        """Whether the page has to look again."""
        return self.experiment.status == "running" or bool(self.running)

    @property
    def state(self) -> str:
        """The experiment's status in a reader's words: where all that is open waits for a paused run, it is paused."""
        is_going_on = any(cell.state in {"queued", "running", "cancelling"} for cell in self.cells)
        is_paused = self.experiment.status == "running" and bool(self.paused) and not is_going_on
        return "paused" if is_paused else self.experiment.status

    @property
    def errors(self) -> list[Cell]:
        """Cells with a reason to read."""
        return [cell for cell in self.cells if cell.step.error]


def read_board(session: Session, experiment: Experiment) -> Board:
    """The experiment's steps and their runs: two queries."""
    query = select(Step).where(Step.experiment_id == experiment.id).order_by(col(Step.position), col(Step.seed))
    steps = session.exec(query).all()
    ids = [step.run_id for step in steps if step.run_id is not None]
    runs = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids)))}
    rows: dict[str, BoardRow] = {}
    for step in steps:
        row = rows.setdefault(step.name, BoardRow(step.name, step.arm, step.recipe["kind"], [], step.seed == 0))
        row.cells.append(Cell(step, runs.get(step.run_id) if step.run_id else None))
    states = Counter(step.status for step in steps)
    cells = [cell for row in rows.values() for cell in row.cells]
    left = time_left(cells) if experiment.status == "running" else None
    return Board(
        experiment, list(rows.values()), states["done"], states["failed"] + states["skipped"], len(steps), left
    )


def time_left(cells: list[Cell]) -> float | None:
    """Seconds until the last step, one after another: usual times, scaled by what the finished steps took."""
    finished = [c for c in cells if c.step.status == "done" and not c.step.is_reused and c.run and c.seconds]
    usual = sum(USUAL_S.get(c.run.kind, 10) for c in finished if c.run)
    pace = sum(c.seconds or 0 for c in finished) / usual if usual >= 20 else 1.0
    left = 0.0
    for cell in cells:
        expected = USUAL_S.get(str(cell.step.recipe["kind"]), 10) * pace
        if cell.state == "waiting" or cell.state == "queued":
            left += expected
        elif cell.state == "running" and cell.run is not None:
            known = seconds_left(cell.run)
            left += known if known is not None else max(expected - (cell.seconds or 0), 1.0)
    return left or None


def experiment_as_json(session: Session, experiment: Experiment) -> dict[str, Any]:
    """An experiment with its steps, as the API and the command line show it."""
    board = read_board(session, experiment)
    return {
        **experiment.model_dump(mode="json", exclude={"project_id", "account_id", "form_key"}), "status": board.state,
        "n_steps": board.n, "n_done": board.n_done, "n_lost": board.n_lost, "seconds_left": board.seconds_left,
        "steps": [
            {
                "name": cell.step.name, "seed": cell.step.seed, "arm": cell.step.arm, "kind": row.kind,
                "status": cell.state, "run": cell.step.run_id, "is_reused": cell.step.is_reused,
                "needs": cell.step.needs, "seconds": cell.seconds, "error": cell.step.error,
            }
            for row in board.rows for cell in row.cells
        ],
    }  # fmt: skip
