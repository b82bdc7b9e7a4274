"""The catalogue store: every item's pixels and token ids, built once and memory-mapped.

One store per items and encoder preprocessing serves every trial and worker: training steps open no
image and tokenise no title.
Letters: I items (row 0 is padding), S image size in pixels, L tokens of a title, n items of a call.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from perpeft_ray.data.folders import ResumedArrays, resumed_folder
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.item_arrays import (
    ItemMap,
    ItemPreprocessor,
    ItemStep,
    in_this_process,
)

_FORMAT = "4"
"""Part of the fingerprint: change it whenever the file layout or image reading changes."""
BLOCK = 256
"""Items per step of a build, which records its progress after each."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Parts:
    """The titles of a batch of n, cut into parts that are encoded together."""

    rows: tuple[torch.Tensor, ...]
    """Per part int64 [m]: its items of the batch, possibly with repeats at the end."""
    longest: tuple[int, ...]
    """Length in tokens to which each part's titles are trimmed or padded."""
    back: torch.Tensor
    """int64 [n]: each item's row in the concatenated parts."""


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """Encoder inputs of n items."""

    pixels: torch.Tensor | None
    """uint8 [n, 3, S, S], zeros for a missing image; None for an encoder without images."""
    token_ids: torch.Tensor
    """int64 [n, L], L the longest title of the batch; a missing title has the tokens of ''."""
    attention_mask: torch.Tensor
    """int64 [n, L]: 1 at tokens, 0 after the title's end."""
    has_image: torch.Tensor
    """bool [n]."""
    has_title: torch.Tensor
    """bool [n]."""
    parts: Parts | None = None
    """The titles by length; None: encode all together."""
    patches: torch.Tensor | None = None
    """[n, T, W]: the images as they enter the layers, if embedded before; else None."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The open store; send its `folder` to other processes and `open` it there."""

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
        """Open a store that `build_catalogue` made; processes share its pages without copying."""
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
        """I, without padding."""
        return len(self.has_title) - 1

    @property
    def fingerprint(self) -> str:
        """Hash of the items, their images, the preprocessing and the store's format."""
        return self.folder.name


def build_catalogue(
    dataset: Dataset,
    preprocessor: ItemPreprocessor,
    cache: Path,
    item_map: ItemMap = in_this_process,
) -> Catalogue:
    """Open the store of these items under `cache/catalogue/<fingerprint>/`; build it if missing.

    `item_map` decides where images are decoded and titles tokenised. This process writes the
    results, so the store is the same, byte for byte, and any `item_map` can resume a build. One
    process builds at a time; others wait. An unreadable image counts as missing, with a logged
    warning; an empty or blank title counts as missing. The missing half of an item's features is
    zero, in training and in ranking.
    """
    key = "\n".join([_FORMAT, dataset.items_fingerprint, preprocessor.fingerprint])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = cache / "catalogue" / fingerprint
    with resumed_folder(folder) as working:
        if working is not None:
            _build(working, dataset, preprocessor, item_map)
    return Catalogue.open(folder)


def _build(
    folder: Path, dataset: Dataset, preprocessor: ItemPreprocessor, item_map: ItemMap
) -> None:
    """Build the store, or resume a build."""
    # Item 0 has the tokens of '', like items without title: a text encoder always gets some.
    padding = pd.DataFrame({"title": [""], "image": [""]})
    items = pd.concat([padding, dataset.items[["title", "image"]].fillna("")], ignore_index=True)
    images = items["image"].to_numpy()
    rows = np.cumsum(images != "")  # [I+1], of items with image; kept for unreadable ones too
    count, size = len(items), preprocessor.image_size
    store = ResumedArrays(folder)
    has_title = store.array("has_title", np.bool_, (count,))
    token_counts = store.array("token_counts", np.int32, (count,))
    token_ids = store.array("token_ids", np.int32, (count, preprocessor.max_tokens))
    pixel_row = store.array("pixel_row", np.int32, (count,))
    has_title[:] = items["title"].str.strip() != ""
    blocks = [items[at : at + BLOCK] for at in range(store.done, count, BLOCK)]
    for block in item_map(ItemStep(dataset.root, preprocessor), blocks):
        span = slice(store.done, store.done + len(block["token_counts"]))
        token_counts[span] = block["token_counts"]
        token_ids[span] = block["token_ids"]
        if size:
            unreadable = block["unreadable"] != ""
            for image, reason in zip(
                images[span][unreadable], block["unreadable"][unreadable], strict=True
            ):
                _log.warning(
                    "%s is not a readable image and counts as missing: %s",
                    dataset.root / image,
                    reason,
                )
            present = (images[span] != "") & ~unreadable
            pixels = store.array("pixels", np.uint8, (int(rows[-1]) + 1, 3, size, size))
            pixels[rows[span][present]] = block["pixels"][present]
            pixel_row[span] = np.where(present, rows[span], 0)
        store.settle(span.stop)
    if store.done < count:
        raise RuntimeError(f"{count} items were sent to be prepared, but {store.done} came back")
    store.finish()
    found = int(np.count_nonzero(pixel_row))
    _log.info(
        "catalogue of %d items: %d titles, %d images, %d unreadable images",
        count - 1,
        np.count_nonzero(has_title),
        found,
        int(rows[-1]) - found if size else 0,
    )
