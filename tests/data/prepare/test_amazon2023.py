"""prepare_amazon2023 on files of the published form, against the same rules in plain Python."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.images import Limits
from perpeft_ray.data.prepare.report import PAPER_DATASETS
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg

CATEGORY = "Arts_Crafts_and_Sewing"
DAY = 86_400_000


def review(user: str, item: str, timestamp: int, rating: float = 5.0) -> dict:
    """A line of `<Category>.jsonl`, also with fields that are not read."""
    return {
        "rating": rating,
        "text": 'Not "overpowering".\nJust right, schön 🌸',
        "images": [],
        "asin": f"{item}-red",
        "parent_asin": item,
        "user_id": user,
        "timestamp": timestamp,
        "verified_purchase": True,
    }


def meta(item: str, title: str | None, images: list[dict]) -> dict:
    """A line of `meta_<Category>.jsonl`, also with fields that are not read."""
    return {
        "main_category": "Arts, Crafts & Sewing",
        "title": title,
        "price": None,
        "images": images,
        "details": {"Package Dimensions": "7.1 x 5.5 inches", "UPC": "617390882781"},
        "parent_asin": item,
    }


def picture(url: str | None, variant: str = "MAIN", size: str = "large") -> dict:
    sizes = {"thumb": None, "large": None, "hi_res": None, size: url}
    return {**sizes, "variant": variant}


def write_raw(folder: Path, reviews: list[dict], metas: list[dict], ending: str = ".jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((CATEGORY, reviews), (f"meta_{CATEGORY}", metas)):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{name}{ending}").write_bytes(
            gzip.compress(text) if ending.endswith("gz") else text
        )
    return folder


def prepared(
    folder: Path, reviews: list[dict], metas: list[dict], selection: Selection, **options: Any
) -> Dataset:
    """What `folder / "out"` has of these lines."""
    raw = write_raw(folder / "raw", reviews, metas)
    prepare_amazon2023(raw, CATEGORY, folder / "out", selection, **options)
    return load_folder(folder / "out", "")


def drawn(users: int = 150, items: int = 60, lines: int = 1800) -> tuple[list[dict], list[dict]]:
    """Reviews with repeats and ties, items without title or metadata."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, items + 1)
    reviews = [
        review(f"AE{user:04d}", f"B{item:05d}", int(time) * DAY, float(rating))
        for user, item, time, rating in zip(
            (users * rng.random(lines) ** 2).astype(int),
            rng.choice(items, lines, p=popularity / popularity.sum()),
            rng.integers(0, 200, lines),
            rng.integers(1, 6, lines),
            strict=True,
        )
    ]
    metas = [
        meta(f"B{item:05d}", None if item % 9 == 1 else f" Title {item} ", [])
        for item in reversed(range(items))
        if item % 11 != 2
    ]
    metas.insert(5, {**metas[20], "title": None})  # repeats an item before its other line
    return reviews, metas


def plain(reviews: list[dict], metas: list[dict], selection: Selection) -> list[tuple]:
    """The same selection line by line: (user, item, timestamp) in time order."""
    titles: dict[str, str | None] = {}
    for row in metas:
        title = (row["title"] or "").strip() or None
        if title or not selection.require_title:
            titles.setdefault(row["parent_asin"], title)
    fraction = 1.0 if selection.user_fraction is None else selection.user_fraction
    chosen: dict[tuple[str, str], tuple[int, int]] = {}
    for line, row in enumerate(reviews):
        digest = hashlib.md5(f"{selection.seed}:{row['user_id']}".encode()).digest()
        day = dt.date(1970, 1, 1) + dt.timedelta(milliseconds=row["timestamp"])
        if (
            int.from_bytes(digest[8:], "little") < fraction * 2**64
            and row["rating"] >= (selection.min_rating or 0)
            and (selection.since or dt.date.min) <= day
            and day < (selection.until or dt.date.max)
            and row["parent_asin"] in titles
        ):
            pair, when = (row["user_id"], row["parent_asin"]), (row["timestamp"], line)
            chosen[pair] = min(chosen.get(pair, when), when)
    while True:
        users = Counter(user for user, _ in chosen)
        items = Counter(item for _, item in chosen)
        core = {
            (user, item): when
            for (user, item), when in chosen.items()
            if users[user] >= selection.core and items[item] >= selection.core
        }
        if len(core) == len(chosen):
            break
        chosen = core
    order = sorted(chosen, key=lambda pair: chosen[pair])
    return [(user, item, chosen[user, item][0]) for user, item in order]


