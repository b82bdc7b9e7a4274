"""The catalogue store against items preprocessed one by one, and building at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perpeft_ray.data.catalogue import Catalogue, ItemBatch, build_catalogue
from perpeft_ray.data.folders import steps_done
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.encoder.rows import CatalogueRows
from tests.data.conftest import killed
from tests.plain_batch import plain_batch
from tests.small_shop import write_small_shop


@dataclass
class Letters:
    """A preprocessor by hand: nearest-neighbour pixels, a token a letter between 1 and 2."""

    fingerprint: str = "letters"
    image_size: int = 4
    max_tokens: int = 12
    pad_token_id: int = 99

    def image(self, image: Image.Image) -> np.ndarray:
        assert image.mode == "RGB"
        small = image.resize((self.image_size, self.image_size), Image.Resampling.NEAREST)
        return np.asarray(small).transpose(2, 0, 1)

    def tokens(self, titles: list[str]) -> list[list[int]]:
        return [[1, *(ord(c) for c in title[: self.max_tokens - 2]), 2] for title in titles]


ITEMS = {
    "item_id": list("abcdef"),
    "title": ["Ant", None, "", "Bumble bee", " \t", "Crocodile clips, 40 pieces"],
    "image": ["images/a.png", None, "images/b.jpg", None, "images/c.png", "images/a.png"],
}


@pytest.fixture
def dataset(write_folder):
    folder = write_folder()
    noise = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    Image.fromarray(noise[0]).save(folder / "images" / "b.jpg")
    Image.fromarray(noise[1]).save(folder / "images" / "c.png")
    return load_folder(write_folder(items=ITEMS), "parquet:shop")


def read_rows(catalogue: Catalogue, items: np.ndarray) -> ItemBatch:
    return CatalogueRows(catalogue).batch(items, torch.device("cpu"))


@pytest.mark.parametrize("batch_of", [plain_batch, read_rows])
def test_batch_equals_items_preprocessed_one_by_one(dataset, tmp_path, batch_of):
    letters = Letters()
    catalogue = build_catalogue(dataset, letters, tmp_path)
    assert catalogue.num_items == 6
    for items in ([4, 1, 0, 6, 3, 1, 2, 5], [1, 2], [0], [3]):
        batch = batch_of(catalogue, np.array(items))
        assert batch.pixels.dtype == torch.uint8
        assert batch.token_ids.dtype == batch.attention_mask.dtype == torch.int64
        assert batch.has_image.dtype == batch.has_title.dtype == torch.bool
        titles = [ITEMS["title"][item - 1] or "" if item else "" for item in items]
        tokens = letters.tokens(titles)
        longest = max(len(row) for row in tokens)
        assert batch.token_ids.shape == batch.attention_mask.shape == (len(items), longest)
        for row, item in enumerate(items):
            image = ITEMS["image"][item - 1] if item else None
            expected = np.zeros((3, 4, 4), dtype=np.uint8)
            if image is not None:
                expected = letters.image(Image.open(dataset.root / image).convert("RGB"))
            np.testing.assert_array_equal(batch.pixels[row], expected)
            assert bool(batch.has_image[row]) == (image is not None)
            assert bool(batch.has_title[row]) == bool(titles[row].strip())
            padding = longest - len(tokens[row])
            assert batch.token_ids[row].tolist() == tokens[row] + [99] * padding
            assert batch.attention_mask[row].tolist() == [1] * len(tokens[row]) + [0] * padding


def test_empty_batch(dataset, tmp_path):
    batch = read_rows(build_catalogue(dataset, Letters(), tmp_path), np.array([], dtype=np.int64))
    assert batch.pixels.shape == (0, 3, 4, 4)
    assert batch.token_ids.shape == batch.attention_mask.shape == (0, 1)


def test_encoder_without_images(dataset, tmp_path):
    for image in dataset.root.glob("images/*"):
        image.unlink()  # none is opened
    catalogue = build_catalogue(dataset, Letters(image_size=0), tmp_path)
    batch = read_rows(catalogue, np.arange(7))
    assert batch.pixels is None
    assert not batch.has_image.any()
    assert batch.has_title.tolist() == [False, True, False, False, True, False, True]


def test_title_without_tokens_is_all_padding(dataset, tmp_path):
    class Bare(Letters):
        def tokens(self, titles):
            return [[ord(c) for c in title[:12]] for title in titles]

    batch = read_rows(build_catalogue(dataset, Bare(), tmp_path), np.array([0, 2]))
    assert batch.token_ids.tolist() == [[99], [99]]
    assert batch.attention_mask.tolist() == [[0], [0]]


def test_existing_store_is_opened(dataset, tmp_path):
    first = build_catalogue(dataset, Letters(), tmp_path)
    assert first.folder == tmp_path / "catalogue" / first.fingerprint
    for image in dataset.root.glob("images/*"):
        image.unlink()  # a second build would fail
    again = build_catalogue(dataset, Letters(), tmp_path)
    assert again.folder == first.folder
    opened = Catalogue.open(first.folder)
    assert isinstance(opened.pixels, np.memmap)
    assert isinstance(opened.token_ids, np.memmap)


def test_fingerprint_depends_on_items_and_preprocessing_alone(dataset, write_folder, tmp_path):
    def fingerprint(data, letters) -> str:
        return build_catalogue(data, letters, tmp_path).fingerprint

    base = fingerprint(dataset, Letters())
    assert fingerprint(dataset, Letters(fingerprint="other")) != base
    more = load_folder(write_folder({"timestamp": [4, 5, 6]}, ITEMS), "parquet:shop")
    assert more.fingerprint != dataset.fingerprint
    assert fingerprint(more, Letters()) == base
    retitled = write_folder(items={**ITEMS, "title": [None] * 6})
    assert fingerprint(load_folder(retitled, "parquet:shop"), Letters()) != base


def test_unreadable_image_is_missing_and_named(dataset, tmp_path, caplog):
    whole = (dataset.root / "images" / "b.jpg").read_bytes()
    (dataset.root / "images" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (dataset.root / "images" / "c.png").write_bytes(b"no image")
    with caplog.at_level(logging.INFO):
        batch = plain_batch(build_catalogue(dataset, Letters(), tmp_path), np.arange(7))
    assert batch.has_image.tolist() == [False, True, False, False, False, False, True]
    assert "6 items: 3 titles, 2 images, 2 unreadable images" in caplog.text
    assert not batch.pixels[[3, 5]].any()
    assert batch.pixels[1].any()
    for name in ("b.jpg", "c.png"):
        path = str(dataset.root / "images" / name)
        assert sum(path in record.getMessage() for record in caplog.records) == 1


def _build(dataset, cache: Path, barrier, results) -> None:
    class Counted(Letters):
        def tokens(self, titles):
            (cache.parent / f"built-by-{os.getpid()}").touch()
            time.sleep(0.3)  # the others are there before it is done
            return super().tokens(titles)

    barrier.wait(timeout=60)
    catalogue = build_catalogue(dataset, Counted(), cache)
    results.put((str(catalogue.folder), catalogue.pixels.tobytes()))


def test_four_processes_build_one_store_once(dataset, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (dataset, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_build, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    built = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    expected = build_catalogue(dataset, Letters(), tmp_path / "alone")
    folder = tmp_path / "cache" / "catalogue" / expected.fingerprint
    assert built == {(str(folder), expected.pixels.tobytes())}
    assert finished(tmp_path / "cache") == [folder]
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def test_killed_build_resumes(tmp_path, monkeypatch):
    """kill -9 while images are decoded; what was done is not done again."""

    class Slow(Letters):
        def image(self, image):
            time.sleep(0.02)
            return super().image(image)

    monkeypatch.setattr("perpeft_ray.data.catalogue.BLOCK", 8)
    shop = load_folder(write_small_shop(tmp_path / "shop", items=60), "")
    alone = build_catalogue(shop, Letters(), tmp_path / "alone")
    cache = tmp_path / "cache"
    working = cache / "catalogue" / f".{alone.fingerprint}.unfinished"
    killed(lambda: build_catalogue(shop, Slow(), cache), lambda: steps_done(working) >= 16)
    done = steps_done(working)
    assert 16 <= done < 60
    assert finished(cache) == []

    decoded = []

    class Counted(Letters):
        def image(self, image):
            decoded.append(1)
            return super().image(image)

    again = build_catalogue(shop, Counted(), cache)
    assert len(decoded) == np.count_nonzero(alone.pixel_row[done:])
    assert finished(cache) == [again.folder]
    files = sorted(path.name for path in alone.folder.iterdir())
    assert files == sorted(path.name for path in again.folder.iterdir())
    for name in files:
        assert (alone.folder / name).read_bytes() == (again.folder / name).read_bytes()


def finished(cache: Path) -> list[Path]:
    return [path for path in (cache / "catalogue").iterdir() if not path.name.startswith(".")]
