"""prepare_table: columns, times, ids, titles and images of tables in many forms."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from perpeft_ray.cli.main import perpeft
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.normalise import Repairs
from perpeft_ray.data.prepare.report import report_on
from perpeft_ray.data.prepare.table import TableSource, prepare_table
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg
from tests.data.prepare.tables import PLAIN, Row, prepare, rows

DAY = 86_400 * 10**9
HOUR = 3600 * 10**9
JAN_2 = 19_724 * DAY
"""2024-01-02 in nanoseconds since 1970."""


def items(folder: Path) -> list[list[Any]]:
    return load_folder(folder / "out", "").items.values.tolist()


EXPECTED: list[Row] = [("u", "a", JAN_2), ("v", "b", JAN_2 + DAY)]

SAME = {
    "plain": PLAIN,
    "windows line ends": PLAIN.replace("\n", "\r\n"),
    "mixed line ends": PLAIN.replace("\n", "\r\n", 2),
    "old Mac line ends": PLAIN.replace("\n", "\r"),
    "no line end at the end": PLAIN.rstrip(),
    "empty lines": PLAIN.replace("\n", "\n\n"),
    "byte order mark": PLAIN.encode("utf-8-sig"),
    "utf-16 with mark": PLAIN.encode("utf-16"),
    "utf-16 little end without mark": PLAIN.encode("utf-16-le"),
    "utf-16 big end without mark": PLAIN.encode("utf-16-be"),
    "gzip": gzip.compress(PLAIN.encode()),
    "gzip of utf-16": gzip.compress(PLAIN.encode("utf-16")),
    "semicolons": PLAIN.replace(",", ";"),
    "bars": PLAIN.replace(",", "|"),
    "tabs": PLAIN.replace(",", "\t"),
    "Excel's first line": "sep=;\n" + PLAIN.replace(",", ";"),
    "quotes": 'user,item,time\n"u","a","2024-01-02"\n"v","b","2024-01-03"\n',
    "space around values": PLAIN.replace(",", " , "),
    "columns in another order": "time,x,item,user\n2024-01-02,,a,u\n2024-01-03,,b,v\n",
    "other names": PLAIN.replace("user,item,time", "Customer ID,productId,ORDER_DATE"),
    "a separator at each end": PLAIN.replace("\n", ",\n").replace("time,", "time"),
    "commas in other columns": "user;item;price;time\nu;a;1,50;2024-01-02\nv;b;2;2024-01-03\n",
    "a column twice that is not used": "x,user,item,x,time\n1,u,a,2,2024-01-02\n1,v,b,2,2024-01-03",
    "json lines": '{"user": "u", "item": "a", "time": "2024-01-02"}\n'
    '{"time": "2024-01-03", "item": "b", "user": "v", "more": {"x": [1]}}\n',
}


@pytest.mark.parametrize("data", SAME.values(), ids=SAME)
def test_the_same_table_in_many_forms(tmp_path, data):
    repairs = prepare(tmp_path, data)
    assert rows(tmp_path) == EXPECTED
    assert not any("left out" in note for note in repairs.notes)
    assert repairs == Repairs(0, 0, 0, 0, 0, 0)


def test_parquet_in_parts_of_any_types(tmp_path):
    frame = pd.DataFrame(
        {
            "user": [7, 8],
            "item": ["007", "b"],
            "time": pd.to_datetime(
                ["2024-01-02", "2024-01-03T00:00:00.123456789"], format="ISO8601"
            ),
            "price": [1.5, np.nan],
        }
    )
    (tmp_path / "in").mkdir()
    for part in (0, 1):
        frame[part : part + 1].to_parquet(tmp_path / "in" / f"part-{part}.parquet")
    prepare_table(TableSource(tmp_path / "in", title="item, price"), tmp_path / "out")
    assert rows(tmp_path) == [("7", "007", JAN_2), ("8", "b", JAN_2 + DAY + 123_456_789)]
    assert items(tmp_path) == [["007", "007, 1.5", None], ["b", "b", None]]


TIMES: dict[str, tuple[list[str], list[int]]] = {
    "iso": (["2024-01-02T03:00:00", "2024-01-02"], [JAN_2 + 3 * HOUR, JAN_2]),
    "time zones": (
        ["2024-01-02T03:00:00+02:00", "2024-01-02 03:00:00Z", "2024-01-02 03:00 Europe/Berlin"],
        [JAN_2 + HOUR, JAN_2 + 3 * HOUR, JAN_2 + 2 * HOUR],
    ),
    "zone without colon": (["2024-01-02 03:00:00 +0230"], [JAN_2 + HOUR // 2]),
    "nanoseconds": (["2024-01-02 00:00:00.123456789"], [JAN_2 + 123_456_789]),
    "decimal comma": (["2024-01-02 00:00:00,5"], [JAN_2 + 500_000_000]),
    "slashes, year first": (["2024/01/02", "2024/1/3"], [JAN_2, JAN_2 + DAY]),
    "day first": (["02/01/2024", "13/01/2024 05:00"], [JAN_2, JAN_2 + 11 * DAY + 5 * HOUR]),
    "day first, dots": (["2.1.2024", "13.1.2024"], [JAN_2, JAN_2 + 11 * DAY]),
    "month first": (["01/02/2024", "01/13/24"], [JAN_2, JAN_2 + 11 * DAY]),
    "am and pm": (
        ["1/2/2024 1:05 PM", "1/13/2024 12:00 am"],
        [JAN_2 + 13 * HOUR + HOUR // 12, JAN_2 + 11 * DAY],
    ),
    "name of the month": (["2 Jan 2024", "03-January-2024 01:00"], [JAN_2, JAN_2 + 25 * HOUR]),
    "name first": (["Jan 2, 2024", "January 3, 2024"], [JAN_2, JAN_2 + DAY]),
    "mail": (["Tue, 02 Jan 2024 03:00:00 +0200"], [JAN_2 + HOUR]),
    "compact": (["20240102", "20240102030000"], [JAN_2, JAN_2 + 3 * HOUR]),
    "compact with zone": (["20240102T030000Z"], [JAN_2 + 3 * HOUR]),
    "seconds": (["1704153600", "1704153601"], [1_704_153_600, 1_704_153_601]),
    "fractions": (["1704153600.25", "1704153600"], [1_704_153_600_250_000, 1_704_153_600_000_000]),
    "fractions with comma": (["1704153600,5"], [1_704_153_600_500_000]),
    "milliseconds": (["1704153600123"], [1_704_153_600_123]),
    "powers of ten": (["1.7041536e9"], [1_704_153_600]),
    "floats": (["1704153600.0"], [1_704_153_600]),
    "before 1970": (["1969-12-31"], [-DAY]),
    "steps": (["3", "1", "-2"], [3, 1, -2]),
}


@pytest.mark.parametrize(("texts", "expected"), TIMES.values(), ids=TIMES)
def test_times(tmp_path, texts, expected):
    more = [texts[0]] * 10  # one in ten may be unreadable
    lines = [f"u;{at};{text}" for at, text in enumerate([*texts, *more])]
    prepare(tmp_path, "user;item;time\n" + "\n".join(lines))
    found = [time for _, _, time in rows(tmp_path)]
    assert found == [*expected, *([expected[0]] * 10)]


def test_date_format_is_followed(tmp_path):
    prepare(tmp_path, "user,item,time\nu,a,01/02/2024\n", date_format="%m/%d/%Y")
    assert rows(tmp_path) == [("u", "a", JAN_2)]


def test_date_and_hour_in_two_columns(tmp_path):
    prepare(tmp_path, "user,item,day,hour\nu,a,2024-01-02,03:00\n", time="day, hour")
    assert rows(tmp_path) == [("u", "a", JAN_2 + 3 * HOUR)]


IDS = {
    "leading zeros": ["007", "07", "7"],
    "huge": ["123456789012345678901234567890", "9007199254740993", "9007199254740992"],
    "letters of many scripts": ["é", "e\u0301", "商品", "\U0001f9e6"],
    "zero bytes": ["a\0", "a", "a\0b"],
    "numbers with a point": ["1.50", "1.5", "1"],
    "half of them floats": ["1.0", "a"],
    "minus and plus": ["-1", "+1"],
    "words that are not nothing": ["na", "none", "Null"],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_ids_are_exact(tmp_path, ids, form):
    if form == "csv":
        text = "user,item,time\n" + "".join(f"{i},{i},1\n" for i in ids)
    else:
        lines = [json.dumps({"user": i, "item": i, "time": 1}, ensure_ascii=False) for i in ids]
        text = "\n".join(lines)
    prepare(tmp_path, text, f"orders.{form}")
    assert rows(tmp_path) == [(i, i, 1) for i in ids]


def test_ids_lose_the_zero_of_floats(tmp_path):
    """As pandas writes whole numbers with gaps; the items have them as they were."""
    (tmp_path / "items.csv").write_text("item,name\n12,Ant\n7,Bee\n")
    text = "user,item,time\n1.0,12.0,1\n,12.0,1\n2.0,7.0,2\n"
    repairs = prepare(tmp_path, text, items=tmp_path / "items.csv")
    assert rows(tmp_path) == [("1", "12", 1), ("2", "7", 2)]
    assert sum("every id ends in .0" in note for note in repairs.notes) == 2
    assert repairs.incomplete_interactions == 1


def test_json_numbers_are_exact(tmp_path):
    lines = '{"user": 9007199254740993, "item": 12345678901234567890123, "time": 17e8}\n'
    prepare(tmp_path, lines, "orders.jsonl")
    assert rows(tmp_path) == [("9007199254740993", "12345678901234567890123", 1_700_000_000)]


def test_future_times_are_reported(tmp_path):
    repairs = prepare(tmp_path, "user,item,time\nu,a,2024-01-02\nu,b,2199-01-01\n")
    assert "1 interaction in the future" in repairs.notes
    assert "from 2024-01-02 00:00:00 to 2199-01-01 00:00:00" in repairs.notes
    assert len(rows(tmp_path)) == 2


def shop(
    folder: Path, products: str, orders: str = "user,item,time\nu,a,1\nu,b,2\n"
) -> TableSource:
    (folder / "orders.csv").write_text(orders)
    (folder / "products.csv").write_text(products)
    (folder / "photos" / "more").mkdir(parents=True)
    for at, name in enumerate(["a.jpg", "b.JPG", "more/c.jpg"]):
        (folder / "photos" / name).write_bytes(jpeg(at))
    return TableSource(folder / "orders.csv", folder / "products.csv", folder / "photos")


TITLES = {
    "joined, quotes kept": (
        'item;name;brand;price\na;"A ""red""\nlamp";ACME;"12,50"\nb;Chair;;\n',
        {"title": "name, brand,price"},
        [("a", 'A "red" lamp, ACME, 12,50'), ("b", "Chair")],
    ),
    "the orders' item column is the key": (
        "sku,item,name\nb,a,Ant\na,b,Bee\n",
        {},
        [("a", "Ant"), ("b", "Bee")],
    ),
    "another key": (
        "item,name,nr\na,Ant,b\nb,Bee,a\n",
        {"key": "nr"},
        [("b", "Ant"), ("a", "Bee")],
    ),
}


@pytest.mark.parametrize(("products", "options", "expected"), TITLES.values(), ids=TITLES)
def test_titles_of_a_table_of_items(tmp_path, products, options, expected):
    prepare_table(replace(shop(tmp_path, products), **options), tmp_path / "out")
    assert [(item, title) for item, title, _ in items(tmp_path)] == expected


def test_a_role_without_a_column_is_not_called_guessed(tmp_path):
    (first, *_) = prepare(tmp_path, PLAIN).notes
    assert first.endswith("time = time (guessed), no title")


def test_titles_of_orders_are_the_first_of_each_item(tmp_path):
    """`name` may be the user's."""
    text = "user,product,product_name,time,name\nu,a,,1,Al\nu,a,Ant,2,Al\nu,a,Other,3,\nv,b,Bee,1,"
    prepare(tmp_path, text)
    assert items(tmp_path) == [["a", "Ant", None], ["b", "Bee", None]]