@pytest.fixture
def shelf(tmp_path):
    return write_raw(tmp_path / "raw", *drawn())


def rows(folder: Path) -> list[tuple]:
    table = load_folder(folder, "").interactions
    return list(table.itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "selection",
    [
        Selection(user_fraction=1.0),
        Selection(core=3, user_fraction=0.6, seed=1),
        Selection(core=2, user_fraction=1.0, min_rating=4.0, require_title=False),
        Selection(core=3, since=dt.date(1970, 2, 1), until=dt.date(1970, 6, 1)),
        Selection(core=1, user_fraction=0.3),
    ],
)
def test_equals_plain_python(tmp_path, selection):
    reviews, metas = drawn()
    dataset = prepared(tmp_path, reviews, metas, selection)
    expected = plain(reviews, metas, selection)
    assert 10 < len(expected) < len(reviews)
    assert rows(tmp_path / "out") == expected
    assert dataset.items["item_id"].tolist() == sorted({item for _, item, _ in expected})


def test_titles_have_single_spaces_and_blank_ones_null(tmp_path):
    metas = [meta("B1", " Red  yarn\t", []), meta("B2", "  ", []), meta("B3", None, [])]
    reviews = [review("U1", f"B{item}", item) for item in (1, 2, 3, 4)]
    items = prepared(tmp_path, reviews, metas, Selection(core=1, require_title=False)).items
    assert items["title"].tolist() == ["Red yarn", None, None]  # B4 has no metadata


def test_compressed_files_in_the_publishers_folders(tmp_path, shelf):
    flat = write_raw(tmp_path / "gz", *drawn(), ".jsonl.gz")
    for name, folder in ((CATEGORY, "review_categories"), (f"meta_{CATEGORY}", "meta_categories")):
        (flat / "raw" / folder).mkdir(parents=True)
        (flat / f"{name}.jsonl.gz").rename(flat / "raw" / folder / f"{name}.jsonl.gz")
    prepare_amazon2023(shelf, CATEGORY, tmp_path / "a", Selection())
    prepare_amazon2023(flat, CATEGORY, tmp_path / "b", Selection())
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_categories_of_the_paper_have_its_subsample(tmp_path, shelf):
    prepare_amazon2023(shelf, "arts", tmp_path / "paper", Selection(core=2))
    prepare_amazon2023(shelf, CATEGORY, tmp_path / "own", Selection(core=2, user_fraction=0.4))
    assert rows(tmp_path / "paper") == rows(tmp_path / "own")
    prepare_amazon2023(shelf, "arts", tmp_path / "all", Selection(core=2, user_fraction=1.0))
    assert len(rows(tmp_path / "all")) > len(rows(tmp_path / "own"))


def test_image_addresses(tmp_path, web):
    names = ("main", "hi", "thumb", "first")
    web.files = {f"/{name}.jpg": jpeg(number) for number, name in enumerate(names)}
    at = web.address
    images = {
        "B1": [picture(f"{at}/first.jpg", "PT01"), picture(f"{at}/main.jpg")],
        "B2": [picture(f"{at}/hi.jpg", size="hi_res")],
        "B3": [picture(f"{at}/thumb.jpg", size="thumb")],
        "B4": [picture(f"{at}/first.jpg", "PT01"), picture(f"{at}/main.jpg", "PT02")],
        "B5": [],
        "B6": [picture(f"{at}/gone.jpg")],
    }
    metas = [meta(item, item, pictures) for item, pictures in images.items()]
    reviews = [review("U", item, 1) for item in images]
    dataset = prepared(tmp_path, reviews, metas, Selection(core=1), limits=Limits(first_pause=0.01))
    table = dataset.items.set_index("item_id")["image"]
    assert table["B5"] is None
    assert table["B6"] is None
    for item, name in zip(("B1", "B2", "B3", "B4"), names, strict=True):
        assert (tmp_path / "out" / table[item]).read_bytes() == web.files[f"/{name}.jpg"]
    failed = (tmp_path / "out" / "images_failed.csv").read_text().splitlines()
    assert failed == ["item_id,image,reason,passing", f"B6,{at}/gone.jpg,status 404,no"]


