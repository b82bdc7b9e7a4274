"""read_plain_pickle against what Python's own pickle wrote, and against hostile files."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from perpeft_ray.data.prepare.pickles import read_plain_pickle
from perpeft_ray.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(content: bytes, folder: Path) -> dict:
    file = folder / "x.pickle"
    file.write_bytes(content)
    return read_plain_pickle(file)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads_what_pickle_wrote(tmp_path, protocol):
    shared = "same twice"
    original = {  # type: ignore[misc]  # keys of any type
        **{number: f"B{number:09d}" for number in range(3000)},  # over a batch of SETITEMS
        -1: "",
        70_000: shared,
        2**40: shared,
        "ä\n'\"": "🌸 \x00 \\u1234 \r\n",
        "long": "x" * 70_000,
    }
    assert read(pickle.dumps(original, protocol), tmp_path) == original


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_plain(tmp_path, protocol):
    original = {
        np.int64(2**40): np.str_("Ünit 🌸"),
        np.int32(-5): np.str_(""),
        np.uint8(200): np.str_("again"),
        np.int16(3): np.float64(0.25),
        np.dtype(">i8").type(4): np.dtype(">i4").type(9),
        5: np.array([6], dtype=">i8")[0],
    }
    found = read(pickle.dumps(original, protocol), tmp_path)
    assert found == original
    assert {type(part) for pair in found.items() for part in pair} == {int, str, float}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hostile_pickle_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps({1: Call(os.system, f"touch {trace}")}, protocol)
    with pytest.raises(InputError, match=r"x\.pickle' must be .* but names '\w+\.system'$"):
        read(content, tmp_path)
    assert not trace.exists()
    pickle.loads(content)  # noqa: S301
    assert trace.exists()  # the file was hostile indeed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({1: Call(eval, "1")}), "names 'builtins.eval'"),
        (pickle.dumps({1: Call(bytes, 1 << 40)}, 2), "is damaged"),
        (pickle.dumps({1: np.array([1, 2])}), "names 'numpy._core."),
        (pickle.dumps({1: np.datetime64("2020-01-01")}), "has a scalar of dtype <M8"),
        (pickle.dumps({1: np.bool_(True)}), "has a part of type bool"),
        (pickle.dumps({1: {2: 3}}), "has a part of type dict"),
        (pickle.dumps(OrderedDict(a=1)), "names 'collections.OrderedDict'"),
        (pickle.dumps("text"), "is of type str"),
        (b"\x80\x04}\x82\x01.", "is damaged"),  # of the extension registry
        (b"}Pmoney\n.", "is damaged"),  # a persistent id
        (b"cnumpy\ndtype\n.", "is of type type"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "is of type _Dtype"),
        (b"}K\x05s.", "is damaged"),
        (b"\x80\x04X" + struct.pack("<I", 2**31) + b"short", "is damaged"),
        (b"\x80\x04r\xff\xff\xff\xff.", "is damaged"),  # the memo of CPython would take 32 GB
        (b"not a pickle", "is damaged"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, reason):
    with pytest.raises(InputError, match="must be a pickle of a dict of int, str and NumPy") as it:
        read(content, tmp_path)
    assert reason in str(it.value)
    assert "\n" not in str(it.value)


def test_a_pickle_cannot_change_what_stands_for_its_names(tmp_path):
    name = b"__defaults__"
    state = b"N}X" + struct.pack("<I", len(name)) + name + b"K\x05\x85s\x86"  # None, {name: (5,)}
    with pytest.raises(InputError, match="is damaged"):
        read(b"\x80\x02cnumpy.core.multiarray\nscalar\n" + state + b"b.", tmp_path)


def test_random_damage_is_refused_or_harmless(tmp_path):
    rng = np.random.default_rng(0)
    content = pickle.dumps({np.int64(number): f"B{number}" for number in range(20)})
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(len(content), size=3):
            damaged[at] = rng.integers(256)
        try:
            found = read(bytes(damaged), tmp_path)
        except InputError:
            continue
        assert {type(part) for pair in found.items() for part in pair} <= {int, str, float}
