"""kill -9 in every phase of preparing; the same command then ends with the same fingerprint."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.database import Database
from perpeft_ray.data.prepare.normalise import prepare_parquet
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg
from tests.data.prepare.test_amazon2023 import CATEGORY, drawn, meta, picture, review, write_raw
from tests.data.prepare.test_release import write_release, zipped

ROOT = Path(__file__).parents[3]


def killed(arguments: list[str], reached: Callable[[], bool]) -> None:
    """Run `perpeft prepare`, and kill it -9 as soon as `reached`."""
    code = "from perpeft_ray.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "prepare", *arguments], cwd=ROOT, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 90
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_killed_while_tables_are_made(tmp_path):
    """At moments of the relational work from its first, when DuckDB makes its file, on."""
    raw = write_raw(tmp_path / "raw", *drawn(users=8000, items=3000, lines=120_000))
    prepare_amazon2023(raw, CATEGORY, tmp_path / "alone", Selection())
    expected = load_folder(tmp_path / "alone", "").fingerprint
    out, scratch = tmp_path / "out", tmp_path / ".out.unfinished" / "scratch"
    command = ["amazon2023", "--raw", str(raw), "--category", CATEGORY, "--out", str(out)]
    for wait in (0.0, 0.15):
        seen: list[float] = []

        def reached(wait: float = wait, seen: list[float] = seen) -> bool:
            if not seen and any(scratch.glob("tables.*")):
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] >= wait

        killed(command, reached)
        assert not out.exists()
    prepare_amazon2023(raw, CATEGORY, out, Selection())
    assert load_folder(out, "").fingerprint == expected


def test_killed_while_images_are_fetched(tmp_path, web):
    items = [f"B{number:03d}" for number in range(60)]
    web.files = {f"/{item}.jpg": jpeg(number) for number, item in enumerate(items) if number != 7}
    web.pause = 0.05
    metas = [meta(item, item, [picture(f"{web.address}/{item}.jpg")]) for item in items]
    raw = write_raw(tmp_path / "raw", [review("U", item, 1) for item in items], metas)
    selection = Selection(core=1)
    prepare_amazon2023(raw, CATEGORY, tmp_path / "alone", selection)
    expected = load_folder(tmp_path / "alone", "").fingerprint
    web.requests.clear()

    out, images = tmp_path / "out", tmp_path / ".out.unfinished" / "images"
    command = ["amazon2023", "--raw", str(raw), "--category", CATEGORY, "--out", str(out)]
    command += ["--core", "1", "--images.connections", "2"]
    killed(command, lambda: len(list(images.glob("*.jpg"))) >= 20)
    done = {path.stem for path in images.glob("*.jpg")}
    assert 20 <= len(done) < 59
    assert not out.exists()
    web.requests.clear()
    prepare_amazon2023(raw, CATEGORY, out, selection)
    assert load_folder(out, "").fingerprint == expected
    assert set(web.requests) == {f"/{item}.jpg" for item in items if item not in done}


def many_images(folder: Path, count: int = 1200) -> Path:
    """A release of many items that share one picture."""
    ids = {number: f"B{number:04d}" for number in range(1, count + 1)}
    lines = "".join(f"{user} {number}\n" for user in (1, 2) for number in ids)
    write_release(folder, lines=lines, ids=ids, titles={item: item for item in ids.values()})
    images = folder / "arts_images"
    (images / "B002.jpg").unlink()
    for item in ids.values():
        (images / f"{item}.jpg").hardlink_to(images / "B001.jpg")
    (images / "B0007.jpg").unlink()
    (images / "B0009.jpg").unlink()
    (images / "B0009.jpg").write_bytes(b"no image")
    return folder


def count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.jpg"))


def test_a_release_killed_while_unpacked_and_copied(tmp_path):
    archive = zipped(many_images(tmp_path / "arts"), tmp_path / "release.zip")
    prepare_release(archive, "arts", tmp_path / "alone")
    expected = load_folder(tmp_path / "alone", "").fingerprint
    out, working = tmp_path / "out", tmp_path / ".out.unfinished"
    command = ["release", str(archive), "--name", "arts", "--out", str(out)]
    unpacked = working / "scratch" / "release.part" / "arts_images"
    for images in (unpacked, working / "images"):
        killed(command, lambda images=images: count(images) >= 20)  # type: ignore[misc]  # its default's type
        assert 20 <= count(images) < 1198
        assert not out.exists()
    prepare_release(archive, "arts", out)
    assert load_folder(out, "").fingerprint == expected
    assert {path.name for path in out.iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
    listed = [(folder / "images_failed.csv").read_text() for folder in (tmp_path / "alone", out)]
    assert listed[0].count("\n") == listed[1].count("\n") == 3


def test_a_folder_of_ones_own_killed_while_images_are_copied(tmp_path):
    prepare_release(many_images(tmp_path / "arts"), "arts", tmp_path / "in")
    shutil.copyfile(tmp_path / "in/images/B0001.jpg", tmp_path / "in/images/B0007.jpg")
    items = pd.read_parquet(tmp_path / "in/items.parquet")
    items.loc[6, "image"] = "images/none.jpg"
    items.to_parquet(tmp_path / "in/items.parquet")
    repairs = prepare_parquet(tmp_path / "in", tmp_path / "alone")
    expected = load_folder(tmp_path / "alone", "").fingerprint
    out, working = tmp_path / "out", tmp_path / ".out.unfinished"
    command = ["parquet", str(tmp_path / "in"), "--out", str(out)]
    killed(command, (working / "scratch" / "tables.duckdb").exists)
    killed(command, lambda: count(working / "images") >= 20)
    assert 20 <= count(working / "images") < 1198
    assert not out.exists()
    assert prepare_parquet(tmp_path / "in", out) == repairs
    assert repairs.failed_images == 1
    assert load_folder(out, "").fingerprint == expected


def test_finished_tables_are_not_made_again(tmp_path):
    file = tmp_path / "tables.duckdb"
    with Database(file, memory_gb=0.1) as database:
        assert database.table("numbers", "SELECT * FROM range(5)") == 5
    with Database(file, memory_gb=0.1) as database:
        assert database.table("numbers", "SELECT * FROM range(7)") == 5


def test_too_little_memory_is_told_and_more_goes_on(tmp_path):
    file = tmp_path / "tables.duckdb"
    with Database(file, memory_gb=0.5) as database:
        database.table("numbers", "SELECT * FROM range(5)")
    query = "SELECT list(range ORDER BY hash(range)) AS all FROM range(2000000)"
    with (
        Database(file, memory_gb=0.01) as database,
        pytest.raises(InputError, match=r"^`memory_gb` must be more for these data, but is 0\.01$"),
    ):
        database.table("longer", query)
    with Database(file, memory_gb=0.5) as database:
        assert database.count("numbers") == 5
        assert database.table("longer", query) == 1


def test_another_recipe_starts_anew(tmp_path):
    raw = write_raw(tmp_path / "raw", *drawn())
    working = tmp_path / ".out.unfinished"
    (working / "scratch").mkdir(parents=True)
    (working / "images").mkdir()
    (working / "prepare.json").write_text('{"source": "another"}\n')
    (working / "images" / "left.jpg").write_bytes(b"x")
    (working / "scratch" / "tables.duckdb").write_bytes(b"of another format")
    prepare_amazon2023(raw, CATEGORY, tmp_path / "out", Selection())
    assert list((tmp_path / "out" / "images").iterdir()) == []
