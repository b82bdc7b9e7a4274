"""Items of the toyshop: their aspects, titles and images.

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

An image is a background, a patterned shape, a border and jitter: rules on the coordinates x, y in
[-1, 1] of a canvas of twice the image's size, averaged down afterwards, so pixels do not depend on
a drawing library or font.
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

IMAGE_SIZE = 24
"""Height and width of an image in pixels."""

_CANVAS = 2 * IMAGE_SIZE
_BACKGROUNDS = {
    "kitchen": (250, 205, 205),
    "garden": (205, 240, 200),
    "office": (200, 215, 250),
    "sports": (250, 240, 190),
    "nursery": (235, 205, 245),
    "travel": (215, 215, 215),
}
_COLOURS = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (215, 190, 10),
    "green": (35, 140, 50),
    "teal": (20, 160, 165),
    "blue": (35, 70, 200),
    "purple": (125, 45, 160),
    "black": (35, 35, 35),
}
_FRAME = (70, 55, 50)
_INK = (255, 255, 255)

Field = NDArray[np.float64]
Mask = NDArray[np.bool_]


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


def draw_item(rng: np.random.Generator, item: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The image of an item [aspects], uint8 [IMAGE_SIZE, IMAGE_SIZE, 3], RGB.

    The shape's place, size, angle and hue, its pattern's offset and the noise are drawn from `rng`:
    two drawings of one item differ.
    """
    value = {
        aspect: values[number]
        for (aspect, values), number in zip(ASPECTS.items(), item, strict=True)
    }
    steps = (np.arange(_CANVAS) + 0.5) / _CANVAS * 2 - 1
    x, y = np.meshgrid(steps, steps)
    canvas = np.empty((_CANVAS, _CANVAS, 3))
    canvas[:] = _tinted(rng, _BACKGROUNDS[value["department"]])
    canvas[_border(value["border"], x, y)] = _tinted(rng, _FRAME)

    shift_x, shift_y = rng.uniform(-0.1, 0.1, size=2)
    scale = rng.uniform(0.9, 1.1)
    angle = rng.uniform(-0.25, 0.25)
    across = ((x - shift_x) * np.cos(angle) + (y - shift_y) * np.sin(angle)) / scale
    down = ((y - shift_y) * np.cos(angle) - (x - shift_x) * np.sin(angle)) / scale
    shape = _shape(value["kind"], across, down)
    canvas[shape] = _tinted(rng, _COLOURS[value["colour"]])
    slip_x, slip_y = rng.uniform(-0.06, 0.06, size=2)
    ink = shape & _pattern(value["pattern"], x + slip_x, y + slip_y)
    canvas[ink] = 0.25 * canvas[ink] + 0.75 * np.array(_INK)

    pixels = canvas.reshape(IMAGE_SIZE, 2, IMAGE_SIZE, 2, 3).mean(axis=(1, 3))
    pixels += rng.normal(0, 4, size=pixels.shape)
    return np.clip(pixels, 0, 255).round().astype(np.uint8)  # type: ignore[no-any-return]  # NumPy says Any


def _tinted(rng: np.random.Generator, colour: tuple[int, int, int]) -> NDArray[np.float64]:
    return np.array(colour) + rng.uniform(-12, 12, size=3)


def _shape(kind: str, x: Field, y: Field) -> Mask:
    """Mask of a kind's shape; about 0.7 from its centre to its rim."""
    radius = np.hypot(x, y)
    match kind:
        case "ball":
            return radius < 0.62
        case "box":
            return np.maximum(abs(x), abs(y)) < 0.54
        case "tent":
            return (y < 0.5) & (abs(x) < 0.36 * (y + 0.85) / 0.7)
        case "kite":
            return abs(x) + abs(y) < 0.75
        case "ring":
            return (radius < 0.7) & (radius > 0.32)
        case "star":
            return radius < 0.55 + 0.22 * np.cos(5 * np.arctan2(x, -y))  # type: ignore[no-any-return]  # NumPy says Any
        case "plank":
            return (abs(x) < 0.72) & (abs(y) < 0.3)
        case "moon":
            return (radius < 0.72) & (np.hypot(x - 0.42, y) > 0.52)
    raise ValueError(f"no shape is drawn for the kind {kind!r}")


def _pattern(pattern: str, x: Field, y: Field) -> Mask:
    """Mask of a pattern's ink, on the image's grid; a period is a third of the image."""
    period = 2 / 3
    row = np.mod(y, period) < period / 2
    column = np.mod(x, period) < period / 2
    match pattern:
        case "plain":
            return np.zeros(x.shape, dtype=bool)
        case "rows":
            return row
        case "columns":
            return column
        case "diagonals":
            return np.mod(x + y, np.sqrt(2) * period) < period / np.sqrt(2)  # type: ignore[no-any-return]  # NumPy says Any
        case "dots":
            return np.hypot(np.mod(x, period) - period / 2, np.mod(y, period) - period / 2) < 0.2
        case "checks":
            return row ^ column
    raise ValueError(f"no pattern {pattern!r} is drawn")


def _border(border: str, x: Field, y: Field) -> Mask:
    """Mask of a border: a frame along the image's rim."""
    rim = 1 - np.maximum(abs(x), abs(y))  # distance to the rim
    match border:
        case "none":
            return np.zeros(x.shape, dtype=bool)
        case "thin":
            return rim < 0.07
        case "thick":
            return rim < 0.19
        case "double":
            return (rim < 0.06) | ((rim > 0.125) & (rim < 0.19))
        case "dashed":
            return (rim < 0.125) & (np.mod(x + y, 0.5) < 0.25)
        case "corners":
            return (np.minimum(abs(x), abs(y)) > 0.62) & (rim < 0.19)
    raise ValueError(f"no border {border!r} is drawn")
