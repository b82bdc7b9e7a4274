"""The catalogue store: every item's pixels and token ids, made once and memory-mapped.

Built once per items and encoder preprocessing, shared by every trial and worker: no image is
opened and no title tokenised inside a training step.
Letters: I items (row 0 is padding), S image size in pixels, L tokens of a title, n items asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perpeft_ray.data.folders import read_mark, resumed_array, resumed_folder, write_mark
from perpeft_ray.data.images import read_rgb
from perpeft_ray.data.interactions import Dataset

_FORMAT = "2"
"""Part of the fingerprint: change it with the files' layout or the way images are read."""
_CHUNK = 1024
"""Items done between two notes of how far a build has come."""

_log = logging.getLogger(__name__)


class ItemPreprocessor(Protocol):
    """An encoder's own preprocessing of images and titles."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the results of `image` and `tokens`."""

    @property
    def image_size(self) -> int:
        """S; 0 for an encoder without images."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a title."""

    @property
    def pad_token_id(self) -> int:
        """Fills token ids behind a title's end."""

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image as uint8 [3, S, S], not yet normalised. Called from several threads."""

    def tokens(self, titles: list[str]) -> list[list[int]]:
        """Token ids of each title with special tokens, at most `max_tokens`, not padded."""


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """Encoder inputs of n items."""

    pixels: torch.Tensor | None
    """uint8 [n, 3, S, S], zeros where there is no image; None for an encoder without images."""
    token_ids: torch.Tensor
    """int64 [n, L], L the longest title of the batch; an absent title has the tokens of ''."""
    attention_mask: torch.Tensor
    """int64 [n, L]: 1 at tokens, 0 behind a title's end."""
    has_image: torch.Tensor
    """bool [n]."""
    has_title: torch.Tensor
    """bool [n]."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The store, open for reading; send its `folder` to other processes and `open` it there."""

    folder: Path
    pixels: NDArray[np.uint8] | None
    """[1 + items with image, 3, S, S], memory-mapped, row 0 zeros; None for a text encoder."""
    pixel_row: NDArray[np.int32]
    """[I+1]: each item's row of `pixels`, 0 for items without image."""
    token_ids: NDArray[np.int32]
    """[I+1, longest title], memory-mapped, padded at the right."""
    token_counts: NDArray[np.int32]
    """[I+1]: tokens of each title."""
    has_title: NDArray[np.bool_]
    """[I+1]."""

    @classmethod
    def open(cls, folder: Path) -> Catalogue:
        """Open a store that `build_catalogue` made; processes share its pages, none copies it."""
        pixels = folder / "pixels.npy"
        return cls(
            folder=folder,
            pixels=np.load(pixels, mmap_mode="r") if pixels.exists() else None,
            pixel_row=np.load(folder / "pixel_row.npy"),
            token_ids=np.load(folder / "token_ids.npy", mmap_mode="r"),
            token_counts=np.load(folder / "token_counts.npy"),
            has_title=np.load(folder / "has_title.npy"),
        )

    @property
    def num_items(self) -> int:
        """I, padding not counted."""
        return len(self.has_title) - 1

    @property
    def fingerprint(self) -> str:
        """Hash of the items, their images, the preprocessing and the store's format."""
        return self.folder.name

    def batch(self, items: NDArray[np.int64]) -> ItemBatch:
        """Encoder inputs of the items with these indices (int64 [n], each 0..I, repeats allowed).

        Item 0, the padding, has neither image nor title. Nothing is decoded or tokenised here.
        """
        rows = self.pixel_row[items]  # [n]
        counts = self.token_counts[items]  # [n]
        longest = int(counts.max(initial=1))
        mask = np.arange(longest) < counts[:, None]  # [n, L]
        return ItemBatch(
            pixels=None if self.pixels is None else torch.from_numpy(self.pixels[rows]),
            token_ids=torch.from_numpy(self.token_ids[items, :longest].astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            has_image=torch.from_numpy(rows != 0),
            has_title=torch.from_numpy(self.has_title[items]),
        )


def build_catalogue(dataset: Dataset, preprocessor: ItemPreprocessor, cache: Path) -> Catalogue:
    """Open the store of these items under `cache/catalogue/<fingerprint>/`, made where missing.

    Of processes that ask at once one makes it and the others wait; a build that was stopped goes
    on. A file that is no readable image counts as a missing image and is named in a logged warning;
    an empty or blank title counts as missing. What is missing is masked wherever items are encoded,
    in training as in ranking: that half of an item's features is zero.
    """
    key = "\n".join([_FORMAT, dataset.items_fingerprint, preprocessor.fingerprint])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = cache / "catalogue" / fingerprint
    with resumed_folder(folder) as working:
        if working is not None:
            titles = _write_titles(working, dataset.items["title"].tolist(), preprocessor)
            images, unreadable = _write_images(working, dataset, preprocessor)
            _log.info(
                "catalogue of %d items: %d titles, %d images, %d unreadable images",
                len(dataset.items),
                titles,
                images,
                unreadable,
            )
    return Catalogue.open(folder)


def _write_titles(
    folder: Path, titles: Sequence[str | None], preprocessor: ItemPreprocessor
) -> int:
    """Write the titles' tokens; how many titles there are."""
    # Item 0 and items without title get the tokens of '', so that a text encoder always has some.
    rows = ["", *(title or "" for title in titles)]
    counts = np.zeros(len(rows), dtype=np.int32)  # [I+1]
    flat = []
    for at in range(0, len(rows), _CHUNK):
        tokens = preprocessor.tokens(rows[at : at + _CHUNK])
        counts[at : at + _CHUNK] = [len(row) for row in tokens]
        flat.append(np.concatenate(tokens).astype(np.int32))
    longest = int(counts.max(initial=1))
    if longest > preprocessor.max_tokens:
        raise ValueError(f"a title has {longest} tokens, more than {preprocessor.max_tokens}")
    token_ids = np.full((len(rows), longest), preprocessor.pad_token_id, dtype=np.int32)
    token_ids[np.arange(longest) < counts[:, None]] = np.concatenate(flat)
    has_title = np.array([bool(row.strip()) for row in rows])
    np.save(folder / "token_ids.npy", token_ids)
    np.save(folder / "token_counts.npy", counts)
    np.save(folder / "has_title.npy", has_title)
    return int(has_title.sum())


def _write_images(
    folder: Path, dataset: Dataset, preprocessor: ItemPreprocessor
) -> tuple[int, int]:
    """Write the images' pixels, or what is missing of them; how many, and how many unreadable."""
    num_items, size = len(dataset.items), preprocessor.image_size
    if not size:
        np.save(folder / "pixel_row.npy", np.zeros(num_items + 1, dtype=np.int32))
        return 0, 0
    paths = [(item, path) for item, path in enumerate(dataset.items["image"], start=1) if path]
    mark = folder / "images.done"
    done = read_mark(mark)
    # Row 0 and the rows of unreadable images stay zeros.
    shape = (len(paths) + 1, 3, size, size)
    pixels = resumed_array(folder / "pixels.npy", np.uint8, shape, resume=done > 0)
    rows = resumed_array(folder / "pixel_row.npy", np.int32, (num_items + 1,), resume=done > 0)

    def write(at: int) -> None:
        item, path = paths[at]
        rgb = read_rgb(dataset.root / path)
        if rgb is not None:
            pixels[at + 1] = preprocessor.image(rgb)
            rows[item] = at + 1

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(done, len(paths), _CHUNK):
            stop = min(start + _CHUNK, len(paths))
            list(pool.map(write, range(start, stop)))
            pixels.flush()
            rows.flush()
            write_mark(mark, stop)
    mark.unlink(missing_ok=True)
    images = int(np.count_nonzero(rows))
    return images, len(paths) - images
