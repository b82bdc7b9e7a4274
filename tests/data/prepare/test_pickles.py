"""read_plain_pickle against what Python's own pickle wrote, and against hostile files."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        "item": 7,
    }
    assert read(pickle.dumps(original, protocol), tmp_path) == original
    assert read(pickle.dumps({}, protocol), tmp_path) == {}


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


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers() | st.text(), st.integers() | st.text()), st.integers(0, 5))
def test_any_dict(tmp_path_factory, original, protocol):
    assert read(pickle.dumps(original, protocol), tmp_path_factory.mktemp("p")) == original


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, protocol):
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
        (pickle.dumps({1: Call(getattr, "a", "b")}), "names 'builtins.getattr'"),
        (pickle.dumps({1: np.array([1, 2])}), "names 'numpy._core."),
        (pickle.dumps({1: np.datetime64("2020-01-01")}), "has a scalar of dtype <M8"),
        (pickle.dumps({1: np.bool_(True)}), "has a part of type bool"),
        (pickle.dumps({1: None}), "has a part of type NoneType"),
        (pickle.dumps({1: b"x"}), "has a part of type bytes"),
        (pickle.dumps({1: {2: 3}}), "has a part of type dict"),
        (pickle.dumps({1: 0.5}), "has the opcode BINFLOAT"),
        (pickle.dumps({1: [2]}), "has the opcode EMPTY_LIST"),
        (pickle.dumps(OrderedDict(a=1)), "names 'collections.OrderedDict'"),
        (pickle.dumps("text"), "is of type str"),
        (pickle.dumps(np.int64(3)), "is of type int"),
        (b"\x80\x04}\x82\x01.", "has the opcode EXT1"),
        (b"}Pmoney\n.", "has the opcode PERSID"),
        (b"cnumpy\ndtype\n.", "is of type _Name"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "calls what makes no NumPy scalar"),
        (b"}}b.", "has a state that is no dtype's"),
        (b"}(X\x01\x00\x00\x00au.", "is damaged"),
        (b"}K\x05s.", "is damaged"),
        (b"h\x07.", "is damaged"),
        (b"\x80\x04X" + struct.pack("<I", 2**31) + b"short", "is damaged"),
        (pickle.dumps({1: "a"})[:-3], "is damaged"),
        (b"", "is damaged"),
        (b"not a pickle", "is damaged"),
        (b"\x80\x04r\xff\xff\xff\xff.", "is damaged"),  # the memo of CPython would take 32 GB
    ],
)
def test_anything_else_is_refused(tmp_path, content, reason):
    with pytest.raises(InputError, match="must be a pickle of a dict of int, str and NumPy") as it:
        read(content, tmp_path)
    assert reason in str(it.value)
    assert "\n" not in str(it.value)


def test_random_damage_is_refused_or_harmless(tmp_path):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps({np.int64(1): "a", 2: np.str_("b")}), dtype=np.uint8)
    for _ in range(500):
        broken = whole.copy()
        broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
        try:
            found = read(broken.tobytes(), tmp_path)
        except InputError:
            continue
        assert type(found) is dict
