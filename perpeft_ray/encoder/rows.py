"""Rows of a catalogue's arrays, read onto the device that encodes them.

An array is copied to the GPU whole if it fits a quarter of the memory that is free at its first
read; a step then copies only item indices. Otherwise its rows go through pinned memory.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue, ItemBatch, Parts
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.encoder.titles import title_parts

_log = logging.getLogger(__name__)


class Rows:
    """An array [N, ...], memory-mapped or not, read by rows."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self._whole: Tensor | None = None
        self._seen = False

    def read(
        self, rows: NDArray[np.integer], device: torch.device, columns: int | None = None
    ) -> Tensor:
        """These rows [n] on the device, [n, ...]; of each only the first `columns`, if given."""
        if device.type == "cpu":
            return torch.from_numpy(self._of(rows, columns))
        if not self._seen:
            self._seen = True
            free, _ = torch.cuda.mem_get_info(device)
            if self.array.nbytes <= free // 4:
                self._whole = torch.from_numpy(np.array(self.array)).to(device)
            else:
                _log.warning("%.1f GB are not kept on the GPU", self.array.nbytes / 1e9)
        if self._whole is None:
            return sent(self._of(rows, columns), device)
        whole = self._whole if columns is None else self._whole[:, :columns]
        return whole.index_select(0, sent(rows, device))

    def _of(self, rows: NDArray[np.integer], columns: int | None) -> NDArray[Any]:
        return self.array[rows] if columns is None else self.array[rows, :columns]


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class CatalogueRows:
    """A catalogue's encoder inputs, read onto a device."""

    def __init__(self, catalogue: Catalogue, *, pixels: bool = True) -> None:
        self._catalogue = catalogue
        self.most_tokens = catalogue.token_ids.shape[1]
        self._pixels = Rows(catalogue.pixels) if pixels and catalogue.pixels is not None else None
        self._token_ids = Rows(catalogue.token_ids)

    def padded(self, items: NDArray[np.int64], device: torch.device) -> NDArray[np.int64]:
        """These items [n]; on a GPU padded with repeats of the last."""
        if len(items) == 0:
            return items
        return np.pad(items, (0, sizes_of(device).padded(len(items)) - len(items)), mode="edge")

    def by_length(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """These items by title length, longest first."""
        lengths = self._catalogue.token_counts[items].astype(np.int64)
        return items[np.argsort(-lengths, kind="stable")]

    def parts(self, items: NDArray[np.int64], device: torch.device) -> Parts | None:
        """How to cut the titles of these items into parts; computed on the CPU."""
        lengths = self._catalogue.token_counts[items]
        return title_parts(lengths, sizes_of(device), self.most_tokens)

    def longest(self, device: torch.device) -> int:
        """Tokens of the longest title, rounded up as in a batch."""
        return self._rounded(int(self._catalogue.token_counts.max(initial=1)), device)

    def _rounded(self, length: int, device: torch.device) -> int:
        step = sizes_of(device).length_step
        return int(min(-(-length // step) * step, self.most_tokens))

    def batch(self, items: NDArray[np.int64], device: torch.device) -> ItemBatch:
        """Encoder inputs of these items [n] on the device, titles in parts by length."""
        catalogue = self._catalogue
        counts = catalogue.token_counts[items]
        longest = self._rounded(int(counts.max(initial=1)), device)
        rows = catalogue.pixel_row[items]
        parts = self.parts(items, device)
        return ItemBatch(
            pixels=None if self._pixels is None else self._pixels.read(rows, device),
            token_ids=self._token_ids.read(items, device, longest).long(),
            attention_mask=(
                torch.arange(longest, device=device) < sent(counts, device)[:, None]
            ).long(),
            has_image=sent(rows != 0, device),
            has_title=sent(catalogue.has_title[items], device),
            parts=None if parts is None else _on(parts, device),
        )


def _on(parts: Parts, device: torch.device) -> Parts:
    rows = tuple(sent(part.numpy(), device) for part in parts.rows)
    return Parts(rows, parts.longest, sent(parts.back.numpy(), device))
