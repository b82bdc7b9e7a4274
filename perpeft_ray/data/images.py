"""Decodes images of any kind to RGB, for files and Pillow images alike."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 26
"""Most pixels of an image (8192 × 8192): a larger one would take over 200 MB and counts as
unreadable without being decoded."""

MAX_ASPECT = 32
"""Largest ratio of an image's sides; longer images are cropped to the middle. An encoder that
resizes the shorter side to 224 would blow 20,000 × 1 pixels up to a thousand million."""

_UNREADABLE = (
    OSError,  # with PIL.UnidentifiedImageError and truncated data
    SyntaxError,  # Pillow's error for a broken PNG or EXIF
    ValueError,
    KeyError,
    TypeError,  # from broken EXIF and TIFF tags
    EOFError,
    RuntimeError,  # from the AVIF decoder
    AssertionError,  # from an open image whose file was closed
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_SAMPLE_FORMAT, _UNSIGNED = 339, 1  # a TIFF tag


class UnreadableImageError(Exception):
    """The source is not a readable image; the message says why."""


def decode_rgb(source: Path | str | Image.Image) -> Image.Image:
    """An image file, or an open Pillow image, upright in mode RGB.

    EXIF's orientation is applied and transparency is laid on white. Greys of more than 8 bits are
    scaled by their range: 0..65535 for 16 bits; for 32 bits and floats the first of 0..1 (floats),
    0..255 and 0..65535 that holds (nearly) all values, else minimum to maximum. Takes an
    animation's first frame (an open image's current one) and the middle of a strip longer than
    `MAX_ASPECT`. Raises UnreadableImageError if the source is not an image, is truncated, or has no
    pixels or more than `MAX_PIXELS`.
    """
    try:
        if isinstance(source, Image.Image):
            return _rgb(source)
        with Image.open(source) as image:
            return _rgb(image)
    except _UNREADABLE as error:
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    pixels = image.width * image.height
    if not 0 < pixels <= MAX_PIXELS:
        how = "many" if pixels else "few"
        raise ValueError(f"{image.width} x {image.height} pixels are too {how}")
    image.load()
    # Pillow reads unsigned 32-bit TIFFs as signed, and loses the tags when it rotates the image.
    unsigned = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT) in (_UNSIGNED, (_UNSIGNED,))
    with suppress(*_UNREADABLE):  # EXIF may be broken in an image with good pixels
        image = ImageOps.exif_transpose(image)
    return _to_rgb(_middle(image), unsigned)


def _middle(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = ((side - min(side, longest)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _to_rgb(image: Image.Image, unsigned: bool) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image, unsigned)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, unsigned: bool) -> Image.Image:
    """A grey of 16 or 32 bits or floats as 8 bits, with alpha if it has a transparent value."""
    values = np.asarray(image)
    if values.dtype == np.int32 and unsigned:
        values = values.view(np.uint32)
    grey = Image.fromarray(_in_8_bits(values))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _in_8_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """uint8 of the same shape."""
    deep = values.astype(np.float64)
    finite = deep[np.isfinite(deep)]
    low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    if not len(finite):
        low = high = 0.0
    deep = np.nan_to_num(deep, nan=low, posinf=high, neginf=low)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:
        ranges: tuple[float, ...] = (65535.0,)
    else:
        ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    slack = 0.1 if values.dtype.kind == "f" else 0.0  # resizing overshoots at edges
    fits = [most for most in ranges if low >= -slack * most and high <= (1 + slack) * most]
    if fits:
        low, high = 0.0, fits[0]
    scaled = (deep - low) * (255.0 / (high - low or 1.0))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)  # type: ignore[no-any-return]  # NumPy says Any
