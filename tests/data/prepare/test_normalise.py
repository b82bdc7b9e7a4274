"""prepare_parquet: every fault is repaired or refused, and counted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.normalise import Repairs, prepare_parquet
from perpeft_ray.data.prepare.report import findings, report_on
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg
from tests.data.test_interactions import TIMES

NONE = Repairs(0, 0, 0, 0, 0, 0)


def write(folder: Path, interactions: dict | None = None, items: dict | None = None) -> Path:
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate("ab"):
        (folder / "images" / f"{name}.jpg").write_bytes(jpeg(number))
    pd.DataFrame(
        interactions or {"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": [3, 1, 2]}
    ).to_parquet(folder / "interactions.parquet")
    pd.DataFrame(
        items
        or {
            "item_id": ["a", "b"],
            "title": ["Ant", "Bee"],
            "image": ["images/a.jpg", "images/b.jpg"],
        }
    ).to_parquet(folder / "items.parquet")
    return folder


def test_a_good_folder_stays_as_it_is(tmp_path):
    source = write(tmp_path / "in")
    assert prepare_parquet(source, tmp_path / "out") == NONE
    before, after = load_folder(source, ""), load_folder(tmp_path / "out", "")
    assert before.fingerprint == after.fingerprint
    assert prepare_parquet(source, tmp_path / "out") == NONE  # and again, from the file


@pytest.mark.realdata
def test_real_folders_stay_as_they_are(tmp_path, shared_data):
    source = shared_data / "movielens_posters_small"
    assert prepare_parquet(source, tmp_path / "out") == NONE
    assert load_folder(source, "").fingerprint == load_folder(tmp_path / "out", "").fingerprint


def test_faults_are_repaired_and_counted(tmp_path):
    source = write(
        tmp_path / "in",
        {
            "user_id": ["u", "u", None, "u", "v", "v", "u", "w"],
            "item_id": ["a", "a", "a", None, "b", "zz", "c", "b"],
            "timestamp": pd.array([5, 5, 1, 1, 2, 3, 4, None], dtype="Int64"),
        },
        {
            "item_id": ["a", "b", "b", None, "c", "d", "e"],
            "title": ["  Ant\thill ", "\u00a0 ", "Bee again", "?", None, "Dot", ""],
            "image": [
                "images/a.jpg",
                "./images/a.jpg",
                "images/b.jpg",
                None,
                "images/none.jpg",
                "images/broken.jpg",
                " ",
            ],
        },
    )
    (source / "images" / "broken.jpg").write_bytes(jpeg(3)[:50])
    out = tmp_path / "out"
    assert prepare_parquet(source, out) == Repairs(
        incomplete_interactions=3,
        unknown_items=1,
        incomplete_items=1,
        duplicate_items=1,
        blank_titles=2,
        failed_images=2,
    )
    dataset = load_folder(out, "")
    assert list(dataset.interactions.itertuples(index=False, name=None)) == [
        ("u", "a", 5),
        ("u", "a", 5),
        ("v", "b", 2),
        ("u", "c", 4),
    ]
    assert dataset.items.values.tolist() == [
        ["a", "Ant hill", "images/a.jpg"],
        ["b", None, "./images/a.jpg"],
        ["c", None, None],
        ["d", "Dot", None],
        ["e", None, None],
    ]
    assert pd.read_csv(out / "images_failed.csv")[["item_id", "reason"]].values.tolist() == [
        ["c", "missing"],
        ["d", "not a readable image"],
    ]
    assert findings(report_on(out)) == [
        "4 interactions of 2 users with 5 items",
        "1 repeats of an item by a user",
        "1 ties in a user's times",
        "1 users with fewer than 3 interactions",
        "3 items without title",
        "3 items without image",
    ]


def test_numbers_and_clock_times(tmp_path):
    times = pd.to_datetime(["2020-01-01T00:00:00.5", "1969-12-31", "2020-01-01"], format="ISO8601")
    expected = [1_577_836_800_500_000, -86_400_000_000, 1_577_836_800_000_000]  # as in the file: µs
    source = write(
        tmp_path / "in",
        {"user_id": [7, 7, 8], "item_id": [1, 2, 2], "timestamp": times},
        {"item_id": pd.array([1, 2], dtype="uint32")},
    )
    assert prepare_parquet(source, tmp_path / "out") == NONE
    dataset = load_folder(tmp_path / "out", "")
    assert dataset.interactions["timestamp"].tolist() == expected
    assert dataset.interactions["user_id"].tolist() == ["7", "7", "8"]
    assert dataset.items.values.tolist() == [["1", None, None], ["2", None, None]]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/etc/hostname", "but '/etc/hostname' is absolute"),
        ("../outside.jpg", "but '../outside.jpg' goes up with '..'"),
        ("images/link.jpg", "but 'images/link.jpg' is a link that leaves it"),
        ("prepare.json", "with other names than 'prepare.json'"),
        ("scratch/a.jpg", "with other names than 'scratch/a.jpg'"),
    ],
)
def test_an_image_path_that_leaves_the_folder_is_refused(tmp_path, image, reason):
    source = write(tmp_path / "in", items={"item_id": ["a", "b"], "image": [None, image]})
    (tmp_path / "outside.jpg").write_bytes(jpeg(1))
    (source / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    rule = "items.parquet column `image` must name files inside the folder"
    with pytest.raises(InputError, match=f"^{re.escape(rule)},? {re.escape(reason)}$"):
        prepare_parquet(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        ({"user_id": ["u"], "item_id": ["a"]}, None, "must have one column `timestamp`, but its"),
        (
            {"user_id": [1.5], "item_id": ["a"], "timestamp": [1]},
            None,
            "column `user_id` must have texts or whole numbers, but row 0 has '1.5'",
        ),
        (
            {"user_id": ["u"], "item_id": ["a"], "timestamp": ["noon"]},
            None,
            f"column `timestamp` {TIMES}, but row 0 has 'noon'",
        ),
        (
            {"user_id": ["u"], "item_id": ["a"], "timestamp": [2**64 - 1]},
            None,
            f"column `timestamp` {TIMES}, but row 0 has '18446744073709551615'",
        ),
        (None, {"item_id": ["a"], "title": [3]}, "items.parquet column `title` must have texts"),
        (None, {"item_id": ["z"]}, "the folder must have interactions with its items, but of 3"),
    ],
)
def test_what_cannot_be_repaired(tmp_path, interactions, items, message):
    source = write(tmp_path / "in", interactions, items)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        prepare_parquet(source, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_missing_and_broken_tables(tmp_path):
    with pytest.raises(InputError, match=r"^the data must be a folder, but"):
        prepare_parquet(tmp_path / "none", tmp_path / "out")
    source = write(tmp_path / "in")
    table = (source / "items.parquet").read_bytes()
    (source / "items.parquet").write_bytes(table[:-20])
    with pytest.raises(
        InputError, match=r"^the folder items\.parquet must be a readable table, but "
    ):
        prepare_parquet(source, tmp_path / "out")
    (source / "items.parquet").unlink()
    with pytest.raises(InputError, match=r"^the folder must have the file items\.parquet, but"):
        prepare_parquet(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["i[n]*?", "title=short", "s3:"])
def test_a_folder_name_is_no_pattern_or_partition(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = write(Path(name))
    other = {"user_id": ["x"] * 3, "item_id": ["a"] * 3, "timestamp": [1, 2, 3]}
    write(Path("inxx"), other)
    assert prepare_parquet(source, Path(name, "out")) == NONE
    before, after = load_folder(source, ""), load_folder(Path(name, "out"), "")
    assert before.fingerprint == after.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["inxx", name])


def test_floats_with_missing_values_are_ids_and_times(tmp_path):
    source = write(
        tmp_path / "in",
        {
            "user_id": [7.0, None, 8.0, 8.0],
            "item_id": [1.0, 1.0, None, 2.0],
            "timestamp": [1.6e9, 1.0, 2.0, float("nan")],
        },
        {"item_id": [1.0, 2.0, None], "title": ["Ant", None, "x"]},
    )
    repairs = prepare_parquet(source, tmp_path / "out")
    assert (repairs.incomplete_interactions, repairs.incomplete_items) == (3, 1)
    rows = load_folder(tmp_path / "out", "").interactions.values.tolist()
    assert rows == [["7", "1", 1_600_000_000]]


@pytest.mark.parametrize("change", ["other bytes", "missing", "found", "table"])
def test_other_bytes_make_another_folder(tmp_path, change):
    """Also of the same size, written at the same time."""
    source = write(tmp_path / "in")
    image, table = source / "images" / "a.jpg", source / "items.parquet"
    if change == "found":
        image.rename(source / "away")
    prepare_parquet(source, tmp_path / "out")
    for file in (image, table):
        stat = file.stat() if file.exists() else None
        if file == table and change == "table":
            frame = pd.read_parquet(table)
            frame.loc[0, "title"] = "Any"
            frame.to_parquet(table)
        elif file == image and change == "other bytes":
            image.write_bytes(image.read_bytes()[:-1] + b"x")
        elif file == image and change == "missing":
            image.unlink()
        elif file == image and change == "found":
            (source / "away").rename(image)
        if stat and file.exists():
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    expected = r"was made from others; remove it or choose another$"
    with pytest.raises(InputError, match=expected):
        prepare_parquet(source, tmp_path / "out")


def test_bad_input_leaves_nothing(tmp_path):
    source = write(tmp_path / "in", items={"item_id": ["z"]})
    for out in (tmp_path / "out", tmp_path / "new" / "deep" / "out"):
        with pytest.raises(InputError, match="must have interactions with its items"):
            prepare_parquet(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
