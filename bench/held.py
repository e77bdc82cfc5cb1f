"""Bytes that tensors hold: the peak while something runs, counted storage by storage, on CUDA read from its allocator.

Needs torch alone, so that a peer in an environment of its own is measured by the same code.
"""

import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of the storages under some tensors, each counted once."""
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors if _is_held(one)}
    return sum(storages.values())


def _is_held(one: Any) -> bool:
    return isinstance(one, Tensor) and one.device.type != "meta"


@dataclass(frozen=True)
class Bytes:
    """What a training loop held."""

    weights: int  # parameters and buffers, frozen or trained
    gradients: int  # of all trained parameters
    optimizer: int  # its state
    peak: int  # of everything that was alive at once

    @property
    def working(self) -> int:
        """What the peak held beside weights and optimizer state: activations, caches, logits, gradients."""
        return self.peak - self.weights - self.optimizer

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Held(TorchDispatchMode):
    """Counts the bytes of all live storages that an operator made, or that were there when it began.

    Each storage counts once, however many views it has, from the operator that made it until it is freed. A kernel's
    inner scratch memory is not seen. On CUDA nothing is counted: its allocator knows the peak.
    """

    def __init__(self, there: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in there:
            self._note(tensor)

    def __enter__(self) -> "Held":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self._note(leaf)
        return out

    def _note(self, tensor: Any) -> None:
        if not _is_held(tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        weakref.finalize(storage, self._free, key, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    @property
    def highest(self) -> int:
        """The peak in bytes."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak


def read_bytes(modules: Iterable[torch.nn.Module], optimizer: torch.optim.Optimizer, peak: int) -> Bytes:
    """The parts, once an optimizer has taken a step; a parameter that several modules share counts once."""
    kept = list(modules)
    weights = [tensor for module in kept for tensor in (*module.parameters(), *module.buffers())]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = sum(one.numel() * one.element_size() for one in {id(p): p for p in trained}.values())
    return Bytes(bytes_of(weights), gradients, bytes_of(states), peak)
