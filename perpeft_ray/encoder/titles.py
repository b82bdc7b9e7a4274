"""Encodes titles of similar length together, to save padding.

The parts are chosen on the CPU, where the catalogue's lengths are, to avoid waiting for a device.
Letters: n titles, m titles of a part, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.catalogue import ItemBatch, Parts
from perpeft_ray.encoder.hardware import Sizes


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
