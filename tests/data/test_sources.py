"""open_dataset: the forms of a URI, and the real data folders."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import perpeft_ray.data
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.data.sources import absolute_dataset, open_dataset, raw_files
from perpeft_ray.data.split import split_dataset
from perpeft_ray.errors import InputError
from tests.data.prepare.test_amazon2023 import drawn, write_raw
from tests.data.prepare.test_release import write_release, zipped

FORMS = (
    "`dataset` must be toyshop[:SEED], parquet:PATH, release:PATH#NAME or "
    "amazon2023:RAW_DIR#CATEGORY, but is "
)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("toyshp", FORMS + "'toyshp'; did you mean toyshop[:SEED]?"),
        ("parqet:/data", FORMS + "'parqet:/data'; did you mean parquet:PATH?"),
        (
            "amazon2023:Beauty",
            "`dataset` must be amazon2023:RAW_DIR#CATEGORY, but is 'amazon2023:Beauty'",
        ),
        ("release:#arts", "`dataset` must be release:PATH#NAME, but is 'release:#arts'"),
        (
            "release:/no/such.zip#arts",
            "the release must be a folder or a zip, but '/no/such.zip' is none",
        ),
        ("", FORMS + "''"),
        ("/no/such", FORMS + "'/no/such'"),
        ("parquet:", "`dataset` must be parquet:PATH, but is 'parquet:'"),
        ("toyshop:-1", "`dataset` toyshop:SEED must have a whole number, but is 'toyshop:-1'"),
        ("toyshop:²", "`dataset` toyshop:SEED must have a whole number, but is 'toyshop:²'"),
    ],
)
def test_bad_uri(tmp_path, uri, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        open_dataset(uri, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_plain_folder_is_told_its_uri(write_folder, tmp_path):
    folder = write_folder()
    message = f"{FORMS}{str(folder)!r}; did you mean 'parquet:{folder}'?"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        open_dataset(str(folder), tmp_path)


@pytest.mark.parametrize("name", ["#arts", ""])
def test_a_release_is_prepared_once(tmp_path, name):
    source = write_release(tmp_path / "arts")
    uri, cache = f"release:{source}{name}", tmp_path / "cache"
    dataset = open_dataset(uri, cache)
    prepare_release(source, "arts", tmp_path / "out")
    assert dataset.uri == uri
    assert dataset.fingerprint == load_folder(tmp_path / "out", "").fingerprint
    assert re.fullmatch("arts-[0-9a-f]{8}", dataset.root.name)
    table = dataset.root / "items.parquet"
    made = table.stat().st_mtime_ns
    assert open_dataset(uri, cache).root == dataset.root
    assert table.stat().st_mtime_ns == made
    (source / "arts_final.txt").write_text("1 1\n1 2\n")
    changed = open_dataset(uri, cache)
    assert changed.root != dataset.root
    assert len(changed.interactions) == 2


def test_amazon2023_is_prepared_with_the_defaults(tmp_path):
    raw = write_raw(tmp_path / "raw", *drawn())
    dataset = open_dataset(f"amazon2023:{raw}#arts", tmp_path / "cache")
    prepare_amazon2023(raw, "arts", tmp_path / "out", Selection())
    assert dataset.fingerprint == load_folder(tmp_path / "out", "").fingerprint


def test_raw_files_are_told_without_preparing_them(tmp_path):
    release = write_release(tmp_path / "release" / "arts")
    raw = write_raw(tmp_path / "raw", *drawn())
    names = {"arts_final.txt", "arts_item2id_final.pickle", "arts_texts_final.pickle"}
    assert {file.name for file in raw_files(f"release:{release}")} == names
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", release))
    assert raw_files(f"release:{archive}#arts") == [archive]
    files = raw_files(f"amazon2023:{raw}#arts")
    assert len(files) == 2
    assert raw_files("toyshop") == raw_files(f"parquet:{raw}") == raw_files("") == []

    with pytest.raises(InputError, match=r"must have toys_final\.txt, but .*all\.zip' has none"):
        raw_files(f"release:{archive}#toys")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match="must be a whole zip archive"):
        raw_files(f"release:{archive}#arts")
    compressed = files[0].with_name(files[0].name.removesuffix(".gz") + ".gz")
    files[0].unlink()
    compressed.write_text("no gzip")
    with pytest.raises(InputError, match="must be a readable file, but Not a gzipped file"):
        raw_files(f"amazon2023:{raw}#arts")


@pytest.fixture
def generator(monkeypatch, tmp_path, write_folder):
    """A stand-in for the toyshop's generator that counts its runs."""
    module = ModuleType("perpeft_ray.data.toyshop")
    module.__file__ = str(tmp_path / "toyshop.py")
    Path(module.__file__).write_text("version one")
    module.seeds = []  # type: ignore[attr-defined]  # a module made here

    def write_toyshop(folder: Path, seed: int) -> None:
        module.seeds.append(seed)
        (folder / "images").mkdir()
        for file in write_folder().rglob("*.p*"):
            (folder / file.relative_to(write_folder())).write_bytes(file.read_bytes())

    module.write_toyshop = write_toyshop  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(perpeft_ray.data, "toyshop", module, raising=False)
    return module


