"""Early stopping: the rule by which a training on preferences ends, and which of its weights are kept (Prechelt 1998).

The dev loss is measured every so many steps, the start included. The weights that had the lowest are kept; once so many
measurements in a row were no lower, training ends. One rule for the worker that follows it and the page that tells it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field


def patience_field() -> int:
    """The field of a recipe that may stop early."""
    found: int = Field(
        0, ge=0, le=10_000, title="Stop after … measurements without a lower dev loss",
        description="And keep the weights that had the lowest. 0: never, and the last weights are kept.",
    )  # fmt: skip
    return found


@dataclass
class Best:
    """The lowest dev loss so far, and how many measurements have passed since."""

    step: int = -1
    loss: float = math.inf
    n_worse: int = 0
    last: int = -1  # the step measured last

    def note(self, step: int, loss: float | None) -> bool:
        """Takes a measurement (None, or not finite: no lower one); whether it is the lowest."""
        self.last = step
        if loss is not None and loss < self.loss:
            self.step, self.loss, self.n_worse = step, loss, 0
            return True
        self.n_worse += 1
        return False


def find_best(points: Iterable[tuple[int, float | None]], patience: int) -> tuple[Best, bool]:
    """What the rule says of a whole curve of (step, dev loss), and whether it stopped there."""
    best = Best()
    for step, loss in points:
        best.note(step, loss)
        if best.n_worse >= patience:
            return best, True
    return best, False
