"""The toyshop against its description: tables, pixels and preferences, recomputed from titles."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perpeft_ray.data import toyshop
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.toyshop_items import (
    ASPECTS,
    IMAGE_SIZE,
    draw_item,
    draw_items,
    write_title,
)

IN_IMAGE = {"department", "kind", "colour", "pattern", "border"}
IN_TITLE = {"department", "kind", "colour", "brand", "material", "style"}


@pytest.fixture(scope="module")
def shop():
    return toyshop.plant(7)


@pytest.fixture(scope="module")
def folder(shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("toyshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toyshop, "plant", lambda seed: shop)  # once is enough
        toyshop.write_toyshop(path, 7)
    return path


@pytest.fixture(scope="module")
def steps(folder):
    """Every two consecutive interactions of a user: title words before and after, and the group."""
    interactions = pd.read_parquet(folder / "interactions.parquet")
    items = pd.read_parquet(folder / "items.parquet").set_index("item_id")
    words = pd.DataFrame(
        {
            aspect: [
                next(w for w in title.split() if w in ASPECTS[aspect]) for title in items.title
            ]
            for aspect in IN_TITLE
        },
        index=items.index,
    )
    table = interactions.sort_values(["user_id", "timestamp"], kind="stable")
    table = table.join(words, on="item_id").merge(toyshop.planted_groups(folder), on="user_id")
    before = table.groupby("user_id")[sorted(IN_TITLE)].shift()
    return table.join(before.add_suffix("_before")).dropna(ignore_index=True)


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(toyshop, "USERS", 30)
    monkeypatch.setattr(toyshop, "ITEMS", 40)


def test_seed_determines_every_byte(small, tmp_path):
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        (tmp_path / name).mkdir()
        toyshop.write_toyshop(tmp_path / name, seed)
    assert contents(tmp_path / "again") == contents(tmp_path / "one")
    assert contents(tmp_path / "other") != contents(tmp_path / "one")


def test_folder_is_a_dataset(folder):
    dataset = load_folder(folder, "toyshop:7")
    items, planted = dataset.items, toyshop.planted_groups(folder)
    assert len(items) == toyshop.ITEMS
    assert sorted(planted.user_id) == sorted(dataset.interactions.user_id.unique())
    assert set(planted.group) == set(range(len(toyshop.GROUPS)))
    assert items.title.str.split().str.len().between(7, 8).all()
    with Image.open(folder / items.image[0]) as image:
        assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))


def test_sequences_are_short_ordered_and_without_repeats(folder):
    interactions = pd.read_parquet(folder / "interactions.parquet")
    assert interactions.timestamp.is_monotonic_increasing
    by_user = interactions.groupby("user_id")
    assert set(by_user.size()) == set(range(5, 11))
    assert not interactions.duplicated(["user_id", "item_id"]).any()
    assert not interactions.duplicated(["user_id", "timestamp"]).any()


def test_groups_mostly_stay_in_their_home_department(steps):
    home = steps.group.map(lambda group: toyshop.GROUPS[group][0])
    assert (steps.department == home).groupby(steps.group).mean().min() > 0.5  # chance is 1/6


@pytest.mark.parametrize(
    ("group", "aspect"),
    [(group, own) for group, (_, own) in enumerate(toyshop.GROUPS) if own in IN_TITLE],
)
def test_members_alone_repeat_the_word_of_their_own_aspect(steps, group, aspect):
    kept = steps[aspect] == steps[f"{aspect}_before"]
    assert kept[steps.group == group].mean() > 0.5
    assert kept[steps.group != group].mean() < 0.3  # chance is 1/8 or 1/6


@pytest.fixture(scope="module")
def times(shop):
    """When every interaction was, in years since the start."""
    return (shop.timestamp - 1_600_000_000) / (365 * 86_400)


def test_all_groups_repeat_the_common_aspect(shop):
    pattern = shop.items[shop.item, list(ASPECTS).index("pattern")]
    same_user = shop.user[1:] == shop.user[:-1]
    kept = (pattern[1:] == pattern[:-1])[same_user]
    of_group = [kept[(shop.group[shop.user[1:]] == g)[same_user]].mean() for g in range(6)]
    assert min(of_group) > 0.35  # chance is 1/6


def test_items_follow_their_release_and_new_ones_are_taken_most(shop, times):
    age = times - shop.released[shop.item]
    assert age.min() >= 0
    there = np.subtract.outer(times[:500], shop.released)  # [interactions, I]
    new = ((there >= 0) & (there <= toyshop.NEWNESS)).sum(axis=1) / (there >= 0).sum(axis=1)
    assert (age[:500] <= toyshop.NEWNESS).mean() > 2 * new.mean()


def test_times_are_uniform_over_the_year(times):
    assert times.min() >= 0
    assert times.max() < 1
    np.testing.assert_allclose(np.quantile(times, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_image_and_title_show_their_aspects(aspect):
    """Items that differ in one aspect only, drawn and titled from the same random numbers."""
    column = list(ASPECTS).index(aspect)
    items = np.zeros((len(ASPECTS[aspect]), len(ASPECTS)), dtype=np.int64)
    items[:, column] = np.arange(len(items))
    pictures = {draw_item(np.random.default_rng(5), item).tobytes() for item in items}
    titles = {write_title(np.random.default_rng(5), item) for item in items}
    assert len(pictures) == (len(items) if aspect in IN_IMAGE else 1)
    assert len(titles) == (len(items) if aspect in IN_TITLE else 1)


def test_halves_are_disjoint_and_uniform():
    rng = np.random.default_rng(0)
    catalogue, other = (draw_items(rng, 20_000, half) for half in ("catalogue", "pretraining"))
    assert set(catalogue.sum(axis=1) % 2) == {0}
    assert set(other.sum(axis=1) % 2) == {1}
    for drawn in (catalogue, other):
        for column, values in enumerate(ASPECTS.values()):
            shares = np.bincount(drawn[:, column], minlength=len(values)) / len(drawn)
            np.testing.assert_allclose(shares, 1 / len(values), atol=0.015)


def test_catalogue_and_pretraining_draw_from_their_halves(small, monkeypatch):
    drawn = []

    def spy(rng, count, half):
        drawn.append((half, draw_items(rng, count, half)))
        return drawn[-1][1]

    monkeypatch.setattr(toyshop, "draw_items", spy)
    toyshop.plant(3)
    titles, images = toyshop.other_items(20, 3)
    assert [half for half, _ in drawn] == ["catalogue", "pretraining"]
    assert len(titles) == 20
    assert images.shape == (20, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
