"""Reads a pickled dict of int and str without running it.

A pickle is a program for a stack machine, and Python's unpickler calls whatever it names. This
machine knows a few opcodes, builds dicts, integers, strings and NumPy scalars, and calls nothing;
it refuses any other opcode or name. Opcodes: Python's `pickletools`; scalars: NumPy's own form
since 1.0.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perpeft_ray.errors import InputError

MAX_BYTES = 500_000_000
"""Largest pickle file."""

Plain = int | float | str
"""Allowed types of keys and values; floats come only from NumPy scalars."""

_SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_DTYPE = "numpy dtype"
# The form of bytes, and of empty bytes, in protocols below 3.
_ENCODE, _EMPTY_BYTES = "_codecs encode", "__builtin__ bytes"


def read_plain_pickle(file: Path) -> dict[Plain, Plain]:
    """The dict in a pickle file, NumPy scalars as Python's own int, float or str.

    Raises InputError, without running anything, unless the file is one flat dict of integers,
    strings and NumPy scalars.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{str(file)!r} must have at most {MAX_BYTES:,} bytes, but has {size:,}")
    rule = f"{str(file)!r} must be a pickle of a dict of int, str and NumPy scalars only"
    machine = _Machine()
    try:
        # From memory: reading a file would allocate any length that the pickle claims.
        for opcode, argument, _ in pickletools.genops(file.read_bytes()):
            machine.step(opcode.name, argument)
        return machine.result()
    except _RefusedError as error:
        raise InputError(f"{rule}, but {error}") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{rule}, but is damaged: {error}") from error


class _RefusedError(Exception):
    """Something that does not belong in a plain pickle."""


@dataclass(frozen=True)
class _Name:
    """A function or class named by the pickle; never looked up."""

    name: str


@dataclass
class _Dtype:
    """A NumPy dtype under construction."""

    kind: str
    order: str = "|"


class _Machine:
    """The stack machine: call `step` for each opcode, then `result`."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        """The stacks below each mark."""
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                stack.append(argument)
            case "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._outer.append(stack)
                self._stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                _set({}, self._to_mark(), self._stack)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack.pop(), [key, value], stack)
            case "SETITEMS":
                pairs = self._to_mark()
                _set(self._stack.pop(), pairs, self._stack)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                parts = tuple(self._to_mark())
                self._stack.append(parts)
            case "GLOBAL":
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module} {name}"))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_reduced(name, arguments))
            case "BUILD":
                state, dtype = stack.pop(), stack[-1]
                if not isinstance(dtype, _Dtype):
                    raise _RefusedError("has a state that is no dtype's")
                dtype.order = state[1]
            case _:
                raise _RefusedError(f"has the opcode {opcode}")

    def result(self) -> dict[Plain, Plain]:
        """The remaining dict, checked."""
        (result,) = self._stack
        if type(result) is not dict:
            raise _RefusedError(f"is of type {type(result).__name__}")
        for part in (*result.keys(), *result.values()):
            if type(part) not in (int, str, float):
                raise _RefusedError(f"has a part of type {type(part).__name__.lstrip('_')}")
        return result

    def _to_mark(self) -> list[Any]:
        parts, self._stack = self._stack, self._outer.pop()
        return parts


def _set(target: Any, pairs: list[Any], stack: list[Any]) -> None:
    if type(target) is not dict:
        raise _RefusedError(f"has items of type {type(target).__name__.lstrip('_')}")
    target.update(zip(pairs[::2], pairs[1::2], strict=True))
    stack.append(target)


def _name(name: str) -> _Name:
    if name not in (*_SCALARS, _DTYPE, _ENCODE, _EMPTY_BYTES):
        raise _RefusedError(f"names {name.replace(' ', '.')!r}")
    return _Name(name)


def _reduced(called: Any, arguments: Any) -> Any:
    name = called.name if isinstance(called, _Name) else None
    match arguments:
        case (str() as text, "latin1") if name == _ENCODE:
            return text.encode("latin1")
        case () if name == _EMPTY_BYTES:
            return b""
        case (str() as kind, _, _) if name == _DTYPE:
            return _Dtype(kind)
        case (_Dtype() as dtype, bytes() as data) if name in _SCALARS:
            return _scalar(dtype, data)
    raise _RefusedError("calls what makes no NumPy scalar")


def _scalar(dtype: _Dtype, data: bytes) -> int | float | str | bool:
    if dtype.order not in ("<", ">", "|") or not re.fullmatch(r"[biufU]\d{1,9}", dtype.kind):
        raise _RefusedError(f"has a scalar of dtype {dtype.order}{dtype.kind}")
    if dtype.kind.startswith("U"):
        return data.decode("utf-32-be" if dtype.order == ">" else "utf-32-le")
    (number,) = np.frombuffer(data, dtype.order + dtype.kind)
    return number.item()  # type: ignore[no-any-return]  # NumPy says Any
