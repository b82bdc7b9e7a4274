"""Cached outputs of the frozen towers for every item, computed once and memory-mapped.

Two stores: the projected features (for `frozen_mm`) and the hidden states (for IISAN), kept under
`cache/features/<fingerprint>/`. Items are encoded in batches of similar title length, to save
padding. An interrupted computation resumes with the next batch.
Letters: I items (row 0 is padding), K hidden states, W width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from rich.progress import track
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.data.folders import read_mark, resumed_array, resumed_folder, settle, write_mark
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.encoder.iisan import kept_layers
from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.screen import console as console_on


def projected_features(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> NDArray[np.float32]:
    """float32 [I+1, out_features], row 0 zero; computed into `folder` unless present.

    Calls `towers` only to compute. Processes that need the same folder wait for the first.
    """

    def compute(working: Path) -> None:
        model = towers()

        def features(batch: ItemBatch) -> Sequence[NDArray[Any]]:
            return [model(batch).cpu().numpy()]

        shapes = {"features": (model.out_features,)}
        _fill(working, catalogue, _device(model), np.float32, shapes, features)

    _ensure(folder, compute)
    return np.load(folder / "features.npy", mmap_mode="r")  # type: ignore[no-any-return]  # NumPy says Any


def hidden_states(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """IISAN's inputs, float16: text [I+1, K, W_text] and image [I+1, K, W_image] (None without
    images), row 0 zero; computed into `folder` unless present."""

    def compute(working: Path) -> None:
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

        _fill(working, catalogue, _device(model), np.float16, shapes, states)

    _ensure(folder, compute)
    image_file = folder / "image.npy"
    image = np.load(image_file, mmap_mode="r") if image_file.exists() else None
    return np.load(folder / "text.npy", mmap_mode="r"), image


def store_of_items(
    folder: Path,
    catalogue: Catalogue,
    device: torch.device,
    dtype: DTypeLike,
    shapes: Mapping[str, tuple[int, ...]],
    encode: Callable[[ItemBatch], Sequence[NDArray[Any]]],
) -> dict[str, NDArray[Any]]:
    """Arrays [I+1, *shape] by name, memory-mapped, row 0 zero; computed unless present.

    `encode` returns the rows of a batch, one array per name, in the order of `shapes`.
    """
    _ensure(folder, lambda working: _fill(working, catalogue, device, dtype, shapes, encode))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}


def _ensure(folder: Path, compute: Callable[[Path], None]) -> None:
    if folder.is_dir():
        return
    with resumed_folder(folder) as working, torch.inference_mode():
        if working is not None:
            compute(working)


def _fill(
    working: Path,
    catalogue: Catalogue,
    device: torch.device,
    dtype: DTypeLike,
    shapes: Mapping[str, tuple[int, ...]],
    encode: Callable[[ItemBatch], Sequence[NDArray[Any]]],
) -> None:
    """Write `encode`'s rows of all items to one file per shape; resume an earlier run."""
    mark = working / "items.done"
    done = read_mark(mark)
    arrays = [
        resumed_array(
            working / f"{name}.npy", dtype, (catalogue.num_items + 1, *shape), resume=done > 0
        )
        for name, shape in shapes.items()
    ]
    source, chunk = CatalogueRows(catalogue), sizes_of(device).encode_items
    # Longest titles first: a batch too large for memory fails at once.
    order = np.argsort(-catalogue.token_counts[1:].astype(np.int64), kind="stable") + 1  # [I]
    console = console_on(sys.stderr)
    for start in track(
        range(done, len(order), chunk),
        "encoding items",
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ):
        items = order[start : start + chunk]
        rows = encode(source.batch(items, device))
        for array, values in zip(arrays, rows, strict=True):
            array[items] = values
            settle(array)
        write_mark(mark, start + len(items))
    mark.unlink(missing_ok=True)


def _half(states: Tensor) -> NDArray[np.float16]:
    limit = torch.finfo(torch.float16).max
    return states.clamp(-limit, limit).half().cpu().numpy()


def _device(model: Towers) -> torch.device:
    return next(model.parameters()).device
