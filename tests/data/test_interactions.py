"""load_folder: what it accepts, and the line it gives for everything it rejects."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from perpeft_ray.config import DataSettings
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.errors import InputError

URI = "parquet:shop"


def rejected(folder):
    with pytest.raises(InputError) as caught:
        load_folder(folder, URI)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("`parquet:shop` ")
    return message.removeprefix("`parquet:shop` ")


def test_keeps_file_order_and_other_columns_are_ignored(write_folder):
    folder = write_folder(
        {
            "user_id": ["z", "a", "z"],
            "item_id": ["b", "a", "b"],
            "timestamp": [3, 1, 3],
            "rating": [5.0, 4.0, 3.0],
        },
        {
            "brand": ["x", "y"],
            "item_id": ["b", "a"],
            "title": ["", None],
            "image": [None, "images/a.png"],
        },
    )
    dataset = load_folder(folder, URI)
    assert dataset.uri == URI
    assert dataset.root == folder
    assert dataset.interactions.to_dict("list") == {
        "user_id": ["z", "a", "z"],
        "item_id": ["b", "a", "b"],
        "timestamp": [3, 1, 3],
    }
    assert dataset.interactions["timestamp"].dtype == "int64"
    assert dataset.items.to_dict("list") == {
        "item_id": ["b", "a"],
        "title": ["", None],
        "image": [None, "images/a.png"],
    }


def test_fingerprints_follow_contents(write_folder):
    base = load_folder(write_folder(), URI)
    assert load_folder(write_folder(), "parquet:other").fingerprint == base.fingerprint

    order = load_folder(write_folder({"item_id": ["b", "a", "a"]}), URI)
    assert order.fingerprint != base.fingerprint
    assert order.items_fingerprint == base.items_fingerprint

    seen = {base.items_fingerprint}
    for items in (
        {"title": ["Ant", ""]},  # an empty title is not a missing one
        {"title": [None, "Ant"]},
        {"item_id": ["b", "a"]},
        {"image": ["images/a.png", "images/a.png"]},
    ):
        changed = load_folder(write_folder(items=items), URI)
        assert changed.fingerprint != base.fingerprint
        assert changed.items_fingerprint not in seen
        seen.add(changed.items_fingerprint)

    folder = write_folder()
    (folder / "images" / "a.png").write_bytes(b"other")
    assert load_folder(folder, URI).items_fingerprint not in seen


def test_missing_folder(tmp_path):
    missing = tmp_path / "no"
    assert rejected(missing) == f"must name a folder, but {str(missing)!r} is not one"


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet"])
def test_missing_file(write_folder, name):
    folder = write_folder()
    (folder / name).unlink()
    assert rejected(folder) == f"must have the file {name}, but {str(folder / name)!r} is missing"


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        (
            {},
            {"image": None},
            "items.parquet must have one column `image`, but its columns are item_id, title",
        ),
        (
            {},
            {"item_id": ["a", "a"]},
            "items.parquet column `item_id` must not repeat a value, but 'a' occurs 2 times",
        ),
        (
            {"item_id": ["a", "c", "d"]},
            {},
            "interactions.parquet column `item_id` must name items of items.parquet, "
            "but has others in 2 rows (the first is 'c')",
        ),
    ],
)
def test_bad_table(write_folder, interactions, items, message):
    assert rejected(write_folder(interactions, items)) == message


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet"])
def test_empty_table(write_folder, name):
    folder = write_folder()
    pd.read_parquet(folder / name)[:0].to_parquet(folder / name)
    assert rejected(folder) == f"{name} must have at least one row, but is empty"


IMAGE_RULE = "items.parquet column `image` must name files inside the folder, but "


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/etc/hostname", "'/etc/hostname' is absolute"),
        ("../outside.png", "'../outside.png' goes up with '..'"),
        ("images/none.png", "'images/none.png' is no file"),
        ("", "'' is no file"),
        ("images/a.png\0", r"'images/a.png\x00' is no file"),
        ("two\nlines", r"'two\nlines' is no file"),
    ],
)
def test_bad_image_path(write_folder, tmp_path, image, reason):
    (tmp_path / "outside.png").write_bytes(b"x")
    assert rejected(write_folder(items={"image": [None, image]})) == IMAGE_RULE + reason


def test_links_may_stay_inside_but_not_leave(write_folder, tmp_path):
    folder = write_folder(items={"image": ["images/a.png", "images/link.png"]})
    link = folder / "images" / "link.png"
    link.symlink_to("a.png")
    load_folder(folder, URI)

    # A sibling whose name only starts like the folder's is outside.
    outside = tmp_path / "shop-outside"
    outside.mkdir()
    shutil.copy(folder / "images" / "a.png", outside)
    link.unlink()
    link.symlink_to(outside / "a.png")
    assert rejected(folder) == IMAGE_RULE + "'images/link.png' is a link that leaves it"

    link.unlink()
    (folder / "images" / "far").symlink_to(outside)
    folder = write_folder(items={"image": [None, "images/far/a.png"]})
    assert rejected(folder) == IMAGE_RULE + "'images/far/a.png' is a link that leaves it"


def test_the_folder_itself_may_be_a_link(write_folder, tmp_path):
    (tmp_path / "link").symlink_to(write_folder())
    assert len(load_folder(tmp_path / "link", URI).items) == 2


def many_users(write_folder):
    """Users u1 to u9; user un has n interactions, at items i1 to in. Item i0 is nobody's."""
    rows = [(f"u{n}", f"i{k}", k) for k in range(1, 10) for n in range(9, k - 1, -1)]
    users, items, times = map(list, zip(*rows, strict=True))
    names = [f"i{k}" for k in range(10)]
    return write_folder(
        {"user_id": users, "item_id": items, "timestamp": times},
        {"item_id": names, "title": names, "image": [None] * 8 + ["images/a.png", None]},
    )