def test_toyshop_is_generated_once_a_seed_and_version(generator, tmp_path):
    cache = tmp_path / "cache"
    first = open_dataset("toyshop", cache)
    assert first.uri == "toyshop"
    assert re.fullmatch("toyshop-0-[0-9a-f]{8}", first.root.name)
    assert open_dataset("toyshop:0", cache).root == first.root
    assert generator.seeds == [0]

    assert open_dataset("toyshop:7", cache).root.name.startswith("toyshop-7-")
    assert generator.seeds == [0, 7]

    Path(generator.__file__).write_text("version two")
    assert open_dataset("toyshop", cache).root != first.root
    assert generator.seeds == [0, 7, 0]
    assert len(list(cache.iterdir())) == 3


def test_a_generator_that_fails_leaves_nothing(generator, tmp_path):
    def fail(folder: Path, seed: int) -> None:
        (folder / "items.parquet").write_text("half")
        raise RuntimeError("interrupted")

    generator.write_toyshop = fail
    with pytest.raises(RuntimeError, match="interrupted"):
        open_dataset("toyshop", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "images"),
    [  # as stated in each folder's README.md
        ("amazon_scientific", 12_076, 20_825, 85_211, 0),
        ("amazon_scientific_small", 1_000, 4_286, 6_991, 0),
        ("movielens_posters", 938, 1_276, 32_433, 1_276),
        ("movielens_posters_small", 300, 500, 9_087, 500),
    ],
)
def test_shared_folders(shared_data, tmp_path, name, users, items, interactions, images):
    dataset = open_dataset(f"parquet:{shared_data / name}", tmp_path)
    assert len(dataset.interactions) == interactions
    assert sum(image is not None for image in dataset.items["image"]) == images
    split = split_dataset(dataset)
    assert (split.num_users, split.num_items) == (users, items)
    assert len(split.evaluated("test")) == users  # every user has at least five interactions
    assert len(split.train.items) == interactions - 2 * users


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("toyshop:3", "toyshop:3"),
        ("parquet:", "parquet:"),
        ("elsewhere:x", "elsewhere:x"),
        ("parquet:shop", "parquet:{here}/shop"),
        ("parquet:./a//shop/", "parquet:{here}/a/shop"),
        ("parquet:../x/shop#2", "parquet:{above}/x/shop#2"),
        ("parquet:/data/shop", "parquet:/data/shop"),
        ("release:r.zip", "release:{here}/r.zip"),
        ("release:r.zip#arts", "release:{here}/r.zip#arts"),
        ("release:v#2/r.zip#arts", "release:{here}/v#2/r.zip#arts"),
        ("release:v#2/r.zip", "release:{here}/v#2/r.zip"),
        ("amazon2023:raw#arts", "amazon2023:{here}/raw#arts"),
    ],
)
def test_absolute_dataset(uri, absolute, tmp_path, monkeypatch):
    here = (tmp_path / "here").resolve()
    here.mkdir()
    monkeypatch.chdir(here)
    expected = absolute.format(here=here, above=here.parent)
    assert absolute_dataset(uri) == expected
    assert absolute_dataset(expected) == expected


def test_a_name_may_be_left_out_where_the_path_has_a_hash(tmp_path, monkeypatch):
    write_release(tmp_path / "v#2" / "arts")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("release:v#2/arts", tmp_path / "cache")
    named = open_dataset("release:v#2/arts#arts", tmp_path / "cache")
    assert dataset.fingerprint == named.fingerprint


@pytest.mark.parametrize("archive", [False, True])
def test_another_image_makes_another_prepared_folder(tmp_path, archive):
    """Also of the same size and time of change."""

    def release() -> Path:
        if not archive:
            return tmp_path / "arts"
        return zipped(tmp_path / "arts", tmp_path / "arts.zip")

    write_release(tmp_path / "arts")
    image = tmp_path / "arts" / "arts_images" / "B001.jpg"
    first = open_dataset(f"release:{release()}#arts", tmp_path / "cache")
    stats = [path.stat() for path in (image, release())]
    whole = bytearray(image.read_bytes())
    whole[-3] ^= 1
    image.write_bytes(whole)
    for path, stat in zip((image, release()), stats, strict=True):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = open_dataset(f"release:{release()}#arts", tmp_path / "cache")
    assert first.root != second.root
    assert first.fingerprint != second.fingerprint
    assert load_folder(first.root, first.uri).fingerprint == first.fingerprint


def test_what_a_stopped_preparation_of_other_files_has_left_is_removed(tmp_path):
    write_release(tmp_path / "arts")
    prepared = tmp_path / "cache" / "prepared"
    for name in (".arts-0123abcd.unfinished", ".arts-x.unfinished", ".other-0123abcd.unfinished"):
        (prepared / name / "images").mkdir(parents=True)
    (prepared / ".arts-0123abcd.lock").touch()
    dataset = open_dataset(f"release:{tmp_path / 'arts'}#arts", tmp_path / "cache")
    left = {path.name for path in prepared.iterdir()} - {dataset.root.name}
    assert left == {".arts-x.unfinished", ".other-0123abcd.unfinished"}
