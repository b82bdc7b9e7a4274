"""decode_rgb: every kind of image file against pixels known by hand, and broken files."""

from __future__ import annotations

import io
import struct
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


GREY = np.arange(256).reshape(16, 16)
EXPECTED = np.stack([GREY] * 3, axis=2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((GREY * 257).astype(np.uint16), EXPECTED),
        (GREY.astype(np.int32), EXPECTED),
        ((GREY * 257).astype(np.int32), EXPECTED),
        ((GREY * 8_000_000).astype(np.int32), EXPECTED),
        ((GREY * 5 - 700).astype(np.int32), EXPECTED),
        ((GREY / 255).astype(np.float32), EXPECTED),
        ((GREY / 255 * 1.04 - 0.02).astype(np.float32), np.rint(EXPECTED * 1.04 - 5.1)),
        (GREY.astype(np.float32), EXPECTED),
        ((GREY * 257).astype(np.float32), EXPECTED),
        ((GREY * 1e9 - 3e10).astype(np.float32), EXPECTED),
        (np.full((2, 2), np.nan, np.float32), np.zeros((2, 2, 3))),
        (np.full((2, 2), np.inf, np.float32), np.zeros((2, 2, 3))),
    ],
)
def test_deep_greys_are_scaled_by_their_range(tmp_path, values, expected):
    image = Image.fromarray(values)
    expected = expected.clip(0, 255)
    np.testing.assert_allclose(np.asarray(decode_rgb(image)), expected, atol=1)
    np.testing.assert_allclose(rgb_of(image, tmp_path / "deep.tif"), expected, atol=1)


def test_unsigned_32_bits(tmp_path):
    values = (GREY * 16_843_009).astype(np.uint32)  # 0..2**32 - 1
    image = Image.fromarray(values.view(np.int32))
    image.save(tmp_path / "u.tif")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
    whole = (tmp_path / "u.tif").read_bytes()
    assert whole.count(signed) == 1
    (tmp_path / "u.tif").write_bytes(whole.replace(signed, unsigned))
    np.testing.assert_array_equal(np.asarray(decode_rgb(tmp_path / "u.tif")), EXPECTED)


def test_transparent_grey_of_16_bits(tmp_path):
    deep = Image.fromarray(np.array([[0, 65535, 257 * 7]], dtype=np.uint16))
    rgb = rgb_of(deep, tmp_path / "clear.png", transparency=0)
    np.testing.assert_array_equal(rgb, [[[255] * 3, [255] * 3, [7] * 3]])


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def in_mode(mode: str) -> Image.Image:
    image = Image.fromarray(COLOURS)
    if mode in ("LA", "La"):
        image = image.convert("L").convert("LA")
    return image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"])
def test_colours_of_every_mode_are_kept(mode):
    rgb = np.asarray(decode_rgb(in_mode(mode)), dtype=int)
    assert np.abs(rgb - COLOURS).max() <= 20  # LAB and HSV round
    assert np.abs(rgb - COLOURS).mean() < 3


@pytest.mark.parametrize("mode", ["L", "LA", "La", "1", "P", "PA"])
def test_other_modes_are_as_pillow_converts_them(mode):
    image = in_mode(mode)
    plain = image.convert("LA") if mode == "La" else image
    np.testing.assert_array_equal(np.asarray(decode_rgb(image)), np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_files_and_open_images(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = rgb_of(Image.fromarray(COLOURS), tmp_path / "turned.png", exif=exif)
    assert upright.shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(np.asarray(decode_rgb(image)), upright)
    np.testing.assert_array_equal(np.asarray(decode_rgb(str(tmp_path / "turned.png"))), upright)


def test_broken_exif_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    at = whole.index(b"Exif") + 8
    (tmp_path / "a.jpg").write_bytes(whole[:at] + b"\xff" * 12 + whole[at + 12 :])
    assert decode_rgb(tmp_path / "a.jpg").size == (20, 12)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif"])
def test_truncated_file_is_unreadable(tmp_path, ending):
    big = Image.fromarray(COLOURS).resize((300, 300))
    big.save(tmp_path / f"whole.{ending}")
    whole = (tmp_path / f"whole.{ending}").read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UnreadableImageError):
        decode_rgb(cut)
    try:
        image = Image.open(cut)
    except OSError:
        return
    with image, pytest.raises(UnreadableImageError):
        decode_rgb(image)


def test_image_without_pixels_or_closed_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="too few"):
        decode_rgb(Image.new("RGB", (0, 5)))
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(UnreadableImageError):
        decode_rgb(image)


def test_transparency_is_laid_on_white(tmp_path):
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


def test_strips_are_cropped_to_their_middle(tmp_path):
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
    for side in (8193, 14_000):  # Pillow itself refuses the second
        Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
        with pytest.raises(UnreadableImageError, match=r"too many|could be decompression bomb"):
            decode_rgb(tmp_path / f"{side}.png")


@pytest.mark.filterwarnings("ignore:::PIL")  # Pillow on broken metadata and huge sizes
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_damaged_file_decodes_or_is_unreadable(tmp_path, kind):
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
