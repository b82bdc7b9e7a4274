"""Images of any kind as plain RGB: the one decoder, for files and Pillow images alike."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 26
"""Of an image (67 million, 8192 × 8192): a larger one would take over 200 MB and counts as
unreadable before it is decoded."""

MAX_ASPECT = 32
"""Times that an image's longer side is its shorter one; of longer images the middle counts. An
encoder that resizes the shorter side to 224 would make 20,000 × 1 pixels a thousand million."""

_UNREADABLE = (
    OSError,  # with PIL.UnidentifiedImageError and truncated data
    SyntaxError,  # Pillow's word for a broken PNG or EXIF
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
    """What is no readable image, and why."""


def decode_rgb(source: Path | str | Image.Image) -> Image.Image:
    """An image file, or an image that Pillow has open, upright in mode RGB.

    EXIF's orientation is applied and transparency laid onto white. Greys of more than 8 bits are
    scaled by their range: 0..65535 for 16 bits; for 32 bits and floats the first of 0..1 (floats),
    0..255 and 0..65535 that has (nearly) all values, or else from the least to the greatest. Of an
    animation the first frame counts (of an open image the present one), of a strip longer than
    `MAX_ASPECT` its middle. Raises UnreadableImageError where the source is no image, is cut short,
    or has no pixels or more than `MAX_PIXELS`.
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
    # Pillow reads 32 unsigned bits of a TIFF as signed, and loses its tags when it turns the image.
    unsigned = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT) in (_UNSIGNED, (_UNSIGNED,))
    with suppress(*_UNREADABLE):  # the EXIF block may be broken where the pixels are good
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
    """A grey of 16 or 32 bits, or of floats, as one of 8 bits, with alpha where one is clear."""
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
