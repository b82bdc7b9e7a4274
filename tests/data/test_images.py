"""decode_rgb: every kind of image file against pixels known by hand, and broken files."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perpeft_ray.data.images import UnreadableImageError, decode_rgb


def rgb_of(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    rgb = decode_rgb(path)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


def test_exif_rotation(tmp_path):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to see it upright
    rgb = rgb_of(Image.fromarray(pixels), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(rgb, np.rot90(pixels, -1))


def test_grey(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(rgb_of(Image.fromarray(grey), tmp_path / "8.png"), expected)
    deep = grey.astype(np.uint16) * 257  # 0..65535
    np.testing.assert_array_equal(rgb_of(Image.fromarray(deep), tmp_path / "16.png"), expected)
    np.testing.assert_array_equal(rgb_of(Image.fromarray(deep), tmp_path / "16.tif"), expected)


def test_black_and_white(tmp_path):
    bits = np.eye(8, dtype=bool)
    expected = np.stack([bits * np.uint8(255)] * 3, axis=2)
    np.testing.assert_array_equal(rgb_of(Image.fromarray(bits), tmp_path / "1.png"), expected)


def test_cmyk(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    rgb = rgb_of(ink, tmp_path / "ink.jpg", quality=95)
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() < 8


def test_transparency_is_laid_onto_white(tmp_path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = (0, 51, 255)  # clear, a fifth, opaque
    expected = [[[255, 255, 255], [244, 204, 204], [200, 0, 0]]]
    np.testing.assert_array_equal(rgb_of(Image.fromarray(pixels), tmp_path / "a.png"), expected)

    grey = Image.fromarray(np.array([[[0, 0], [0, 255]]], dtype=np.uint8), mode="LA")
    expected = [[[255] * 3, [0] * 3]]
    np.testing.assert_array_equal(rgb_of(grey, tmp_path / "la.png"), expected)

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    expected = [[[10, 20, 30], [40, 50, 60]]]
    np.testing.assert_array_equal(rgb_of(palette, tmp_path / "p.png"), expected)
    clear = rgb_of(palette, tmp_path / "clear.png", transparency=0)
    np.testing.assert_array_equal(clear, [[[255, 255, 255], [40, 50, 60]]])


def test_strips_are_cut_to_their_middle(tmp_path):
    row = np.arange(1000, dtype=np.uint16) % 251
    pixels = np.stack([row.astype(np.uint8)[None]] * 3, axis=2)  # [1, 1000, 3]
    middle = pixels[:, 484:516]
    np.testing.assert_array_equal(rgb_of(Image.fromarray(pixels), tmp_path / "w.png"), middle)
    tall = Image.fromarray(pixels.transpose(1, 0, 2).copy())
    expected = middle.transpose(1, 0, 2)
    np.testing.assert_array_equal(rgb_of(tall, tmp_path / "h.png"), expected)
    whole = Image.new("RGB", (64, 2), (1, 2, 3))
    assert rgb_of(whole, tmp_path / "32.png").shape == (2, 64, 3)


def test_too_many_pixels_are_not_decoded(tmp_path):
    for side in (8193, 20_000):
        Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
        started = time.perf_counter()
        with pytest.raises(UnreadableImageError, match=r"too many|could be decompression bomb"):
            decode_rgb(tmp_path / f"{side}.png")
        assert time.perf_counter() - started < 1


@pytest.mark.filterwarnings("ignore:::PIL")  # Pillow on broken metadata and huge sizes
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_no_broken_file_escapes(tmp_path, kind):
    """Files cut short or with bytes changed either decode or count as missing."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind, exif=exif)
    whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    path = tmp_path / "broken"
    refused = 0
    for _ in range(150):
        broken = whole[: rng.integers(0, len(whole) + 1)].copy()
        if len(broken):
            places = rng.integers(0, min(len(broken), 200), 3)
            broken[places] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        try:
            assert decode_rgb(path).mode == "RGB"
        except UnreadableImageError:
            refused += 1
    assert 50 < refused <= 150