def test_require_image_keeps_items_with_an_address(tmp_path):
    metas = [meta("B1", "Lamp", [picture("http://x/1.jpg")]), meta("B2", "Chair", [])]
    reviews = [review("U", item, 1) for item in ("B1", "B2")]
    selection = Selection(core=1, require_image=True)
    dataset = prepared(tmp_path, reviews, metas, selection, images=False)
    assert dataset.items.values.tolist() == [["B1", "Lamp", None]]


def test_same_command_does_nothing_and_another_is_refused(tmp_path, shelf):
    out = tmp_path / "out"
    prepare_amazon2023(shelf, CATEGORY, out, Selection())
    before = (out / "items.parquet").stat().st_mtime_ns
    prepare_amazon2023(shelf, CATEGORY, out, Selection())
    assert (out / "items.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"^`out` must be a new folder or one of the same options"):
        prepare_amazon2023(shelf, CATEGORY, out, Selection(core=3))
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match=r"^`out` must be a new folder, but"):
        prepare_amazon2023(shelf, CATEGORY, tmp_path / "full", Selection())


@pytest.mark.parametrize(
    ("category", "selection", "message"),
    [
        ("Nothing", Selection(), "`raw` must be a folder with Nothing.jsonl or Nothing.jsonl.gz"),
        ("../up", Selection(), "`category` must be a plain file name, but is '../up'"),
        (CATEGORY, Selection(core=0), "`core` must be a whole number of at least 1, but is 0"),
        (CATEGORY, Selection(user_fraction=0.0), "`user_fraction` must be above 0 and at most 1"),
        (
            CATEGORY,
            Selection(since=dt.date(2020, 1, 2), until=dt.date(2020, 1, 1)),
            "`since` must be before `until` (2020-01-01), but is 2020-01-02",
        ),
        (CATEGORY, Selection(core=1000), "`category` must have interactions that pass the filters"),
    ],
)
def test_bad_options(tmp_path, shelf, category, selection, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        prepare_amazon2023(shelf, category, tmp_path / "out", selection)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_truncated_file_is_named(tmp_path, ending):
    raw = write_raw(tmp_path / "raw", *drawn(), ending)
    file = raw / f"{CATEGORY}{ending}"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"^`raw` must have readable files, but .*{CATEGORY}"):
        prepare_amazon2023(raw, CATEGORY, tmp_path / "out", Selection())


def test_item_id_that_is_a_path_is_refused(tmp_path, web):
    item = "../../escaped"
    metas = [meta(item, "Trap", [picture(f"{web.address}/a.jpg")])]
    with pytest.raises(InputError, match=r"must be a plain file name, but is '\.\./\.\./escaped'"):
        prepared(tmp_path, [review("U", item, 1)], metas, Selection(core=1))
    assert not web.requests


@pytest.mark.realdata
def test_table_1_is_the_papers(shared_data):
    table = pd.read_csv(shared_data.parent / "paper" / "table1.csv").set_index("dataset")
    assert set(table.index) == set(PAPER_DATASETS)
    for name, row in PAPER_DATASETS.items():
        expected = table.loc[name]
        assert (row.title, row.users, row.items) == tuple(expected[["title", "users", "items"]])
        assert row.average_length == expected["avg_sequence_length"]
        assert row.density == expected["density"]
        fraction = expected["user_subsample"]
        assert row.user_fraction == (1.0 if np.isnan(fraction) else fraction)


QUICK = Limits(attempts=1, first_pause=0.01, timeout=5)


def shop_of(web, folder: Path, names: tuple[str, ...]) -> Path:
    """Raw files of one user with items that have images of these names."""
    metas = [meta(name, name, [picture(f"{web.address}/{name}.jpg")]) for name in names]
    return write_raw(folder, [review("U", name, 1) for name in names], metas)


