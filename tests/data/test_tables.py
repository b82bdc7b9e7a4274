"""ParquetTable: forms of ids and times, folders of parts, paths that look like patterns."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perpeft_ray.data.tables import Kind, open_table
from perpeft_ray.errors import InputError


def read(folder: Path, values: pa.Array, kind: Kind, *, nulls: bool = False) -> list[Any]:
    pq.write_table(pa.table({"x": values}), folder / "t.parquet")
    batches = open_table("t", folder / "t.parquet", {"x": kind}).batches(nulls=nulls)
    return pa.Table.from_batches(batches)["x"].to_pylist()


def refused(folder: Path, values: pa.Array, kind: Kind) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, values, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_clock_times_keep_their_unit(tmp_path, unit, zone):
    expected = [1_700_000_000_123_456_789, -1, 1_700_000_000_123_456_788]
    assert read(tmp_path, pa.array(expected).cast(pa.timestamp(unit, zone)), "time") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Parquet has no seconds: Arrow writes milliseconds.
        (pa.array([1, -1], pa.timestamp("s")), [1000, -1000]),
        (pa.array([dt.date(1970, 1, 2), dt.date(1969, 12, 31)]), [86_400, -86_400]),
        (
            pa.array([dt.datetime(9999, 12, 31), dt.datetime(1, 1, 1)], pa.timestamp("us")),
            [253_402_214_400_000_000, -62_135_596_800_000_000],
        ),
        (pa.array(["8", "9", "10", "-1"]), [8, 9, 10, -1]),
        (pa.array([1, 2, 3], pa.uint16()), [1, 2, 3]),
    ],
)
def test_other_times_are_whole_numbers(tmp_path, values, expected):
    assert read(tmp_path, values, "time") == expected


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_iso_texts_are_nanoseconds_of_utc(tmp_path, kind):
    texts = pa.array(
        [
            "2024-01-01",
            "2024-01-01T00:00:00.000000001",
            "2024-01-01 02:00:00+02:00",
            "2024-01-01T02:00:00.5+0200",
            "2023-12-31T23:00Z",
            "2023-12-31 19:00:00-05",
        ],
        pa.string(),
    )
    midnight = int(pd.Timestamp("2024-01-01", tz="UTC").as_unit("ns").value)
    offsets = [0, 1, 0, 500_000_000, -3_600_000_000_000, 0]
    assert read(tmp_path, texts.cast(kind), "time") == [midnight + offset for offset in offsets]


@pytest.mark.parametrize(
    ("values", "row", "value"),
    [
        (["2024-01-01", "1.2.2024"], 1, "1.2.2024"),
        (["2024-02-30"], 0, "2024-02-30"),
        (["2024-01-01", "9999-12-31"], 1, "9999-12-31"),
        (["2024-01-01", ""], 1, ""),
        (["noon"], 0, "noon"),
        ([1.0, 2.5], 1, "2.5"),
        ([float("inf")], 0, "inf"),
        ([2.0**63], 0, "9.223372036854776e+18"),
        ([Decimal("1.5")], 0, "1.5"),
    ],
)
def test_other_values_are_no_times(tmp_path, values, row, value):
    assert refused(tmp_path, pa.array(values), "time") == (
        "t column `x` must have whole numbers, clock times or ISO dates such as "
        f"2024-01-31T23:59:59.123, but row {row} has {value!r}"
    )


@pytest.mark.parametrize("values", [["1", "2024-01-01"], ["5", "6.0"], ["7", " 8"]])
def test_numbers_and_dates_are_not_mixed(tmp_path, values):
    message = refused(tmp_path, pa.array(values), "time")
    assert message.endswith(f"numbers alone where the first is one, but row 1 has {values[1]!r}")


@pytest.mark.parametrize(
    "kind",
    [pa.bool_(), pa.time64("us"), pa.list_(pa.field("element", pa.int64())), pa.duration("s")],
)
def test_other_types_are_no_times(tmp_path, kind):
    assert f"but is of type {kind}" in refused(tmp_path, pa.nulls(1, kind), "time")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, -1, 2**63], pa.decimal128(38, 0)), ["7", "-1", str(2**63)]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([1.0, 2.0**53 - 1]), ["1", str(2**53 - 1)]),
        (pa.array([Decimal("5.00")]), ["5"]),
        (pa.array([b"a", b"\xc3\xa9"], pa.binary()), ["a", "é"]),
        (
            pa.array(["u", "u\0", "u\0\0", "u ", " u", "", "é", "e\u0301"]),
            ["u", "u\0", "u\0\0", "u ", " u", "", "é", "e\u0301"],
        ),
        (pa.array(["01", "1"]).dictionary_encode(), ["01", "1"]),
    ],
)
def test_ids_are_exact(tmp_path, values, expected):
    assert read(tmp_path, values, "id") == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pa.array([1.5]), "must have texts or whole numbers, but row 0 has '1.5'"),
        (pa.array([1.0, 2.0**53]), "floats merge, but row 1 has '9007199254740992.0'"),
        (pa.array([1.0, 2.0**24], pa.float32()), "floats merge, but row 1 has '16777216.0'"),
        (pa.array([b"\xff"], pa.binary()), "must have texts in UTF-8, but row 0 has"),
        (pa.array(["a", None]), "must not be null, but row 1 is"),
        (pa.array([1.0, np.nan]), "must not be null, but row 1 is"),
        (pa.nulls(2), "must not be null, but row 0 is"),
        (pa.array([True]), "must have texts or whole numbers, but is of type bool"),
    ],
)
def test_other_values_are_no_ids(tmp_path, values, reason):
    assert reason in refused(tmp_path, values, "id")


def test_missing_ids_stay_with_nulls(tmp_path):
    assert read(tmp_path, pa.array([3.0, np.nan, None]), "id", nulls=True) == ["3", None, None]


def test_text_that_is_not_utf8_is_refused(tmp_path):
    array = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    message = refused(tmp_path, array, "text")
    assert message.startswith("t must be a readable table, but ")


PARTS = {"user_id": "id", "timestamp": "time"}


def write_parts(folder: Path, tables: dict[str, dict]) -> Path:
    folder.mkdir(parents=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / name)
    return folder


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    names = [f"part.{number}.parquet" for number in (10, 2, 0, 1)]
    folder = write_parts(
        tmp_path / "t", {name: {"user_id": [name], "timestamp": [0]} for name in names}
    )
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part.0.parquet.crc", "_metadata"):
        (folder / name).write_bytes(b"x")
    read = open_table("t", folder, PARTS).read()["user_id"].to_pylist()
    assert read == [f"part.{number}.parquet" for number in (0, 1, 2, 10)]


def test_parts_may_differ_in_type_and_unit(tmp_path):
    when = dt.datetime(2024, 1, 1)
    seconds = int(when.replace(tzinfo=dt.UTC).timestamp())
    folder = write_parts(
        tmp_path / "t",
        {
            "0.parquet": {
                "user_id": pa.array([1, 2]),
                "timestamp": pa.array([when, None], pa.timestamp("ms")),
            },
            "1.parquet": {
                "timestamp": pa.array([when], pa.timestamp("ns")),
                "user_id": pa.array(["3"]).dictionary_encode(),
            },
            "2.parquet": {"user_id": pa.array([4.0, np.nan]), "timestamp": pa.nulls(2)},
        },
    )
    batches = open_table("t", folder, PARTS).batches(nulls=True)
    table = pa.Table.from_batches(batches)
    assert table["user_id"].to_pylist() == ["1", "2", "3", "4", None]
    assert table["timestamp"].to_pylist() == [seconds * 10**9, None, seconds * 10**9, None, None]


@pytest.mark.parametrize(
    ("add", "message"),
    [
        ("user_id=3/", "must have only files that end in .parquet, but has the folder 'user_id=3'"),
        ("0.parquet.tmp", "must have only files that end in .parquet, but has the file"),
        ("more.csv", "must have only files that end in .parquet, but has the file 'more.csv'"),
        ("_delta_log/", "must be plain Parquet, but is a Delta table, whose files may be outdated"),
        ("1.parquet", "t part 1.parquet must be a readable table, but "),
    ],
)
def test_other_files_among_the_parts_are_refused(tmp_path, add, message):
    folder = write_parts(tmp_path / "t", {"0.parquet": {"user_id": ["a"], "timestamp": [1]}})
    (folder / add).mkdir() if add.endswith("/") else (folder / add).touch()
    with pytest.raises(InputError, match=re.escape(message)):
        open_table("t", folder, PARTS)


def test_parts_with_times_of_two_forms_are_refused(tmp_path):
    columns = {"user_id": ["a"], "timestamp": [1]}
    other = {"user_id": ["a"], "timestamp": ["2024-01-01"]}
    folder = write_parts(tmp_path / "t", {"0.parquet": columns, "1.parquet": other})
    expected = "but has whole times in 0.parquet and text times in 1.parquet"
    with pytest.raises(InputError, match=expected):
        open_table("t", folder, PARTS)


def test_empty_folder_and_missing_file(tmp_path):
    (tmp_path / "t").mkdir()
    with pytest.raises(InputError, match=r"must have files that end in \.parquet, but has none"):
        open_table("t", tmp_path / "t", PARTS)
    with pytest.raises(InputError, match="must be a Parquet file or a folder of its parts, but"):
        open_table("t", tmp_path / "no", PARTS)


@pytest.mark.parametrize(
    "name", ["a[1]*b?", "user_id=x", "%41", "a#b", "~", "a\\b", "s3:", "{a,b}"]
)
@pytest.mark.parametrize("parts", [False, True])
def test_path_is_no_pattern_partition_or_uri(tmp_path, monkeypatch, name, parts):
    columns = {"user_id": ["own"], "timestamp": [1]}
    place = tmp_path / name / "t.parquet"
    if parts:
        write_parts(place, {"0.parquet": columns})
    else:
        write_parts(place.parent, {"t.parquet": columns})
    write_parts(tmp_path / "a1", {"t.parquet": {"user_id": ["other"], "timestamp": [2]}})
    monkeypatch.chdir(tmp_path)
    for path in (place, Path(name, "t.parquet")):
        assert open_table("t", path, PARTS).read().to_pylist() == [
            {"user_id": "own", "timestamp": 1}
        ]
