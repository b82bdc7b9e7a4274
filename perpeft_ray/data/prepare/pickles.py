"""Reads a pickled dict of int and str without calling what the pickle names.

Python's unpickler calls any function that a pickle names. Here every name stands for one of our own
functions, which make NumPy scalars (NumPy's own form since 1.0), or is refused.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251  # with restricted names, as its documentation advises
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from perpeft_ray.errors import InputError

MAX_BYTES = 500_000_000
"""Largest pickle file."""

Plain = int | float | str
"""Allowed types of keys and values."""


def read_plain_pickle(file: Path) -> dict[Plain, Plain]:
    """The dict in a pickle file, NumPy scalars as Python's own int, float or str.

    Raises InputError, without running anything, unless the file is one flat dict of numbers,
    strings and NumPy scalars.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{str(file)!r} must have at most {MAX_BYTES:,} bytes, but has {size:,}")
    rule = f"{str(file)!r} must be a pickle of a dict of int, str and NumPy scalars only"
    content = file.read_bytes()
    try:
        _check_sizes(content)
        result = _Unpickler(io.BytesIO(content)).load()
    except _RefusedError as error:
        raise InputError(f"{rule}, but {error}") from None
    except (
        pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError
    ) as error:  # fmt: skip
        raise InputError(f"{rule}, but is damaged: {' '.join(str(error).split())}") from error
    if type(result) is not dict:
        raise InputError(f"{rule}, but is of type {type(result).__name__}")
    for part in (*result.keys(), *result.values()):
        if type(part) not in (int, str, float):
            raise InputError(f"{rule}, but has a part of type {type(part).__name__}")
    return result


def _check_sizes(content: bytes) -> None:
    """Raise ValueError for lengths beyond the end and indices that take gigabytes of memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise ValueError(f"the memo has at most {len(content)} entries, not {argument}")


class _RefusedError(Exception):
    """Something that does not belong in a plain pickle."""


class _Dtype:
    """Takes the place of `numpy.dtype`."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Our own function for a name; raises _RefusedError for any other."""
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar"):
                return self._scalar
            case "numpy", "dtype":
                return _Dtype
            case "_codecs", "encode":  # bytes in protocols below 3
                return self._latin_1
            case "__builtin__", "bytes":  # empty bytes there
                return self._no_bytes
        raise _RefusedError(f"names '{module}.{name}'")

    # Bound methods, since a pickle can set attributes of a plain function, such as its defaults.
    def _latin_1(self, text: str, _: str) -> bytes:
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        return b""

    def _scalar(self, dtype: _Dtype, data: bytes) -> Plain:
        kind = f"{dtype.order}{dtype.kind}"
        if not re.fullmatch(r"[<>|][biufU]\d{1,9}", kind):
            raise _RefusedError(f"has a scalar of dtype {kind}")
        if dtype.kind.startswith("U"):
            return data.decode("utf-32-be" if dtype.order == ">" else "utf-32-le")
        (number,) = np.frombuffer(data, kind)
        return number.item()  # type: ignore[no-any-return]  # NumPy says Any