def test_repeated_and_unknown_items_are_shown(tmp_path):
    source = shop(tmp_path, "item,name\na,First\na,Second\n")
    lines = prepare_table(source, tmp_path / "out").lines()
    assert items(tmp_path)[0][:2] == ["a", "First"]
    assert "1 item with an id that was there before left out, such as 'a'" in lines
    assert "1 interaction with an unknown item left out, such as 'b'" in lines


def test_error_shows_ids_that_do_not_match(tmp_path):
    source = shop(tmp_path, "item,name\n0a,Ant\n")
    with pytest.raises(InputError, match=r"items such as '0a', interactions with 'a'\)$"):
        prepare_table(replace(source, images=None), tmp_path / "out")


IMAGES: dict[str, tuple[str, list[str | None]]] = {
    "paths": ("a.jpg more/c.jpg", ["images/a.jpg", "images/more/c.jpg"]),
    "with the folder's name": ("photos/a.jpg photos/b.JPG", ["images/a.jpg", "images/b.JPG"]),
    "Windows paths": ("photos\\a.jpg more\\c.jpg", ["images/a.jpg", "images/more/c.jpg"]),
    "missing": ("a.jpg none.jpg", ["images/a.jpg", None]),
    "an address": ("a.jpg https://x/b.jpg", ["images/a.jpg", None]),
    "twice the same": ("a.jpg a.jpg", ["images/a.jpg", "images/a.jpg"]),
}


