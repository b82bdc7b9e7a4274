"""Cached outputs of the frozen towers for every item, computed once and memory-mapped.

Stores: the projected features (for `frozen_mm`), the hidden states (for IISAN) and the states of
frozen layers (`fast.prefix`), kept under `cache/features/<fingerprint>/`. Items are encoded in
batches of similar title length, to save padding. An interrupted computation resumes with the next
batch.
Letters: I items (row 0 is padding), K hidden states, W width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.data.folders import ResumedArrays, resumed_folder
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.encoder.iisan import kept_layers
from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.screen import console as console_on

Encode = Callable[[Towers, ItemBatch], dict[str, NDArray[Any]]]
"""Arrays by name with a row per item of a batch."""


def projected_features(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> NDArray[np.float32]:
    """float32 [I+1, out_features], row 0 zero; computed into `folder` unless present.

    Calls `towers` only to compute.
    """

    def encode(model: Towers, batch: ItemBatch) -> dict[str, NDArray[Any]]:
        return {"features": model(batch).cpu().numpy()}

    return store_of_items(towers, catalogue, folder, encode)["features"]


def hidden_states(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """IISAN's inputs, float16: text [I+1, K, W_text] and image [I+1, K, W_image] (None without
    images), row 0 zero; computed into `folder` unless present."""

    def encode(model: Towers, batch: ItemBatch) -> dict[str, NDArray[Any]]:
        (_, text_depth), (_, image_depth) = model.state_sizes()
        text_layers, image_layers = kept_layers(text_depth, image_depth)
        texts, images = model.hidden_states(batch)
        found = {"text": _half(texts[:, text_layers])}
        if images is not None:
            found["image"] = _half(images[:, image_layers])
        return found

    arrays = store_of_items(towers, catalogue, folder, encode)
    return arrays["text"], arrays.get("image")


def store_of_items(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path, encode: Encode
) -> dict[str, NDArray[Any]]:
    """What `encode` gives for all items, by name [I+1, ...], memory-mapped, row 0 zero.

    Computed into `folder` unless present; other processes that need it wait.
    """
    if not folder.is_dir():
        with resumed_folder(folder) as working, torch.inference_mode():
            if working is not None:
                _fill(working, catalogue, towers(), encode)
    return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}


def _fill(working: Path, catalogue: Catalogue, towers: Towers, encode: Encode) -> None:
    """Write the rows of all items to one file per array; resume an earlier run."""
    count, device = catalogue.num_items + 1, next(towers.parameters()).device
    store, source = ResumedArrays(working), CatalogueRows(catalogue)
    chunk = sizes_of(device).encode_items
    # Longest titles first: a batch too large for memory fails at once.
    order = source.by_length(np.arange(1, count))  # [I]
    console = console_on(sys.stderr)
    for start in track(
        range(store.done, len(order), chunk),
        "encoding items",
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ):
        items = order[start : start + chunk]
        for name, values in encode(towers, source.batch(items, device)).items():
            store.array(name, values.dtype, (count, *values.shape[1:]))[items] = values
        store.settle(start + len(items))
    store.finish()


def _half(states: Tensor) -> NDArray[np.float16]:
    limit = torch.finfo(torch.float16).max
    return states.clamp(-limit, limit).half().cpu().numpy()
