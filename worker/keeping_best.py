"""Early stopping of the trainers: keeps the weights with the lowest dev loss, and ends training when patience runs out.

What is best so far stands in a folder of its own and, as links, in every resume state before it is sealed: a run that
goes on from a state has the best weights of that moment, whatever was measured after it.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from app.training.stopping import Best
from worker.job import Watch
from worker.saving import save_folder
from worker.several import is_first

NOTE, WEIGHTS = "best.json", "best.safetensors"


class BestCallback(TrainerCallback):
    """Of one trainer; `patience` measurements without a lower dev loss end its training."""

    def __init__(self, trainer: Any, patience: int, folder: Path, watch: Watch) -> None:
        self.trainer, self.patience, self.folder, self.watch = trainer, patience, folder / "best", watch
        self.best = Best()
        self.curves: dict[str, float] = {}  # what was measured at the best step, under the trainer's names
        self.n_tokens = 0.0  # trained on up to the state that is gone on from

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.best.n_worse >= self.patience

    def go_on(self, state: Path | None) -> None:
        """Takes up what a resume state holds; begins anew where there is none, or it is from before this was asked."""
        if state is None or not (state / NOTE).is_file():
            if is_first():
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        said = json.loads((state / NOTE).read_text(encoding="utf-8"))
        self.best, self.curves, self.n_tokens = Best(**said["best"]), said["curves"], said["n_tokens"]
        if is_first() and (state / WEIGHTS).is_file():
            save_folder(self.folder, lambda at: _link(state / WEIGHTS, at / WEIGHTS))
        PartialState().wait_for_everyone()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:  # fmt: skip
        """Takes a measurement; all processes see the same one."""
        found = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        if state.global_step == self.best.last or "eval_loss" not in found:
            return
        if self.best.note(state.global_step, found["eval_loss"]):
            self.curves = found
            if is_first():
                save_folder(self.folder, lambda at: save_file(self._trained(), at / WEIGHTS))
        if self.is_over:
            control.should_training_stop = True
            self.watch.log(f"stopped after step {self.best.last}: the dev loss was lowest at step {self.best.step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the state is sealed, which the callback after this one does."""
        if not is_first():
            return
        at = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        said = {"best": asdict(self.best), "curves": self.curves, "n_tokens": state.num_input_tokens_seen}
        (at / NOTE).write_text(json.dumps(said), encoding="utf-8")
        if (self.folder / WEIGHTS).is_file():
            _link(self.folder / WEIGHTS, at / WEIGHTS)

    def _trained(self) -> dict[str, torch.Tensor]:
        named = self.trainer.model.named_parameters()
        return {name: one.detach().contiguous() for name, one in named if one.requires_grad}

    @torch.no_grad()
    def restore(self) -> dict[str, float]:
        """Puts the best weights into the model; for the checkpoint's facts, where they come from."""
        PartialState().wait_for_everyone()
        if self.best.step < 0:  # no dev loss was finite: nothing was ever better than anything
            return {}
        tensors = load_file(self.folder / WEIGHTS)
        for name, one in self.trainer.model.named_parameters():
            if name in tensors:
                one.copy_(tensors[name])
        if self.best.step != self.best.last:
            self.watch.log(f"the weights of step {self.best.step} are kept, not those of step {self.best.last}")
        return {"step": self.best.step, "kept_step": self.best.step, "last_step": self.best.last}


def _link(one: Path, other: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    try:
        os.link(one, other)
    except OSError:
        shutil.copyfile(one, other)
