"""Items of the toyshop: their aspects and their titles.

An item is one value of each aspect below. The image shows some aspects, the title names some.

| aspect     | values | image      | title |
|------------|--------|------------|-------|
| department | 6      | background | word  |
| kind       | 8      | shape      | word  |
| colour     | 8      | fill       | word  |
| pattern    | 6      | on shape   | -     |
| border     | 6      | frame      | -     |
| brand      | 8      | -          | word  |
| material   | 6      | -          | word  |
| style      | 6      | -          | word  |

Values are drawn uniformly and independently. Items whose value numbers have an even sum belong to
catalogues, those with an odd sum to pre-training, so that an encoder never sees an item of any
catalogue, whatever the seeds. Every aspect has as many even as odd values, so any seven aspects
stay independent and uniform in both halves.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

ASPECTS: dict[str, tuple[str, ...]] = {
    "department": ("kitchen", "garden", "office", "sports", "nursery", "travel"),
    "kind": ("ball", "box", "tent", "kite", "ring", "star", "plank", "moon"),
    "colour": ("red", "orange", "yellow", "green", "teal", "blue", "purple", "black"),
    "pattern": ("plain", "rows", "columns", "diagonals", "dots", "checks"),
    "border": ("none", "thin", "thick", "double", "dashed", "corners"),
    "brand": ("acora", "belvo", "cirro", "dunmar", "elska", "fenwick", "gavio", "halden"),
    "material": ("wooden", "steel", "cotton", "leather", "glass", "bamboo"),
    "style": ("retro", "modern", "rustic", "classic", "minimal", "boho"),
}
"""Values of every aspect, in the order of an item's columns; a value's number is its position."""

Half = Literal["catalogue", "pretraining"]
"""The half of all possible items to draw from."""

_TEMPLATES = (
    "{brand} {style} {colour} {material} {kind} for {department}",
    "{colour} {kind} in {material} {style} {department} {brand}",
    "{style} {material} {kind} {colour} by {brand} {department}",
    "{department} {kind} {brand} {colour} and {material} {style}",
    "{material} {colour} {kind} {department} {style} from {brand}",
    "{brand} {department} {colour} {kind} with {style} {material}",
)
_FILLERS = ("new", "gift", "quality", "original")


def draw_items(rng: np.random.Generator, count: int, half: Half) -> NDArray[np.int64]:
    """Aspect values of new items of one half, [count, aspects], columns in the order of ASPECTS."""
    sizes = [len(values) for values in ASPECTS.values()]
    items = rng.integers(0, sizes, size=(count, len(sizes)))
    odd = items.sum(axis=1) % 2 == 1
    wrong = odd if half == "catalogue" else ~odd
    items[wrong, -1] ^= 1  # 0<->1, 2<->3, 4<->5: the other parity, still uniform
    return items


def write_title(rng: np.random.Generator, item: NDArray[np.int64]) -> str:
    """A title of 7 or 8 lower-case words for an item [aspects]; word order and filler vary."""
    words = {
        aspect: values[value] for (aspect, values), value in zip(ASPECTS.items(), item, strict=True)
    }
    title = _TEMPLATES[rng.integers(len(_TEMPLATES))].format(**words)
    if rng.random() < 0.5:
        title = f"{_FILLERS[rng.integers(len(_FILLERS))]} {title}"
    return title
