"""Rows of a catalogue's arrays, read onto the device that encodes them; titles in parts by length.

An array is copied to the GPU whole if it fits a quarter of the memory that is free at its first
read; a step then copies only item indices. Otherwise its rows go through pinned memory, on a stream
of their own: training runs ahead of the GPU, so the next step's rows arrive during this step.

Titles of similar length are encoded together, to save padding. The parts are chosen on the CPU,
where the catalogue's lengths are, to avoid waiting for a device.
Letters: n items or titles, m titles of a part, L tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.catalogue import Catalogue, ItemBatch, Parts
from perpeft_ray.encoder.hardware import Sizes, sizes_of

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
            return _sent_meanwhile(self._of(rows, columns), device)
        whole = self._whole if columns is None else self._whole[:, :columns]
        return whole.index_select(0, sent(rows, device))

    def _of(self, rows: NDArray[np.integer], columns: int | None) -> NDArray[Any]:
        return self.array[rows] if columns is None else self.array[rows, :columns]


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@lru_cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _sent_meanwhile(array: NDArray[Any], device: torch.device) -> Tensor:
    """As `sent`, while the GPU computes what it was given before."""
    stream, current = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        copied = sent(array, device)
    current.wait_stream(stream)
    copied.record_stream(current)
    return copied


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


def title_parts(lengths: NDArray[np.integer], sizes: Sizes, most: int) -> Parts | None:
    """The cheapest cut of titles with these lengths [n] into parts; None if one part is cheapest.

    A part costs its tokens, padded to its longest title, plus `sizes.part_cost`. Lengths are
    padded as in `sizes`, up to `most`; the number of titles is padded by repeats.
    """
    if len(lengths) == 0:
        return None
    step = sizes.length_step
    lengths = np.minimum(-(-np.maximum(lengths, 1) // step) * step, most)
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate(([0], np.cumsum(counts)))  # titles up to each length
    cost = np.zeros(len(ends))
    begin = np.zeros(len(ends), dtype=np.int64)
    for last in range(1, len(ends)):
        options = cost[:last] + (ends[last] - ends[:last]) * values[last - 1]
        begin[last] = options.argmin()
        cost[last] = options.min() + sizes.part_cost
    rows: list[NDArray[np.int64]] = []
    longest: list[int] = []
    last = len(ends) - 1
    while last > 0:
        first, length = int(begin[last]), int(values[last - 1])
        own = order[ends[first] : ends[last]]
        pieces = min(-(-len(own) * length // sizes.part_tokens), len(own))
        for piece in np.array_split(own, pieces):
            rows.append(np.pad(piece, (0, sizes.padded(len(piece)) - len(piece)), mode="edge"))
            longest.append(length)
        last = first
    if len(rows) == 1 and len(rows[0]) == len(lengths):
        return None
    every = np.concatenate(rows)
    back = np.empty(len(lengths), dtype=np.int64)
    back[every[::-1]] = np.arange(len(every))[::-1]  # the first of any repeats
    return Parts(tuple(map(torch.from_numpy, rows)), tuple(longest), torch.from_numpy(back))


def by_length(batch: ItemBatch, encode: Callable[[ItemBatch], Tensor]) -> Tensor:
    """Call `encode` on each part, trimmed to its longest title; return [n, ...] in order.

    Only the text of the batch passed to `encode` is the part's.
    """
    if batch.parts is None:
        return encode(batch)
    encoded = [
        encode(
            replace(
                batch,
                pixels=None,
                token_ids=batch.token_ids[rows, :longest],
                attention_mask=batch.attention_mask[rows, :longest],
                has_image=batch.has_image[rows],
                has_title=batch.has_title[rows],
                parts=None,
            )
        )
        for rows, longest in zip(batch.parts.rows, batch.parts.longest, strict=True)
    ]
    return torch.cat(encoded)[batch.parts.back]
