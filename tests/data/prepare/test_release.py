"""prepare_release on a small archive of the published form, and on hostile ones."""

from __future__ import annotations

import io
import pickle
import re
import stat
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg

IDS = {1: "B001", 2: "B002", 3: "B003", 4: "B004"}
TITLES = {"B001": "Red yarn", "B002": " Blue\n yarn ", "B003": " "}
LINES = "1 1\n1 2\n1 3\n2 3\n2 1\n2 3\n2 2\n"


def write_release(
    folder: Path,
    *,
    lines: str = LINES,
    ids: object = None,
    titles: object = None,
    name: str = "arts",
) -> Path:
    """The files of a data set as in the release; B002 has a broken image, B004 none."""
    images = folder / f"{name}_images"
    images.mkdir(parents=True)
    (folder / f"{name}_final.txt").write_text(lines)
    for what, content in (("item2id", ids or IDS), ("texts", titles or TITLES)):
        file = folder / f"{name}_{what}_final.pickle"
        file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    for number, item_id in enumerate(("B001", "B003")):
        (images / f"{item_id}.jpg").write_bytes(jpeg(number))
    (images / "B002.jpg").write_bytes(jpeg(9)[:100])
    return folder


def zipped(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return file


@pytest.fixture
def arts(tmp_path):
    return write_release(tmp_path / "arts")


@pytest.fixture
def archive(arts, tmp_path):
    return zipped(arts, tmp_path / "release.zip")


def nested(tmp_path: Path, prefix: str = "") -> Path:
    """A zip of `release.zip`."""
    (tmp_path / "outer").mkdir()
    (tmp_path / "release.zip").rename(tmp_path / "outer" / "inner.zip")
    return zipped(tmp_path / "outer", tmp_path / "outer.zip", prefix)


def test_folder_becomes_tables_and_images(arts, tmp_path):
    out = tmp_path / "out"
    prepare_release(tmp_path, "arts", out)
    dataset = load_folder(out, "out")
    assert list(dataset.interactions.itertuples(index=False, name=None)) == [
        ("1", "B001", 0),
        ("1", "B002", 1),
        ("1", "B003", 2),
        ("2", "B003", 3),
        ("2", "B001", 4),
        ("2", "B003", 5),
        ("2", "B002", 6),
    ]
    assert dataset.items.values.tolist() == [
        ["B001", "Red yarn", "images/B001.jpg"],
        ["B002", "Blue yarn", None],
        ["B003", None, "images/B003.jpg"],
        ["B004", None, None],
    ]
    assert (out / "images" / "B003.jpg").read_bytes() == jpeg(1)
    assert pd.read_csv(out / "images_failed.csv")[["item_id", "reason"]].values.tolist() == [
        ["B002", "not a readable image"],
        ["B004", "missing"],
    ]


def test_zip_of_zips_is_the_same(arts, tmp_path):
    zipped(arts, tmp_path / "release.zip", "arts/")
    outer = nested(tmp_path, "data/")
    prepare_release(outer, "arts", tmp_path / "out")
    prepare_release(arts, "arts", tmp_path / "plain")
    first, second = (load_folder(tmp_path / name, "").fingerprint for name in ("out", "plain"))
    assert first == second


def test_only_the_named_data_set_is_unpacked(arts, tmp_path):
    write_release(arts, lines="1 4\n", name="toys_games")
    archive = zipped(arts, tmp_path / "release.zip")
    prepare_release(archive, "toys_games", tmp_path / "out")
    assert len(load_folder(tmp_path / "out", "").interactions) == 1


@pytest.mark.parametrize("which", ["ids", "titles"])
def test_pickle_of_anything_else_is_refused(tmp_path, which):
    hostile = pickle.dumps({1: "B001", 2: Path("x")})
    arts = write_release(tmp_path / "arts", **{which: hostile})
    with pytest.raises(InputError, match=r"but names 'pathlib\.PosixPath'$"):
        prepare_release(arts, "arts", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["release.zip", "inner.zip"])
@pytest.mark.parametrize(
    ("member", "mode"),
    [
        ("../escaped.jpg", 0),
        ("arts_images/../../escaped.jpg", 0),
        ("/tmp/escaped.jpg", 0),
        ("arts_images\\..\\..\\escaped.jpg", 0),
        ("C:escaped.jpg", 0),
        ("arts_images/B004.jpg", stat.S_IFLNK | 0o777),
    ],
)
def test_archive_that_leaves_the_folder_is_refused(archive, tmp_path, inside, member, mode):
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo(member)
        info.external_attr = mode << 16
        file.writestr(info, b"/etc/passwd")
    source = archive if inside == "release.zip" else nested(tmp_path)
    rule = f"'{inside}' must have only members inside the folder, but has"
    with pytest.raises(InputError, match=f"^{re.escape(rule)}.*{re.escape(repr(member))}$"):
        prepare_release(source, "arts", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.jpg"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bomb(arts, tmp_path):
    """A small zip of three million zeros."""
    (arts / "arts_images" / "B004.jpg").write_bytes(bytes(3_000_000))
    archive = zipped(arts, tmp_path / "release.zip")
    assert archive.stat().st_size < 50_000
    return archive


@pytest.mark.parametrize("deep", [False, True])
def test_archive_that_expands_too_far_is_refused(bomb, tmp_path, deep):
    source = nested(tmp_path) if deep else bomb
    message = r"must expand to at most 2,000,000 bytes, but has more at 'arts_images/B004\.jpg'$"
    with pytest.raises(InputError, match=message):
        prepare_release(source, "arts", tmp_path / "out", max_bytes=2_000_000)


def test_archive_that_lies_about_its_size_is_refused(bomb, tmp_path):
    raw = bytearray(bomb.read_bytes())
    while (at := raw.find((3_000_000).to_bytes(4, "little"))) >= 0:
        raw[at : at + 4] = (10).to_bytes(4, "little")
    bomb.write_bytes(raw)
    with pytest.raises(InputError, match="must be a whole zip archive"):
        prepare_release(bomb, "arts", tmp_path / "out", max_bytes=2_000_000)


@pytest.mark.parametrize("item_id", ["../../B001", "/etc/hosts", "a\\b", "..", "", "x" * 300])
def test_item_id_that_is_a_path_is_refused(tmp_path, item_id):
    write_release(tmp_path / "arts", ids={**IDS, 4: item_id})
    message = "an item id of arts_item2id_final.pickle must be a plain file name, but is "
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")


def test_image_link_out_of_the_folder_is_refused(arts, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(5))
    (arts / "arts_images" / "B004.jpg").symlink_to(secret)
    with pytest.raises(InputError, match=r"'B004\.jpg' is a link that leaves it$"):
        prepare_release(arts, "arts", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": "1 1\n1\n"}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 one\n"}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 2 3\n"}, "but has 1 line of 3 numbers"),
        ({"lines": ""}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 0\n"}, "but has the number 0"),
        ({"lines": "1 99999999999999999999\n"}, "arts_final.txt must have lines"),
        ({"lines": "1 7\n"}, "must have items of arts_item2id_final.pickle, but has the number 7"),
        ({"ids": {"B001": 1}}, "must have item numbers from 1, but has 'B001'"),
        ({"ids": {**IDS, 5: "B001"}}, "must have every item id once, but has 'B001' again"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, changes, message):
    write_release(tmp_path / "arts", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("none", "arts", "^the release must be a folder or a zip, but"),
        ("text.zip", "arts", r"^'text\.zip' must be a whole zip archive"),
        ("cut.zip", "arts", r"^'cut\.zip' must be a whole zip archive"),
        ("damaged.zip", "arts", r"^'damaged\.zip' must be a whole zip archive"),
        ("arts", "toys", r"^the release must have one toys_final\.txt, but"),
        ("release.zip", "toys", r"^the release must have toys_final\.txt, but"),
        ("half", "arts", r"must have arts_texts_final\.pickle"),
    ],
)
def test_what_is_no_release_is_refused(arts, archive, tmp_path, source, name, message):
    content = bytearray(archive.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-300])
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        content[opened.getinfo("arts_final.txt").header_offset + 50] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(content)
    (tmp_path / "text.zip").write_bytes(b"no zip")
    (write_release(tmp_path / "half") / "arts_texts_final.pickle").unlink()
    with pytest.raises(InputError, match=message):
        prepare_release(tmp_path / source, name, tmp_path / "out")
