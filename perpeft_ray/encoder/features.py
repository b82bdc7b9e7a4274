"""What frozen towers say of every item, computed once and memory-mapped.

Two stores: the projected features (for `frozen_mm`) and the hidden states (for IISAN), kept under
`cache/features/<fingerprint>/`. Letters: I items (row 0 is padding), K hidden states, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue
from perpeft_ray.data.folders import new_folder
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.iisan import kept_layers
from perpeft_ray.encoder.items import batch_on

CHUNK = 256
"""Items encoded at a time."""


def projected_features(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> NDArray[np.float32]:
    """float32 [I+1, out_features], row 0 zero; computed into `folder` where it is not there yet.

    `towers` is called only where there is something to compute. Processes that ask for the same
    folder at once wait for the first.
    """

    def compute(target: Path) -> None:
        model = towers()
        out = np.zeros((catalogue.num_items + 1, model.out_features), dtype=np.float32)
        for items in _chunks(catalogue.num_items):
            out[items] = model(batch_on(catalogue, items, _device(model))).cpu().numpy()
        np.save(target / "features.npy", out)

    _ensure(folder, compute)
    return np.load(folder / "features.npy", mmap_mode="r")


def hidden_states(
    towers: Callable[[], Towers], catalogue: Catalogue, folder: Path
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """IISAN's inputs, float16: text [I+1, K, W_text] and image [I+1, K, W_image] (None without
    images), row 0 zero; computed into `folder` where they are not there yet."""

    def compute(target: Path) -> None:
        model = towers()
        text_layers, image_layers = kept_layers(model.text_layers, model.image_layers)
        rows = catalogue.num_items + 1
        text = _new(target / "text.npy", (rows, len(text_layers), model.text_width))
        image = None
        if model.image_width:
            image = _new(target / "image.npy", (rows, len(image_layers), model.image_width))
        for items in _chunks(catalogue.num_items):
            texts, images = model.hidden_states(batch_on(catalogue, items, _device(model)))
            text[items] = _half(texts[:, text_layers])
            if image is not None:
                assert images is not None
                image[items] = _half(images[:, image_layers])

    _ensure(folder, compute)
    image_file = folder / "image.npy"
    image = np.load(image_file, mmap_mode="r") if image_file.exists() else None
    return np.load(folder / "text.npy", mmap_mode="r"), image


def _ensure(folder: Path, compute: Callable[[Path], None]) -> None:
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with new_folder(folder) as temporary, torch.inference_mode():
                compute(temporary)


def _chunks(num_items: int) -> list[NDArray[np.int64]]:
    items = np.arange(1, num_items + 1)
    return [items[at : at + CHUNK] for at in range(0, num_items, CHUNK)]


def _new(file: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)


def _half(states: Tensor) -> NDArray[np.float16]:
    limit = torch.finfo(torch.float16).max
    return states.clamp(-limit, limit).half().cpu().numpy()


def _device(model: Towers) -> torch.device:
    return next(model.parameters()).device
