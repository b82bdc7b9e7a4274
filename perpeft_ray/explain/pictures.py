"""Pictures for the pages: an item's image, and attention over what the encoder sees of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perpeft_ray.data.images import UnreadableImageError, decode_rgb

SIDE = 160
"""Longest side in pixels."""


def thumbnail(root: Path, path: str | None) -> str | None:
    """An item's image as a data URI, or a placeholder if it cannot be read.

    `path` is relative to `root`; None gives None.
    """
    if path is None:
        return None
    try:
        image = decode_rgb(root / path)
    except UnreadableImageError:
        image = _placeholder()
    image.thumbnail((SIDE, SIDE))
    return data_uri(image)


def _placeholder() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "#e3e3e3")
    ImageDraw.Draw(image).text(
        (SIDE // 2, SIDE // 2), "image cannot\nbe read", "#555555", anchor="mm", align="center"
    )
    return image


def heat(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Image.Image:
    """Attention [rows, columns] over the encoder's pixels [3, S, S]: darker means less."""
    image = Image.fromarray(pixels.transpose(1, 2, 0)).resize(
        (SIDE, SIDE), Image.Resampling.NEAREST
    )
    shares = Image.fromarray((weights / weights.max()).astype(np.float32))
    light = np.asarray(shares.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).clip(0, 1)
    dimmed = np.asarray(image) * (0.15 + 0.85 * light[:, :, None])
    return Image.fromarray(dimmed.astype(np.uint8))


def data_uri(image: Image.Image) -> str:
    """A PNG as a data URI, so that a page is self-contained."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
