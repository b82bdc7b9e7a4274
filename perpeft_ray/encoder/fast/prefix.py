"""Cache of the frozen lower layers' output, used when only the last k layers are adapted.

With `peft.last_layers` k, the layers below give the same output for an item in every step, group
and trial. It is stored for all tokens beside the other features, memory-mapped, in the towers' own
dtype; encoding an item then takes only the last k of L layers. A store larger than `MAX_BYTES` or
half of the free disk is not written; items are then encoded live, with the same results.
Letters: I items (row 0 is padding), n items asked for, T tokens or patches of an item, W width.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.encoder.features import store_of_items
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.items import Inputs, TowerItemEncoder
from perpeft_ray.encoder.rows import CatalogueRows, Rows, by_length
from perpeft_ray.encoder.targets import layer_stacks

MAX_BYTES = 64 * 2**30
"""Largest store; 12,000 items of CLIP ViT-B/32 with titles of up to 77 tokens are 1.9 GB."""

_log = logging.getLogger(__name__)


class SuffixItemEncoder(TowerItemEncoder):
    """Towers that start at the first adapted layer, from stored states of the layers below."""

    def __init__(self, towers: Towers, catalogue: Catalogue, states: PrefixStates) -> None:
        self._pixel_shape = () if catalogue.pixels is None else catalogue.pixels.shape[1:]
        super().__init__(towers, catalogue)
        # Pixels are not needed for images with stored states.
        self._rows = CatalogueRows(catalogue, pixels="image" not in states.entries)
        self._states = {name: Rows(array) for name, array in states.arrays.items()}
        self._entries = states.entries

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """An `ItemBatch`; states of titles, one tensor per part; states of images.

        None for a half without stored states.
        """
        items = self._rows.padded(items, self._device)
        batch = self._rows.batch(items, self._device)
        text = image = None
        if "text" in self._states:
            parts = self._rows.parts(items, self._device)
            cuts = [(items, batch.token_ids.shape[1])]
            if parts is not None:
                rows = [items[part.numpy()] for part in parts.rows]
                cuts = list(zip(rows, parts.longest, strict=True))
            text = [self._read("text", *cut) for cut in cuts]
        if "image" in self._states:
            image = self._read("image", items, None)
        return batch, text, image

    def forward(  # type: ignore[override]
        self, batch: ItemBatch, text_states: list[Tensor] | None, image_states: Tensor | None
    ) -> Tensor:
        """As `TowerItemEncoder`, from the result of `inputs`."""
        towers, entries = self.towers, self._entries
        image = text = None
        if towers.image is not None and image_states is None:
            image = towers.images(batch)
        elif towers.image is not None and image_states is not None:
            entry = entries["image"]
            blank = image_states.new_zeros(()).expand(len(image_states), *self._pixel_shape)
            with entry.given(image_states):
                image = towers.image.features(blank)
        if towers.text is not None and text_states is None:
            text = by_length(batch, towers.text.features)
        elif towers.text is not None and text_states is not None:
            features, entry, states = towers.text.features, entries["text"], iter(text_states)

            def encode(part: ItemBatch) -> Tensor:
                with entry.given(next(states)):
                    return features(part)

            text = by_length(batch, encode)
        return towers.joined(batch, image, text)

    def _read(self, name: str, items: NDArray[np.int64], longest: int | None) -> Tensor:
        return self._states[name].read(items, self._device, longest).view(self.towers.dtype)


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """States that enter the first adapted layer of each half that has frozen layers."""

    arrays: dict[str, NDArray[Any]]
    """`text` and `image`: [I+1, T, W], bfloat16 as int16."""
    entries: dict[str, _Entry]
    """Where the states enter the towers that computed them."""


def prefix_states(
    towers: Towers, catalogue: Catalogue, folder: Path, last_layers: int
) -> PrefixStates | None:
    """The store of these towers, computed into `folder` unless present.

    The towers must not have an adapter yet. None if no layer is frozen or the store would be too
    large.
    """
    entries = _entries(towers, last_layers)
    if not entries:
        return None
    device = next(towers.parameters()).device
    plain = torch.float32 if towers.dtype == torch.float32 else torch.int16
    rows = CatalogueRows(catalogue)
    longest = rows.longest(device)

    def encode(towers: Towers, batch: ItemBatch) -> dict[str, NDArray[Any]]:
        found = {name: entry.states_of(towers, batch) for name, entry in entries.items()}
        if "text" in found:
            missing = longest - batch.token_ids.shape[1]
            found["text"] = F.pad(found["text"], (0, 0, 0, missing))
        return {name: x.contiguous().view(plain).cpu().numpy() for name, x in found.items()}

    if not folder.is_dir():
        with torch.inference_mode():
            one = encode(towers, rows.batch(np.array([1]), device))
        size = (catalogue.num_items + 1) * sum(item[0].nbytes for item in one.values())
        folder.parent.mkdir(parents=True, exist_ok=True)
        if size > min(MAX_BYTES, shutil.disk_usage(folder.parent).free // 2):
            _log.warning(
                "states of frozen layers are not cached: they would take %.1f GB", size / 1e9
            )
            return None
    return PrefixStates(store_of_items(lambda: towers, catalogue, folder, encode), entries)


class _Entry:
    """Entry to a half's tower: skips its frozen layers while `states` are given."""

    def __init__(self, tower: nn.Module, frozen: Sequence[nn.Module], *, images: bool) -> None:
        self._states: Tensor | None = None
        self._last = frozen[-1]
        for layer in frozen:
            self._pass_over(layer)
        # Embedding is cheap for tokens, but a convolution for images.
        if images and hasattr(tower, "embeddings"):
            self._pass_over(tower.get_submodule("embeddings"))

    def states_of(self, towers: Towers, batch: ItemBatch) -> Tensor:
        """The frozen layers' output for a batch, [n, T, W]."""
        kept: list[Tensor] = []
        hook = self._last.register_forward_hook(lambda _, inputs, output: kept.append(output))
        try:
            towers(replace(batch, parts=None))
        finally:
            hook.remove()
        return kept[0]

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Use these states as the frozen layers' output for the next items."""
        self._states = states
        try:
            yield
        finally:
            self._states = None

    def _pass_over(self, module: Any) -> None:
        real: Callable[..., Any] = module.forward
        module.forward = lambda *inputs, **named: (
            real(*inputs, **named) if self._states is None else self._states
        )


def _entries(towers: Towers, last_layers: int) -> dict[str, _Entry]:
    """One entry per half with frozen layers below its adapted ones."""
    entries = {}
    for name, half in (("text", towers.text), ("image", towers.image)):
        stacks = list(layer_stacks(half.tower).values()) if half is not None else []
        if half is None or len(stacks) != 1:
            continue  # a convolutional tower is encoded live
        frozen = list(stacks[0])[: max(len(stacks[0]) - last_layers, 0)]
        if frozen:
            entries[name] = _Entry(half.tower, frozen, images=name == "image")
    return entries