def test_same_command_retries_passing_failures(tmp_path, web):
    names = ("down", "good", "gone", "page", "slow")
    raw, out = shop_of(web, tmp_path / "raw", names), tmp_path / "out"
    web.files = {f"/{name}.jpg": jpeg(1) for name in ("down", "good", "slow")}
    web.files["/page.jpg"] = b"<html>"
    web.statuses = {"/down.jpg": [503], "/slow.jpg": [503, 503]}

    def images() -> dict[str, bool]:
        prepare_amazon2023(raw, CATEGORY, out, Selection(core=1), limits=QUICK)
        items = load_folder(out, "").items
        return dict(zip(items.item_id, items.image.notna(), strict=True))

    assert images() == dict.fromkeys(names, False) | {"good": True}
    web.requests.clear()
    assert images() == dict.fromkeys(names, False) | {"good": True, "down": True}
    assert web.requests == {"/down.jpg": 1, "/slow.jpg": 1}
    assert images()["slow"]
    web.requests.clear()
    images()
    assert web.requests == {}  # what failed for good is not asked for again
    lines = (out / "images_failed.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["item_id", "gone", "page"]
    assert not (out / "scratch").exists()
    assert (out / "images" / "down.jpg").read_bytes() == jpeg(1)


def test_again_false_keeps_a_prepared_folder(tmp_path, web):
    raw, out = shop_of(web, tmp_path / "raw", ("a",)), tmp_path / "out"
    web.statuses = {"/a.jpg": [503]}
    web.files = {"/a.jpg": jpeg(1)}
    prepare_amazon2023(raw, CATEGORY, out, Selection(core=1), limits=QUICK)
    prepare_amazon2023(raw, CATEGORY, out, Selection(core=1), limits=QUICK, again=False)
    assert web.requests == {"/a.jpg": 1}


def renamed(rows: list[dict], **names: str) -> list[dict]:
    return [{names.get(field, field): value for field, value in row.items()} for row in rows]


REVIEWS = [review(f"U{user}", f"B{item}", item) for user in range(8) for item in range(6)]
METAS = [meta(f"B{item}", f"lamp {item}", []) for item in range(6)]


@pytest.mark.parametrize(
    ("reviews", "metas", "message"),
    [
        (
            renamed(REVIEWS, user_id="reviewerID", timestamp="unixReviewTime"),
            METAS,
            f"file {CATEGORY}.jsonl must have lines of Amazon Reviews 2023 with the field "
            "`user_id`, but has rating, text, .* as in the release of 2018",
        ),
        (REVIEWS, renamed(METAS, parent_asin="asin"), "meta_.* with the field `parent_asin`, but"),
        (renamed(REVIEWS, timestamp="time"), METAS, "with the field `timestamp`, but has"),
        (
            REVIEWS,
            [{**row, "parent_asin": f"X{row['parent_asin']}"} for row in METAS],
            f"^meta_{CATEGORY}.jsonl must have the metadata of {CATEGORY}.jsonl, but none",
        ),
        ([], METAS, "`user_id`, but has no lines"),
        (REVIEWS, [METAS], "but line 1 is no JSON object"),
    ],
)
def test_files_of_another_release_or_category_are_refused(tmp_path, reviews, metas, message):
    raw = write_raw(tmp_path / "raw", reviews, metas)
    with pytest.raises(InputError, match=message) as error:
        prepare_amazon2023(raw, CATEGORY, tmp_path / "new" / "out", Selection(), images=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", ["r[1]*w?", "timestamp=3", "%41 #;'", "~"])
def test_folder_name_is_no_pattern_or_partition(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_raw(Path("r1xwx"), REVIEWS[:30], METAS)
    write_raw(Path(name), REVIEWS, METAS)
    prepare_amazon2023(Path(name), CATEGORY, Path(name, "out"), Selection(), images=False)
    dataset = load_folder(Path(name, "out"), "")
    assert dataset.interactions.user_id.nunique() == 8
    assert sorted(dataset.interactions.timestamp.unique()) == list(range(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["r1xwx", name])
