"""open_dataset: the forms of a URI, and the real data folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from perpeft_ray.data import toyshop
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.data.sources import absolute_dataset, open_dataset, raw_files
from perpeft_ray.data.split import split_dataset
from perpeft_ray.errors import InputError
from tests.data.prepare.test_amazon2023 import drawn, write_raw
from tests.data.prepare.test_release import write_release, zipped
from tests.small_shop import write_small_shop

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
        ("", FORMS + "''"),
        ("/no/such", FORMS + "'/no/such'"),
        ("{here}", FORMS + "'{here}'; did you mean 'parquet:{here}'?"),
        ("parquet:", "`dataset` must be parquet:PATH, but is 'parquet:'"),
        ("toyshop:-1", "`dataset` toyshop:SEED must have a whole number, but is 'toyshop:-1'"),
        ("toyshop:²", "`dataset` toyshop:SEED must have a whole number, but is 'toyshop:²'"),
    ],
)
def test_bad_uri(tmp_path, uri, message):
    with pytest.raises(InputError, match=f"^{re.escape(message.format(here=tmp_path))}$"):
        open_dataset(uri.format(here=tmp_path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["#arts", ""])
def test_release_is_prepared_once(tmp_path, name):
    source = write_release(tmp_path / "v#2" / "arts")
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


@pytest.mark.parametrize("archive", [False, True])
def test_changed_image_makes_another_prepared_folder(tmp_path, archive):
    """Also one of the same size and time of change."""

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


def test_leftovers_of_a_stopped_preparation_are_removed(tmp_path):
    write_release(tmp_path / "arts")
    prepared = tmp_path / "cache" / "prepared"
    for name in (".arts-0123abcd.unfinished", ".arts-x.unfinished", ".other-0123abcd.unfinished"):
        (prepared / name / "images").mkdir(parents=True)
    (prepared / ".arts-0123abcd.lock").touch()
    dataset = open_dataset(f"release:{tmp_path / 'arts'}#arts", tmp_path / "cache")
    left = {path.name for path in prepared.iterdir()} - {dataset.root.name}
    assert left == {".arts-x.unfinished", ".other-0123abcd.unfinished"}


def test_amazon2023_is_prepared_with_the_defaults(tmp_path):
    raw = write_raw(tmp_path / "raw", *drawn())
    dataset = open_dataset(f"amazon2023:{raw}#arts", tmp_path / "cache")
    prepare_amazon2023(raw, "arts", tmp_path / "out", Selection())
    assert dataset.fingerprint == load_folder(tmp_path / "out", "").fingerprint


@pytest.fixture
def raw(tmp_path):
    """A folder with a release, its archive, and the files of a category."""
    zipped(write_release(tmp_path / "arts"), tmp_path / "all.zip")
    write_raw(tmp_path, *drawn())
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "files"),
    [
        (
            "release:{raw}/arts",
            ["arts_final.txt", "arts_item2id_final.pickle", "arts_texts_final.pickle"],
        ),
        ("release:{raw}/all.zip#arts", ["all.zip"]),
        (
            "amazon2023:{raw}#arts",
            ["Arts_Crafts_and_Sewing.jsonl", "meta_Arts_Crafts_and_Sewing.jsonl"],
        ),
        ("toyshop", []),
        ("parquet:{raw}", []),
        ("", []),
    ],
)
def test_raw_files(raw, uri, files):
    assert [file.name for file in raw_files(uri.format(raw=raw))] == files


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("release:{raw}/all.zip#toys", r"must have toys_final\.txt, but .*all\.zip' has none"),
        ("release:{raw}/cut.zip#arts", "must be a whole zip archive"),
        ("amazon2023:{raw}/gz#arts", "must be a readable file, but Not a gzipped file"),
    ],
)
def test_raw_files_that_cannot_be_read(raw, uri, message):
    (raw / "cut.zip").write_bytes((raw / "all.zip").read_bytes()[:-30])
    for file in write_raw(raw / "gz", [], [], ".jsonl.gz").iterdir():
        file.write_text("no gzip")
    with pytest.raises(InputError, match=message):
        raw_files(uri.format(raw=raw))


@pytest.fixture
def seeds(monkeypatch, tmp_path):
    """The seeds for which a stand-in for the toyshop's generator ran."""
    ran: list[int] = []

    def write_toyshop(folder: Path, seed: int) -> None:
        ran.append(seed)
        if seed == 13:
            (folder / "items.parquet").write_text("half")
            raise RuntimeError("interrupted")
        folder.rmdir()
        write_small_shop(folder, items=3)

    monkeypatch.setattr(toyshop, "write_toyshop", write_toyshop)
    monkeypatch.setattr(toyshop, "__file__", str(tmp_path / "toyshop.py"))
    (tmp_path / "toyshop.py").write_text("version one")
    return ran


def test_toyshop_is_generated_once_per_seed_and_version(seeds, tmp_path):
    cache = tmp_path / "cache"
    first = open_dataset("toyshop", cache)
    assert first.uri == "toyshop"
    assert re.fullmatch("toyshop-0-[0-9a-f]{8}", first.root.name)
    assert open_dataset("toyshop:0", cache).root == first.root
    assert open_dataset("toyshop:7", cache).root.name.startswith("toyshop-7-")
    assert seeds == [0, 7]
    (tmp_path / "toyshop.py").write_text("version two")
    assert open_dataset("toyshop", cache).root != first.root
    assert seeds == [0, 7, 0]
    assert len(list(cache.iterdir())) == 3


def test_failed_generation_leaves_nothing(seeds, tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        open_dataset("toyshop:13", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "images"),
    [  # as stated in each folder's README.md
        ("amazon_scientific", 12_076, 20_825, 85_211, 0),
        ("movielens_posters", 938, 1_276, 32_433, 1_276),
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
        ("parquet:./a//shop/", "parquet:{here}/a/shop"),
        ("parquet:../x/shop#2", "parquet:{above}/x/shop#2"),
        ("parquet:/data/shop", "parquet:/data/shop"),
        ("release:r.zip", "release:{here}/r.zip"),
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
