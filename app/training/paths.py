"""What the flight recorder kept of a policy's way from its reference: at each look, KL and scores by prompt.

The values of all prompts of a look lie with its first sample, since only a few samples are kept for people to read.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from app.runs.models import Sampled
from app.stats.intervals import Interval, mean_interval

KEPT = ("kl", "kl_k3", "held_out")

Floats = NDArray[np.float64]


def by_prompt(
    names: Sequence[str], details: Sequence[Mapping[str, Any]], rewards: Sequence[float | None]
) -> dict[str, list[Any]]:
    """What is stored of a look: its prompts, by hash, and every value of each; None where there is none."""
    kept: dict[str, list[Any]] = {"prompts": [hashlib.sha256(name.encode()).hexdigest()[:16] for name in names]}
    kept |= {name: [detail.get(name) for detail in details] for name in KEPT if name in details[0]}
    return kept | ({"reward": list(rewards)} if any(one is not None for one in rewards) else {})


@dataclass(frozen=True)
class Look:
    """One look of the recorder: values by prompt, not a number where one could not be read."""

    step: int
    prompts: tuple[str, ...]
    values: Mapping[str, Floats]

    def only(self, prompts: Collection[str]) -> "Look":
        """The same of some prompts."""
        places = [place for place, one in enumerate(self.prompts) if one in prompts]
        values = {name: of[places] for name, of in self.values.items()}
        return Look(self.step, tuple(self.prompts[place] for place in places), values)

    def interval(self, name: str) -> Interval | None:
        """The mean over prompts of kl (k1), kl_k3, reward or held_out; None where none was read."""
        values = self.values.get(name)
        read = np.isfinite(values) if values is not None else np.zeros(0, bool)
        if values is None or not read.any():
            return None
        return mean_interval(values[read], np.array(self.prompts)[read])

    @cached_property
    def kl(self) -> Interval | None:
        """k1, in nats per completion."""
        return self.interval("kl")


def read_looks(session: Session, runs: Iterable[int]) -> dict[int, list[Look]]:
    """The looks of each run, in the order of their steps; runs of before there were such values have none."""
    query = select(Sampled.run_id, Sampled.step, Sampled.detail).where(
        col(Sampled.run_id).in_(list(runs)), Sampled.place == 0
    )
    found: dict[int, list[Look]] = {}
    for run, step, detail in session.exec(query.order_by(col(Sampled.run_id), col(Sampled.step))):
        kept = detail.get("by_prompt")
        if kept:
            values = {
                name: np.array([np.nan if one is None else float(one) for one in many])
                for name, many in kept.items() if name != "prompts"
            }  # fmt: skip
            found.setdefault(run, []).append(Look(step, tuple(kept["prompts"]), values))
    return found
