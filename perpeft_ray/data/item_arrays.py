"""Turns blocks of items into arrays: titles and image files to tokens and pixels.

The step is the same wherever it runs: `in_this_process` maps it over blocks on this machine's
cores, `perpeft_ray.study.ray_items` over the nodes of a Ray cluster.
Letters: n items of a block, S image size in pixels, L maximum tokens of a title.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from perpeft_ray.data.images import UnreadableImageError, decode_rgb

ItemArrays = dict[str, NDArray[Any]]
"""Arrays of n items: `token_ids` int32 [n, L], padded at the right; `token_counts` int32 [n];
and for encoders with images `pixels` uint8 [n, 3, S, S], zeros without a readable image, and
`unreadable` str [n], why an image file cannot be read, '' if it can or there is none."""

EachImage = Callable[[Callable[[str], Any], Iterable[str]], Iterable[Any]]
"""`map`, possibly parallel over the images of a block."""


class ItemPreprocessor(Protocol):
    """An encoder's own preprocessing of images and titles; it is sent to other processes."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the results of `image` and `tokens`."""

    @property
    def image_size(self) -> int:
        """S; 0 for an encoder without images."""

    @property
    def max_tokens(self) -> int:
        """L, the maximum tokens of a title."""

    @property
    def pad_token_id(self) -> int:
        """The token id that fills a row after its title."""

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image as uint8 [3, S, S], not yet normalised. Called from several threads."""

    def tokens(self, titles: list[str]) -> list[list[int]]:
        """Token ids of each title with special tokens, at most `max_tokens`, not padded."""


@dataclass(frozen=True)
class ItemStep:
    """Makes the arrays of a block of items."""

    root: Path
    """Image paths are relative to it; every participating node sees it."""
    preprocessor: ItemPreprocessor

    def __call__(self, block: pd.DataFrame, each_image: EachImage = map) -> ItemArrays:
        """The arrays of items with `title` and `image` (str, '' for none).

        Raises FileNotFoundError for a missing image file: it existed when the data were read, so
        this node does not see it.
        """
        arrays = self._tokens(block["title"].tolist())
        if self.preprocessor.image_size:
            arrays |= self._pixels(block["image"].tolist(), each_image)
        return arrays

    def _tokens(self, titles: list[str]) -> ItemArrays:
        most = self.preprocessor.max_tokens
        rows = self.preprocessor.tokens(titles)
        counts = np.array([len(row) for row in rows], dtype=np.int32)
        ids = np.full((len(rows), most), self.preprocessor.pad_token_id, dtype=np.int32)
        ids[np.arange(most) < counts[:, None]] = np.concatenate(rows)
        return {"token_ids": ids, "token_counts": counts}

    def _pixels(self, images: list[str], each_image: EachImage) -> ItemArrays:
        size = self.preprocessor.image_size
        pixels = np.zeros((len(images), 3, size, size), dtype=np.uint8)
        unreadable = [""] * len(images)
        there = [at for at, image in enumerate(images) if image]
        found = each_image(self._image, [images[at] for at in there])
        for at, one in zip(there, found, strict=True):
            if isinstance(one, str):
                unreadable[at] = one
            else:
                pixels[at] = one
        return {"pixels": pixels, "unreadable": np.array(unreadable, dtype=object)}

    def _image(self, image: str) -> NDArray[np.uint8] | str:
        """The pixels, or the reason why there are none."""
        file = self.root / image
        if not file.is_file():
            raise FileNotFoundError(f"{platform.node()} does not see {str(file)!r}")
        try:
            return self.preprocessor.image(decode_rgb(file))
        except UnreadableImageError as error:
            return str(error) or "unreadable"


ItemMap = Callable[[ItemStep, Sequence[pd.DataFrame]], Iterable[ItemArrays]]
"""Applies the step to every block of rows, by number (0 is padding); results keep the order,
perhaps in other blocks."""


def in_this_process(step: ItemStep, blocks: Sequence[pd.DataFrame]) -> Iterator[ItemArrays]:
    """The arrays of every block in turn, images decoded on all cores of this machine."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for block in blocks:
            yield step(block, threads.map)
