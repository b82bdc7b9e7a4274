"""Image files of any kind as plain RGB."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_log = logging.getLogger(__name__)

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


def read_rgb(path: Path) -> Image.Image | None:
    """The image upright in mode RGB; None, with a logged warning, where the file is no image.

    EXIF's orientation is applied, transparency is laid onto white, 16-bit grey is scaled to 8 bits;
    of an animation the first frame counts.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        _log.warning("%s is not a readable image and counts as missing: %s", path, error)
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
