"""prepare_table on broken files: rows left out are shown, the rest is one clear line."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.data.prepare.table import TableSource, prepare_table
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg
from tests.data.prepare.tables import PLAIN, prepare, rows


@pytest.mark.parametrize("broken", ["{broken", '{"user": "u", "it'])
def test_a_line_that_is_no_json_is_left_out(tmp_path, broken):
    lines = [json.dumps({"user": "u", "item": "a", "time": at}) for at in range(20)]
    repairs = prepare(tmp_path, "\n".join([*lines[:10], broken, *lines[10:]]), "orders.jsonl")
    assert len(rows(tmp_path)) == 20
    assert any(note.startswith("1 line of orders.jsonl left out") for note in repairs.notes)


ROWS = "".join(f"u,a,{at}\n" for at in range(20))
LEFT_OUT = {
    "too few": ("u,a\n", "1 line of orders.csv left out: missing columns (line 2: 'u,a')"),
    "too many": ("u,a,1,x\n", "orders.csv left out: too many columns (line 2: 'u,a,1,x')"),
    "broken quotes": ('"u"x,a,1\n', "quotes that do not match (line 2: '\"u\"x,a,1')"),
    "broken encoding": (b"\xff\xc3\xa9\xc3\xa9,a,1\n", "left out: invalid encoding (line 2"),
    "no time": ("u,a,\n", None),
    "words for nothing": ("NULL,a,1\nu,NaN,1\nu,a,\\N\n", None),
    "a time that is none": (
        "u,a,soon\n",
        "1 interaction with an unreadable time left out, such as 'soon'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "note"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_bad_rows_are_counted_and_shown(tmp_path, line, note):
    data = line if isinstance(line, bytes) else line.encode()
    repairs = prepare(tmp_path, b"user,item,time\n" + data + ROWS.encode())
    assert rows(tmp_path) == [("u", "a", at) for at in range(20)]
    if note is None:
        assert repairs.incomplete_interactions == data.count(b"\n")
    else:
        assert repairs.incomplete_interactions == 0
        assert any(note in found for found in repairs.notes), repairs.notes


REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "empty": ("", {}, "orders.csv' must have a header and rows, but is empty"),
    "header only": ("user,item,time\n", {}, "orders.csv' must have at least one row, but has none"),
    "missing column": (
        "user,item\nu,a\n",
        {},
        "must have a column of times, but its columns are user, item; name it with --time",
    ),
    "image without images": (PLAIN, {"image": "item"}, "out without `images`, but is 'item'"),
    "key without items": (PLAIN, {"key": "item"}, "out without `items`, but is 'item'"),
    "one column for two": (
        PLAIN,
        {"user": "item"},
        "must be different columns of .*orders.csv', but are item, item, time",
    ),
    "a photo": (jpeg(0), {}, "must be CSV, TSV, JSON lines or Parquet, but is an image"),
    "other bytes": (
        np.random.default_rng(0).bytes(500),
        {},
        "orders.csv' must be text with a header, but begins with other bytes",
    ),
    "no such column": (
        PLAIN,
        {"user": "usr"},
        "`user` must name a column of .* but is 'usr' and the columns are user, item, time; "
        "did you mean 'user'?",
    ),
    "a column twice": ("user,item,time,item\nu,a,1,b\n", {}, "one column 'item', but has 2"),
    "ambiguous dates": (
        "user,item,time\nu,a,01/02/2024\nu,a,03/04/2024\n",
        {},
        "none like '01/02/2024' does; give --date-format, such as %d/%m/%Y",
    ),
    "day first and month first": (
        "user,item,time\nu,a,31/01/2024\nu,a,01/31/2024\n",
        {},
        "must have dates of one order, but '31/01/2024' has the day first and '01/31/2024' the",
    ),
    "too many bad times": (
        "user,item,time\nu,a,2024-01-02\nu,a,soon\n",
        {},
        "must have times of one form, but 1 of 2 are not as year first: .* such as 'soon'",
    ),
    "seconds and milliseconds": (
        "user,item,time\nu,a,1704153600\nu,a,1704153600000\n",
        {},
        "times of one unit, but has 1704153600 (seconds) and 1704153600000 (milliseconds)",
    ),
    "a clock alone": ("user,item,time\nu,a,10:22\n", {}, "--time two columns, such as"),
    "all times missing": ("user,item,time\nu,a,\n", {}, "'time' must have times, but has none"),
    "another date format": (
        PLAIN,
        {"date_format": "%d.%m.%Y"},
        "2 of 2 are not as %d.%m.%Y, such as '2024-01-02'",
    ),
    "ids that are objects": (
        '{"user": {"id": 1}, "item": "a", "time": 1}\n',
        {},
        "column 'user' must have texts or whole numbers for ids, but has {\"id\":1}",
    ),
    "ids that are lists in some rows": (
        '{"user": 1, "item": "a", "time": 1}\n{"user": 1, "item": ["b"], "time": 2}\n',
        {},
        "column 'item' must have texts or whole numbers for ids, but has [\"b\"]",
    ),
    "ids from a spreadsheet": (
        "user,item,time\n1.23457E+11,a,1\n",
        {},
        "must have ids as they are, but '1.23457E+11' has lost its last digits",
    ),
    "floats that merge ids": (
        "user,item,time\n9007199254740994.0,a,1\n",
        {},
        "must have texts or integers for ids from 9007199254740992 on, which floats merge",
    ),
    "rows of another width": (
        "user,item,time\nu,a,1,x\nu,a,1,x,y\nu,b,2\n",
        {},
        "must have rows like its header, but of 3 lines 2 lines of orders.csv left out: too many",
    ),
    "a quote as delimiter": (PLAIN, {"delimiter": '"'}, "must be one character and no quote"),
    "an encoding that is none": (PLAIN, {"encoding": "base64"}, "must be one that Python knows"),
    "an encoding that is another": (PLAIN + "é", {"encoding": "ascii"}, "must be text in ascii"),
    "an Excel workbook": (b"PK\x03\x04...", {}, "is a zip archive or an Excel workbook"),
    "a cut gzip": (gzip.compress(PLAIN.encode())[:-12], {}, "must be a readable file, but"),
    "a JSON array": ('[{"user": "u"}]', {}, "a JSON object in each line, but is a JSON array"),
    "broken JSON": ('{"user": \n}\n', {}, "a JSON object in each line, but has none"),
    "broken Parquet": (b"PAR1 and no more", {}, "orders.csv' must have readable files, but"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_unusable_table_is_one_clear_line(tmp_path, data, options, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(InputError, match=pattern) as error:
        prepare(tmp_path, data, **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700
    assert [path.name for path in tmp_path.iterdir()] == ["orders.csv"]


def test_lists_as_ids_are_refused_in_parquet(tmp_path):
    frame = pd.DataFrame({"user": ["u"], "item": [["a", "b"]], "time": [1]})
    frame.to_parquet(tmp_path / "orders.parquet")
    with pytest.raises(InputError, match=r"'item' must have texts .* but is of type VARCHAR\[\]"):
        prepare_table(TableSource(tmp_path / "orders.parquet"), tmp_path / "out")
