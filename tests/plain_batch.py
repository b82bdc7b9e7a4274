"""Items' encoder inputs by plain indexing: what `CatalogueRows.batch` must equal."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from perpeft_ray.data.catalogue import Catalogue, ItemBatch


def plain_batch(catalogue: Catalogue, items: NDArray[np.int64]) -> ItemBatch:
    """Encoder inputs of the items with these indices [n], each 0..I, on the CPU."""
    rows = catalogue.pixel_row[items]  # [n]
    counts = catalogue.token_counts[items]  # [n]
    longest = int(counts.max(initial=1))
    mask = np.arange(longest) < counts[:, None]  # [n, L]
    return ItemBatch(
        pixels=None if catalogue.pixels is None else torch.from_numpy(catalogue.pixels[rows]),
        token_ids=torch.from_numpy(catalogue.token_ids[items, :longest].astype(np.int64)),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        has_image=torch.from_numpy(rows != 0),
        has_title=torch.from_numpy(catalogue.has_title[items]),
    )
