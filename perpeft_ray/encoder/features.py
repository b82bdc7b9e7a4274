"""Cached outputs of the frozen towers for every item, computed once and memory-mapped.

Stores: the projected features (for `frozen_mm`), the hidden states (for IISAN) and the states of
frozen layers (`fast.prefix`), kept under `cache/features/<fingerprint>/`. Items are encoded in
batches of similar title length, to save padding. An interrupted computation resumes with the next
batch.
Letters: I items (row 0 is padding), K hidden states, W width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from rich.progress import track
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.data.folders import ResumedArrays, resumed_folder
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.encoder.iisan import kept_layers
from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.screen import console as console_on

Encode = Callable[[ItemBatch], Sequence[NDArray[Any]]]
"""The rows of a batch of items, one array per name."""


@dataclass(frozen=True)
class Computation:
    """How to compute a store's arrays."""

    device: torch.device
    dtype: DTypeLike
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of an item by name of the array."""
    encode: Encode
    """Arrays in the order of `shapes`."""


def projected_features(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> NDArray[np.float32]:
    """float32 [I+1, out_features], row 0 zero; computed into `folder` unless present.

    Calls `towers` only to compute.
    """

    def computation() -> Computation:
        model = towers()
        return Computation(
            _device(model),
            np.float32,
            {"features": (model.out_features,)},
            lambda batch: [model(batch).cpu().numpy()],
        )

    return store_of_items(folder, catalogue, computation)["features"]


def hidden_states(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """IISAN's inputs, float16: text [I+1, K, W_text] and image [I+1, K, W_image] (None without
    images), row 0 zero; computed into `folder` unless present."""

    def computation() -> Computation:
        model = towers()
        (text_width, text_depth), (image_width, image_depth) = model.state_sizes()
        text_layers, image_layers = kept_layers(text_depth, image_depth)
        shapes = {"text": (len(text_layers), text_width)}
        if image_width:
            shapes["image"] = (len(image_layers), image_width)

        def states(batch: ItemBatch) -> Sequence[NDArray[Any]]:
            texts, images = model.hidden_states(batch)
            kept = [_half(texts[:, text_layers])]
            if images is not None:
                kept.append(_half(images[:, image_layers]))
            return kept

        return Computation(_device(model), np.float16, shapes, states)

    arrays = store_of_items(folder, catalogue, computation)
    return arrays["text"], arrays.get("image")


def store_of_items(
    folder: Path, catalogue: Catalogue, computation: Callable[[], Computation]
) -> dict[str, NDArray[Any]]:
    """Arrays [I+1, *shape] by name, memory-mapped, row 0 zero; computed unless present.

    Processes that need the same folder wait for the first.
    """
    if not folder.is_dir():
        with resumed_folder(folder) as working, torch.inference_mode():
            if working is not None:
                _fill(working, catalogue, computation())
    return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}


def _fill(working: Path, catalogue: Catalogue, computation: Computation) -> None:
    """Write the rows of all items to one file per shape; resume an earlier run."""
    count, device = catalogue.num_items + 1, computation.device
    store = ResumedArrays(
        working,
        {name: (computation.dtype, (count, *s)) for name, s in computation.shapes.items()},
    )
    source, chunk = CatalogueRows(catalogue), sizes_of(device).encode_items
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
        rows = computation.encode(source.batch(items, device))
        for name, values in zip(computation.shapes, rows, strict=True):
            store[name][items] = values
        store.settle(start + len(items))
    store.finish()


def _half(states: Tensor) -> NDArray[np.float16]:
    limit = torch.finfo(torch.float16).max
    return states.clamp(-limit, limit).half().cpu().numpy()


def _device(model: Towers) -> torch.device:
    return next(model.parameters()).device