def test_users_with_few_interactions_are_left_out_with_their_items(write_folder):
    folder = many_users(write_folder)
    whole = load_folder(folder, URI)
    long = load_folder(folder, URI, DataSettings(min_interactions=8))
    # u9 and u8 in file order, which breaks ties; i0 is nobody's.
    assert long.interactions["user_id"].tolist() == ["u9", "u8"] * 8 + ["u9"]
    assert long.interactions["timestamp"].tolist() == sorted([*range(1, 10), *range(1, 9)])
    assert long.items["item_id"].tolist() == [f"i{k}" for k in range(1, 10)]
    assert load_folder(folder, URI, DataSettings(min_interactions=1)).fingerprint == (
        whole.fingerprint
    )
    hashes = ("fingerprint", "items_fingerprint", "tables_fingerprint")
    assert all(getattr(long, name) != getattr(whole, name) for name in hashes)


def test_sample_of_users_depends_on_the_seed(write_folder):
    folder = many_users(write_folder)
    whole = load_folder(folder, URI).interactions
    draws = set()
    for seed in range(5):
        data = DataSettings(sample_users=3, sample_seed=seed, min_interactions=2)
        sample = load_folder(folder, URI, data)
        users = set(sample.interactions["user_id"])
        draws.add(frozenset(users))
        assert len(users) == 3
        assert "u1" not in users  # it has one interaction
        expected = whole[whole["user_id"].isin(users)].reset_index(drop=True)
        assert sample.interactions.equals(expected)
        assert set(sample.items["item_id"]) == set(expected["item_id"])
        assert load_folder(folder, URI, data).fingerprint == sample.fingerprint
    assert len(draws) > 1


def test_sample_of_a_sample_is_that_sample(write_folder, tmp_path):
    """A packed study has the whole tables, but only images of the sample."""
    folder = many_users(write_folder)
    data = DataSettings(sample_users=2, sample_seed=3)
    sample = load_folder(folder, URI, data)
    sample.interactions.to_parquet(folder / "interactions.parquet")
    assert load_folder(folder, URI, data).fingerprint == sample.fingerprint


def test_images_of_left_out_items_may_be_missing(write_folder):
    folder = many_users(write_folder)
    (folder / "images" / "a.png").unlink()
    assert "'images/a.png' is no file" in rejected(folder)
    data = DataSettings(sample_users=1, sample_seed=4)
    sample = load_folder(folder, URI, data)
    assert "i8" not in set(sample.items["item_id"])


def test_min_interactions_above_the_longest_history(write_folder):
    with pytest.raises(InputError) as caught:
        load_folder(many_users(write_folder), URI, DataSettings(min_interactions=10))
    assert str(caught.value) == (
        "`data.min_interactions` must leave a user of `parquet:shop`, but is 10 and the longest "
        "history has 9"
    )
