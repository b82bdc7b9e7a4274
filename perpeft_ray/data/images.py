"""Image files of any kind as plain RGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 26
"""Of an image file (67 million, 8192 × 8192): a larger one would take over 200 MB and counts as
unreadable before it is decoded."""

MAX_ASPECT = 32
"""Times that an image's longer side is its shorter one; of longer images the middle counts. An
encoder that resizes the shorter side to 224 would make 20,000 × 1 pixels a thousand million."""

_UNREADABLE = (
    OSError,  # with PIL.UnidentifiedImageError and truncated data
    SyntaxError,  # Pillow's word for a broken PNG or EXIF
    ValueError,
    EOFError,
    RuntimeError,  # from the AVIF decoder
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(Exception):
    """A file that is no readable image, and why."""


def decode_rgb(path: Path) -> Image.Image:
    """The image upright in mode RGB; raises UnreadableImageError where the file is no image.

    EXIF's orientation is applied, transparency is laid onto white, 16-bit grey is scaled to 8 bits;
    of an animation the first frame counts, of a strip longer than `MAX_ASPECT` its middle. More
    than `MAX_PIXELS` are not read.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return _to_rgb(_middle(ImageOps.exif_transpose(image)))
    except _UNREADABLE as error:
        raise UnreadableImageError(str(error)) from error


def _middle(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = ((side - min(side, longest)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
