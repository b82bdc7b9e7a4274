"""After kill -9 the same command resumes, and ends with the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.database import Database
from perpeft_ray.data.prepare.images import Limits
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.errors import InputError
from tests.data.conftest import killed
from tests.data.prepare.conftest import jpeg
from tests.data.prepare.test_amazon2023 import CATEGORY, drawn, meta, picture, review, write_raw
from tests.data.prepare.test_release import write_release, zipped


def count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.jpg"))


def test_killed_download_fetches_no_image_twice(tmp_path, web):
    items = [f"B{number:03d}" for number in range(60)]
    web.files = {f"/{item}.jpg": jpeg(number) for number, item in enumerate(items) if number != 7}
    metas = [meta(item, item, [picture(f"{web.address}/{item}.jpg")]) for item in items]
    raw = write_raw(tmp_path / "raw", [review("U", item, 1) for item in items], metas)
    selection = Selection(core=1)
    prepare_amazon2023(raw, CATEGORY, tmp_path / "alone", selection)
    expected = load_folder(tmp_path / "alone", "").fingerprint

    web.pause = 0.05
    out, images = tmp_path / "out", tmp_path / ".out.unfinished" / "images"
    limits = Limits(connections=2)
    killed(
        lambda: prepare_amazon2023(raw, CATEGORY, out, selection, limits=limits),
        lambda: count(images) >= 20,
    )
    done = {path.stem for path in images.glob("*.jpg")}
    assert 20 <= len(done) < 59
    assert not out.exists()
    web.requests.clear()
    web.pause = 0
    prepare_amazon2023(raw, CATEGORY, out, selection)
    assert load_folder(out, "").fingerprint == expected
    assert set(web.requests) == {f"/{item}.jpg" for item in items if item not in done}


def test_killed_release_resumes(tmp_path):
    ids = {number: f"B{number:04d}" for number in range(1, 801)}
    lines = "".join(f"{user} {number}\n" for user in (1, 2) for number in ids)
    titles = {item: item for item in ids.values()}
    images = write_release(tmp_path / "arts", lines=lines, ids=ids, titles=titles) / "arts_images"
    for item in ids.values():
        (images / f"{item}.jpg").hardlink_to(images / "B001.jpg")
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    prepare_release(archive, "arts", tmp_path / "alone")
    expected = load_folder(tmp_path / "alone", "").fingerprint
    out, working = tmp_path / "out", tmp_path / ".out.unfinished"
    for images in (working / "scratch" / "release.part" / "arts_images", working / "images"):
        killed(
            lambda: prepare_release(archive, "arts", out),
            lambda images=images: count(images) >= 20,  # type: ignore[misc]  # its default's type
        )
        assert 20 <= count(images) < 800
        assert not out.exists()
    (working / ".parquet.new").write_bytes(b"PAR1 half a table, of a kill while it was written")
    prepare_release(archive, "arts", out)
    assert load_folder(out, "").fingerprint == expected
    names = [{path.name for path in folder.iterdir()} for folder in (tmp_path / "alone", out)]
    assert names[0] == names[1]


def test_too_little_memory_is_one_clear_line(tmp_path):
    query = "SELECT list(range ORDER BY hash(range)) AS all FROM range(2000000)"
    with (
        Database(tmp_path, memory_gb=0.01) as database,
        pytest.raises(InputError, match=r"^`memory_gb` must be more for these data, but is 0\.01$"),
    ):
        database.table("longer", query)


def test_another_recipe_starts_anew(tmp_path):
    raw = write_raw(tmp_path / "raw", *drawn())
    working = tmp_path / ".out.unfinished"
    (working / "images").mkdir(parents=True)
    (working / "prepare.json").write_text('{"source": "another"}\n')
    (working / "images" / "left.jpg").write_bytes(b"x")
    prepare_amazon2023(raw, CATEGORY, tmp_path / "out", Selection())
    assert not (tmp_path / "out" / "images").exists()
