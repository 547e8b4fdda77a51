"""How much memory tensors take at most while some work runs, counted where no device counts it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakAllocations(TorchDispatchMode):
    """Within a `with` block, count the bytes of every tensor that it makes and of those alive at once.

    Autograd's too, since its operations pass here as others do. What an operation takes for itself while it runs
    is not seen, nor are tensors of before the block.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """Bytes, at most at once."""
        self._live = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it makes."""
        # A view of an older tensor takes nothing.
        self._known.update(_storages((args, kwargs)))
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage not in self._known:
                self._known.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return made

    def _release(self, count: int) -> None:
        self._live -= count


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors take, those that share memory once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(list(tensors))}.values())


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and _has_storage(leaf)]


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided
