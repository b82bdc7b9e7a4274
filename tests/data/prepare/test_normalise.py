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
from tests.small_shop import write_small_shop

NONE = Repairs(0, 0, 0, 0, 0, 0)


def test_good_folder_is_unchanged(tmp_path):
    source = write_small_shop(tmp_path / "in")
    assert prepare_parquet(source, tmp_path / "out") == NONE
    before, after = load_folder(source, ""), load_folder(tmp_path / "out", "")
    assert before.fingerprint == after.fingerprint
    assert prepare_parquet(source, tmp_path / "out") == NONE  # and again, from the file


def test_faults_are_repaired_and_counted(write_folder, tmp_path):
    source = write_folder(
        {
            "user_id": ["u", "u", None, "u", "v", "v", "u", "w"],
            "item_id": ["a", "a", "a", None, "b", "zz", "c", "b"],
            "timestamp": pd.array([5, 5, 1, 1, 2, 3, 4, None], dtype="Int64"),
        },
        {
            "item_id": ["a", "b", "b", None, "c", "d", "e"],
            "title": ["  Ant\thill ", "\u00a0 ", "Bee again", "?", None, "Dot", ""],
            "image": [
                "images/a.png",
                "./images/a.png",
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
    assert dataset.interactions.values.tolist() == [
        ["u", "a", 5],
        ["u", "a", 5],
        ["v", "b", 2],
        ["u", "c", 4],
    ]
    assert dataset.items.values.tolist() == [
        ["a", "Ant hill", "images/a.png"],
        ["b", None, "./images/a.png"],
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
        "1 repeat of an item by a user",
        "1 tie in a user's times",
        "1 user with fewer than 3 interactions",
        "3 items without title",
        "3 items without image",
    ]


def test_times_keep_the_unit_of_the_file(write_folder, tmp_path):
    times = pd.to_datetime(["2020-01-01T00:00:00.5", "1969-12-31", None], format="ISO8601")
    source = write_folder({"timestamp": times}, {"title": None, "image": None})
    assert prepare_parquet(source, tmp_path / "out").incomplete_interactions == 1
    dataset = load_folder(tmp_path / "out", "")
    assert dataset.interactions["timestamp"].tolist() == [1_577_836_800_500_000, -86_400_000_000]
    assert dataset.items.values.tolist() == [["a", None, None], ["b", None, None]]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("images/link.jpg", ", but 'images/link.jpg' is a link that leaves it"),
        ("prepare.json", " with other names than 'prepare.json'"),
        ("scratch/a.jpg", " with other names than 'scratch/a.jpg'"),
    ],
)
def test_image_path_outside_the_folder_is_refused(write_folder, tmp_path, image, reason):
    source = write_folder(items={"image": [None, image]})
    (tmp_path / "outside.jpg").write_bytes(jpeg(1))
    (source / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    rule = "items.parquet column `image` must name files inside the folder"
    with pytest.raises(InputError, match=f"^{re.escape(rule + reason)}$"):
        prepare_parquet(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        ({"timestamp": None}, {}, "must have one column `timestamp`, but its"),
        ({"user_id": [1.5, 2, 3]}, {}, "`user_id` must have texts or whole numbers, but row 0 has"),
        ({}, {"title": [3, 4]}, "items.parquet column `title` must have texts"),
        ({}, {"item_id": ["y", "z"]}, "the folder must have interactions with its items, but of 3"),
    ],
)
def test_other_faults_are_refused(write_folder, tmp_path, interactions, items, message):
    source = write_folder(interactions, items)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        prepare_parquet(source, tmp_path / "new" / "deep" / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^the data must be a folder, but"):
        prepare_parquet(tmp_path / "none", tmp_path / "out")


@pytest.mark.parametrize("name", ["i[n]*?", "title=short", "s3:"])
def test_folder_name_is_no_pattern_or_partition(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = write_small_shop(Path(name), items=3)
    write_small_shop(Path("inxx"), items=4)
    assert prepare_parquet(source, Path(name, "out")) == NONE
    before, after = load_folder(source, ""), load_folder(Path(name, "out"), "")
    assert before.fingerprint == after.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["inxx", name])


@pytest.mark.parametrize("change", ["other bytes", "missing", "found", "table"])
def test_changed_source_needs_another_folder(write_folder, tmp_path, change):
    """Also one of the same size, written at the same time."""
    source = write_folder()
    image, table, away = source / "images" / "a.png", source / "items.parquet", source / "away"
    times = {file: file.stat() for file in (image, table)}
    if change == "found":
        image.rename(away)
    prepare_parquet(source, tmp_path / "out")
    match change:
        case "table":
            pd.read_parquet(table).assign(title=["Any", None]).to_parquet(table)
        case "other bytes":
            image.write_bytes(image.read_bytes()[:-1] + b"x")
        case "missing":
            image.unlink()
        case "found":
            away.rename(image)
    for file, stat in times.items():
        if file.exists():
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match=r"was made from others; remove it or choose another$"):
        prepare_parquet(source, tmp_path / "out")