@pytest.mark.parametrize(("texts", "expected"), IMAGES.values(), ids=IMAGES)
def test_images(tmp_path, texts, expected):
    first, second = texts.split()
    source = shop(tmp_path, f"item,name,photo\na,Ant,{first}\nb,Bee,{second}\n")
    repairs = prepare_table(source, tmp_path / "out")
    assert [row[2] for row in items(tmp_path)] == expected
    assert repairs.failed_images == expected.count(None)


def test_images_named_after_items(tmp_path):
    source = shop(tmp_path, "item,name\na,Ant\nb,Bee\nz,Zebra\n")
    repairs = prepare_table(source, tmp_path / "out")
    assert [row[2] for row in items(tmp_path)] == ["images/a.jpg", "images/b.JPG", None]
    assert "2 items with an image named after the item" in repairs.notes


def test_image_path_outside_its_folder_is_refused(tmp_path):
    source = shop(tmp_path, "item,name,photo\na,Ant,photos/../../orders.csv\nb,Bee,\n")
    with pytest.raises(InputError, match=r"goes up with '\.\.'"):
        prepare_table(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_link_out_of_the_images_is_refused(tmp_path):
    source = shop(tmp_path, "item,name\nlink,Ant\nb,Bee\n")
    (tmp_path / "secret.jpg").write_bytes(jpeg(3))
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match=r"'link\.jpg' is a link that leaves it$"):
        prepare_table(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_other_items_are_refused(tmp_path):
    source = shop(tmp_path, "item,name\nA1,Ant\nB1,Bee\n", "user,item,time\nu,A1,1\n")
    with pytest.raises(InputError, match=r"but of 3 files in .*photos' none is$"):
        prepare_table(source, tmp_path / "out")


def test_command_prints_how_it_understood_the_tables(tmp_path, capsys):
    source = shop(tmp_path, "sku;name;photo\na;Ant;a.jpg\nb;Bee;\n")
    (tmp_path / "orders.csv").write_text("customer,sku,date\n1,a,13/01/2024\n1,b,14/01/2024\n")
    options = ["--interactions", str(source.interactions), "--items", str(source.items)]
    options += ["--images", str(source.images), "--user", "customer"]
    perpeft(["prepare", "table", *options, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    printed = shown.out.replace("\n", " ")
    for part in (
        "2 interactions of 1 user with 2 items",
        "1 item without image",
        "orders.csv: CSV in UTF-8, separated by commas; user = customer, item = sku (guessed), "
        "time = date (guessed)",
        "products.csv: CSV in UTF-8, separated by semicolons; "
        "key = sku, title = name (guessed), image = photo (guessed)",
        "times: day first: '13/01/2024' is 2024-01-13 00:00:00 UTC",
        "0 interactions with an unknown item left out",
        f"parquet:{tmp_path / 'out'}",
    ):
        assert part in printed
    missing = "two users with at least 3 interactions each, to train, validate and test"
    assert shown.err.endswith(f" s; missing: {missing}\n")


def test_file_larger_than_the_memory(tmp_path):
    """5 GB within 1 GB, scaled down."""
    file = tmp_path / "orders.csv"
    duckdb.execute(
        "COPY (SELECT 'C' || lpad((hash(i) % 200000)::VARCHAR, 8, '0') AS customer, "
        "'00' || (hash(i + 1) % 5000) AS product, "
        "strftime(make_timestamp((15e8 + hash(i + 2) % 2e8)::BIGINT * 1000000), '%d/%m/%Y %H:%M') "
        f"AS date, repeat('x', 100) AS note FROM range(800000) t(i)) TO '{file}' (HEADER)"
    )
    memory_gb = 0.1
    assert file.stat().st_size > memory_gb * 1e9
    prepare_table(TableSource(file), tmp_path / "out", memory_gb=memory_gb)
    report = report_on(tmp_path / "out", memory_gb=memory_gb)
    assert (report.interactions, report.items) == (800_000, 5_000)
    # In the order of the rows.
    expected = duckdb.execute("SELECT '00' || (hash(i + 1) % 5000) FROM range(800000) t(i)")
    found = pq.read_table(tmp_path / "out" / "interactions.parquet")["item_id"]
    assert found.to_pylist() == [item for (item,) in expected.fetchall()]
