"""Reads pickled data without unpickling: nothing is imported, called or built but plain data.

`pickle.Unpickler` with a strict `find_class` still allocates whatever a stream asks for (a memo entry with a high
number fills the memory from ten bytes) and runs numpy's own loaders on hostile states. So the instructions are
listed with `pickletools`, which runs none of them, and a few of them are followed here.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal


class RefusedPickleError(Exception):
    """A pickle that holds more than plain data, or is damaged; the caller says what to do."""


_VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_PROTOCOLS = (3, 4, 5)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMPY = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    **{
        (f"numpy.{core}.{module}", name): name.strip("_")
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
}
_NUMBER_CODES = re.compile(r"[biuf][1248]|[US][1-9]\d{0,5}")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """One of the names of numpy that a pickled array uses; it stands for nothing that can be called."""

    name: str


@dataclass
class _Dtype:
    """A dtype of numbers or text: its code, such as `f4`, and its byte order."""

    code: str
    order: Literal["<", ">", "=", "|"] = "="


class _Arguments(tuple[Any, ...]):
    """A tuple that holds a name or a dtype: the arguments or the state of an array, and no data."""

    __slots__ = ()


def read_pickle(data: bytes, limit: int) -> Any:
    """Return the plain data that a pickle of protocol 3 to 5 holds.

    Plain data are None, bool, int, float, str, bytes, list, tuple and dict with text as keys; arrays and scalars of
    numpy (numbers, bool, text) come as nested lists and numbers. Lists may contain themselves.

    Args:
        data: The pickle.
        limit: Most bytes that are read.

    Raises:
        RefusedPickleError: If the pickle is larger, damaged or holds anything else.
    """
    if len(data) > limit:
        raise RefusedPickleError(f"the pickle has {len(data)} bytes, more than {limit}")
    try:
        return _Reader(limit).read(data)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise RefusedPickleError(f"the pickle is damaged ({type(error).__name__})") from error


class _Reader:
    """A stack and a memo, as in the pickle machine (the comments of `pickletools`)."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        """Bytes that arrays may still have; the same bytes could be made into one array after another."""
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._waiting: list[Any] | None = None
        """The array that `_reconstruct` has announced, and whose content comes with the next BUILD."""

    def read(self, data: bytes) -> Any:
        for opcode, argument, place in pickletools.genops(data):
            if place == 0 and opcode.name != "PROTO":
                raise RefusedPickleError("the pickle names no protocol, so it is older than protocol 3")
            if opcode.name == "STOP":
                break
            self._follow(opcode.name, argument)
        (result,) = self._stack
        if self._waiting is not None:
            raise ValueError("an array was announced and never came")
        return _plain([result])[0]

    def _follow(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(_CONSTANTS.get(name, argument))
        elif name == "PROTO":
            if argument not in _PROTOCOLS:
                raise RefusedPickleError(f"the pickle is of protocol {argument}, not of 3 to 5")
        elif name == "FRAME":
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT"):
            stack.append({"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}[name]())
        elif name == "TUPLE":
            stack.append(_make_tuple(self._pop_marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(_make_tuple(self._pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_marked()
            self._top(list).extend(_plain(items))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_marked()
            target = self._top(dict)
            for key, value in zip(items[::2], _plain(items[1::2]), strict=True):
                # Numbers can be chosen to collide; the hashes of texts cannot.
                if not isinstance(key, str):
                    raise RefusedPickleError(f"the pickle has a {type(key).__name__} as a key, not text")
                target[key] = value
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top(object)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top(object)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ", 1) if name == "GLOBAL" else self._pop(2)
            stack.append(_find_name(module, attribute))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._apply(function, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._fill(self._top(object), state)
        else:
            raise RefusedPickleError(f"the pickle has the instruction {name}, which plain data does not need")

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise ValueError("the stack is too short")
        del self._stack[-count:]
        return items

    def _pop_marked(self) -> list[Any]:
        position = len(self._stack) - 1
        while self._stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("there is no mark")
        items = self._stack[position + 1 :]
        del self._stack[position:]
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if top is _MARK or not isinstance(top, kind) or (top is self._waiting and kind is list):
            raise ValueError("the stack holds another kind of object")
        return top

    def _apply(self, function: object, arguments: tuple[Any, ...]) -> Any:
        name = function.name if isinstance(function, _Name) else ""
        match name, arguments:
            case "dtype", (str(code), False, True):
                return _make_dtype(code)
            case "reconstruct", (_Name("ndarray"), (0,), b"b") if self._waiting is None:
                self._waiting = []
                return self._waiting
            case "scalar", (_Dtype() as dtype, bytes(raw)):
                return self._unpack(raw, dtype, (1,), "C")[0]
            case "frombuffer", (bytes() | bytearray() as raw, _Dtype() as dtype, tuple(shape), "C" | "F" as order):
                return self._unpack(bytes(raw), dtype, shape, order)
        raise RefusedPickleError(f"the pickle calls {name or 'something'} in a way that plain data does not need")

    def _fill(self, target: object, state: object) -> None:
        if isinstance(target, _Dtype):
            match state:
                case (3, "<" | ">" | "|" | "=" as order, None, None, None, int(), int(), int()):
                    target.order = order
                    return
        elif target is self._waiting and isinstance(target, list):
            match state:
                case (1, tuple(shape), _Dtype() as dtype, bool(fortran), bytes(raw)):
                    target.extend(self._unpack(raw, dtype, shape, "F" if fortran else "C"))
                    self._waiting = None
                    return
        raise RefusedPickleError("the pickle sets the state of something that is not an array of numbers or text")

    def _unpack(self, raw: bytes, dtype: _Dtype, shape: tuple[Any, ...], order: Literal["C", "F"]) -> list[Any]:
        """Return the items of an array as nested lists."""
        import numpy

        self._room -= len(raw)
        if self._room < 0:
            raise RefusedPickleError("the pickle has arrays larger than itself")
        sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool) and size >= 0]
        if not shape or len(sizes) != len(shape) or (len(shape) > 1 and 0 in shape):
            raise RefusedPickleError("the pickle has an array of an impossible shape")
        items = numpy.frombuffer(raw, dtype=numpy.dtype(dtype.code).newbyteorder(dtype.order))
        if items.size != math.prod(sizes):
            raise RefusedPickleError("the pickle has an array whose shape does not fit its bytes")
        # numpy's text is UTF-32 that it does not check.
        if dtype.code[0] == "U" and (items.view(items.dtype.str[0] + "u4") > sys.maxunicode).any():
            raise RefusedPickleError("the pickle has text that is not Unicode")
        nested: list[Any] = items.reshape(sizes, order=order).tolist()
        return nested


def _plain(items: list[Any]) -> list[Any]:
    if any(isinstance(item, _Name | _Dtype | _Arguments) or item is _MARK for item in items):
        raise RefusedPickleError("the pickle has a part of an array among its data")
    return items


def _make_tuple(items: list[Any]) -> tuple[Any, ...]:
    parts = any(isinstance(item, _Name | _Dtype | _Arguments) for item in items)
    return _Arguments(items) if parts else tuple(items)


def _find_name(module: object, attribute: object) -> _Name:
    name = _NUMPY.get((module, attribute)) if isinstance(module, str) and isinstance(attribute, str) else None
    if name is None:
        shown = f"{module}.{attribute}"[:80] if isinstance(module, str) and isinstance(attribute, str) else "something"
        raise RefusedPickleError(f"the pickle asks for {shown!a}, which is not plain data")
    return _Name(name)


def _make_dtype(code: str) -> _Dtype:
    if not _NUMBER_CODES.fullmatch(code):
        raise RefusedPickleError(f"the pickle has an array of dtype {code[:20]!a}, not of numbers or text")
    return _Dtype(code)
