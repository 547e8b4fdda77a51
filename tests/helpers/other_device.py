"""A device that is not the CPU's and needs no hardware: its tensors have values, and mixing them with others fails.

It goes by the name of `meta`, the one device besides the CPU that every build of torch has. Within `other_device`,
tensors that are made there or moved there are computed with on the CPU behind the scenes, and an operation on tensors
of both devices raises, by the rules of a GPU:

- a tensor without dimensions may lie on the CPU, and so may the indices of an indexing;
- only copies cross from one device to the other;
- random numbers are drawn there by no generator of the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rlcm_cli.measuring.attention import fused_attention

DEVICE = torch.device("meta")
HERE = torch.device("cpu")
ATEN = torch.ops.aten
CROSSING = {ATEN._to_copy.default, ATEN.copy_.default}
INDEXING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default}
JOINING = {ATEN.cat.default, ATEN.stack.default}
"""Operations that take no tensor of another device, not even one without dimensions."""
LAZY = {ATEN._conj.default: ATEN.conj_physical.default, ATEN._neg_view.default: ATEN.neg.default}
"""Operations that only mark a tensor, which its kernels here would not see → what computes it."""


class OtherDeviceError(RuntimeError):
    """What a GPU refuses."""


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """Let the device have values within the block, and be watched."""
    with _Constructors(), fused_attention(), _Operations():  # for `meta`, torch's attention is slow products
        yield DEVICE


class OtherTensor(torch.Tensor):
    """A tensor of the device; `values` are its numbers, on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OtherTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"OtherTensor({self.values})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Sees the operations without a tensor of the device among their arguments too, such as `torch.zeros`."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Constructors(TorchFunctionMode):
    """What reaches no operation of torch's with its values: tensors made of Python's numbers, and `x.data = y`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = given.pop("device", None)
            made = func(*args, **given)
            return made if device is None else made.to(device)
        if func is torch.Tensor.new_tensor:
            beside, numbers = args
            device = given.pop("device", beside.device)
            return torch.tensor(numbers, **{"dtype": beside.dtype, **given}).to(device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OtherTensor):
            own, index, *value = args
            parts = index if isinstance(index, tuple) else (index,)
            return func(own, tuple(torch.tensor(x) if isinstance(x, list) else x for x in parts), *value)
        if func is torch.Tensor.tolist and isinstance(args[0], OtherTensor):
            return args[0].values.tolist()
        if func == torch.Tensor.data.__set__ and isinstance(args[0], OtherTensor):
            args[0].values = args[1].values
            return None
        return func(*args, **given)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, OtherTensor)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OtherTensor)]
    named = kwargs.get("device")
    to_there = bool(there) if named is None else torch.device(named) == DEVICE
    if func is ATEN.copy_.default:
        to_there = isinstance(args[0], OtherTensor)
    elif func not in CROSSING:
        _check(func, args, there, here)
    generator = kwargs.get("generator")
    if to_there and generator is not None:
        raise OtherDeviceError(f"{func}: a generator of the CPU's draws nothing on another device")
    if named is not None:
        kwargs["device"] = HERE
    results = LAZY.get(func, func)(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if not to_there:
        return results
    known = {id(tensor.values): tensor for tensor in there}  # what an operation in place returns
    return tree_map(lambda x: known.get(id(x), OtherTensor(x)) if isinstance(x, torch.Tensor) else x, results)


def _check(func: Any, args: Any, there: Sequence[torch.Tensor], here: Sequence[torch.Tensor]) -> None:
    if not there:
        return
    if func in INDEXING and isinstance(args[0], OtherTensor):
        return
    strangers = [tensor for tensor in here if tensor.ndim or func in JOINING]
    if strangers:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers)
        raise OtherDeviceError(f"{func}: tensors on the CPU ({shapes}) beside others on the device")


def _unwrap(value: Any) -> Any:
    return value.values if isinstance(value, OtherTensor) else value
