"""The catalogue store made by Ray Data, against the one that this process makes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perpeft_ray.data.catalogue import Catalogue, build_catalogue
from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.data.item_arrays import ItemStep, in_this_process
from perpeft_ray.study import ray_items
from perpeft_ray.study.ray_items import on_ray, on_ray_if_many, telling
from tests.small_shop import write_small_shop


@dataclass(frozen=True)
class Small:
    """A preprocessor without a model: a token a letter."""

    image_size: int = 4
    fingerprint: str = "small"
    max_tokens: int = 12
    pad_token_id: int = 99

    def image(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((4, 4))).transpose(2, 0, 1)

    def tokens(self, titles: list[str]) -> list[list[int]]:
        return [[1, *(ord(c) for c in title[:10]), 2] for title in titles]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """60 items, one without image, one without title, two with broken images; blocks of 8."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    monkeypatch.setattr("perpeft_ray.data.catalogue.BLOCK", 8)
    folder = write_small_shop(tmp_path / "shop", items=60)
    (folder / "images" / "7.png").write_bytes(b"no image")
    whole = (folder / "images" / "20.png").read_bytes()
    (folder / "images" / "20.png").write_bytes(whole[:60])
    return load_folder(folder, "")


def contents(catalogue: Catalogue) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in catalogue.folder.iterdir()}


@pytest.mark.usefixtures("ray_runtime")
@pytest.mark.parametrize("size", [4, 0])
def test_byte_for_byte_as_in_this_process(shop, tmp_path, monkeypatch, size) -> None:
    alone = build_catalogue(shop, Small(size), tmp_path / "alone")
    told: list[str] = []
    monkeypatch.setattr(
        "perpeft_ray.data.catalogue._log.warning", lambda text, *values: told.append(text % values)
    )
    on_workers = build_catalogue(shop, Small(size), tmp_path / "ray", on_ray)
    assert contents(on_workers) == contents(alone)
    assert on_workers.fingerprint == alone.fingerprint
    # The process that writes reports what a worker could not read.
    names = ("7.png", "20.png") if size else ()
    assert len(told) == len(names)
    for name, line in zip(names, told, strict=True):
        assert line.startswith(f"{shop.root / 'images' / name} is not a readable image")


@pytest.mark.usefixtures("ray_runtime")
def test_resumes_what_another_process_began(shop, tmp_path) -> None:
    def killed(step, blocks):
        yield from in_this_process(step, blocks[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_catalogue(shop, Small(), tmp_path / "ray", killed)
    sent = []

    def rest(step, blocks):
        sent.extend(blocks)
        return on_ray(step, blocks)

    on_workers = build_catalogue(shop, Small(), tmp_path / "ray", rest)
    assert sent[0].index[0] == 3 * 8
    assert contents(on_workers) == contents(build_catalogue(shop, Small(), tmp_path / "alone"))


@pytest.mark.usefixtures("ray_runtime")
def test_an_image_that_a_node_does_not_see_is_no_missing_image(shop, tmp_path) -> None:
    (shop.root / "images" / "33.png").unlink()
    with pytest.raises(FileNotFoundError, match=r" does not see '.*33\.png'"):
        build_catalogue(shop, Small(), tmp_path / "ray", on_ray)
    assert not [path for path in (tmp_path / "ray" / "catalogue").iterdir() if path.name[0] != "."]


def test_few_images_few_cpus_and_texts_alone_stay_in_this_process(shop, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(ray_items, "on_ray", lambda step, blocks: asked.append(len(blocks)) or [])  # type: ignore[func-returns-value]  # the list is what returns
    items = shop.items.fillna("")
    pictured = int((items["image"] != "").sum())
    for least, size, cpus, expected in (
        (pictured, 4, 4, [1]),
        (pictured + 1, 4, 4, []),
        (pictured, 4, 3, []),
        (1, 0, 4, []),
    ):
        monkeypatch.setattr(ray_items, "LEAST_IMAGES", least)
        monkeypatch.setattr(ray_items, "_cpus", lambda cpus=cpus: cpus)
        asked.clear()
        arrays = list(on_ray_if_many(ItemStep(shop.root, Small(size)), [items]))
        assert asked == expected
        assert len(arrays) == 1 - len(expected)


def test_progress_is_told(shop, tmp_path) -> None:
    told = []
    build_catalogue(shop, Small(), tmp_path, telling(lambda *counts: told.append(counts)))
    assert told == [*((done, 60) for done in range(7, 60, 8)), (60, 60)]


def test_a_real_preprocessor_travels(shop) -> None:
    from ray import cloudpickle

    from perpeft_ray.encoder.preprocess import FoundationPreprocessor

    step = ItemStep(shop.root, FoundationPreprocessor("toyshop-clip"))
    there = cloudpickle.loads(cloudpickle.dumps(step))
    block = shop.items.fillna("")[:8]
    here, over_there = step(block), there(block)
    assert here.keys() == over_there.keys()
    for name, array in here.items():
        np.testing.assert_array_equal(array, over_there[name])
