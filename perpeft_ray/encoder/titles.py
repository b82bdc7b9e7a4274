"""Titles of like length encoded together, so that few of the tokens are padding.

The parts are chosen on the CPU, where the catalogue's lengths are, so that no device is waited for.
Letters: n titles, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.catalogue import ItemBatch, TitlePart
from perpeft_ray.encoder.hardware import Sizes


def title_parts(lengths: NDArray[np.integer], sizes: Sizes) -> tuple[TitlePart, ...]:
    """The cheapest cut of titles with these lengths [n] into parts; () where one part is.

    A part costs its tokens, all padded to its longest title, and `sizes.part_cost`.
    """
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate(([0], np.cumsum(counts)))  # titles up to each length
    cost = np.zeros(len(ends))
    begin = np.zeros(len(ends), dtype=np.int64)
    for last in range(1, len(ends)):
        options = cost[:last] + (ends[last] - ends[:last]) * values[last - 1]
        begin[last] = options.argmin()
        cost[last] = options.min() + sizes.part_cost
    parts: list[TitlePart] = []
    last = len(ends) - 1
    while last > 0:
        first, longest = int(begin[last]), int(values[last - 1])
        rows = order[ends[first] : ends[last]]
        pieces = -(-len(rows) * longest // sizes.part_tokens)
        parts += [
            TitlePart(torch.from_numpy(piece), longest)
            for piece in np.array_split(rows, min(pieces, len(rows)))
        ]
        last = first
    return tuple(parts) if len(parts) > 1 else ()


def by_length(batch: ItemBatch, encode: Callable[[ItemBatch], Tensor]) -> Tensor:
    """`encode` on each of the batch's parts, trimmed to its longest title: [n, ...], in order.

    Of the batch that `encode` is given only the text is the part's.
    """
    if not batch.parts:
        return encode(batch)
    encoded = [encode(_part(batch, part)) for part in batch.parts]
    order = torch.cat([part.rows for part in batch.parts])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.cat(encoded)[back]


def _part(batch: ItemBatch, part: TitlePart) -> ItemBatch:
    return replace(
        batch,
        pixels=None,
        token_ids=batch.token_ids[part.rows, : part.longest],
        attention_mask=batch.attention_mask[part.rows, : part.longest],
        has_image=batch.has_image[part.rows],
        has_title=batch.has_title[part.rows],
        parts=(),
    )
