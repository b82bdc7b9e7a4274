"""prepare_release on a small archive of the published form, and on hostile ones."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.release import prepare_release
from perpeft_ray.data.split import split_dataset
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


def check(out: Path) -> None:
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
    assert dataset.items["item_id"].tolist() == list(IDS.values())
    assert dataset.items["title"].tolist() == ["Red yarn", "Blue yarn", None, None]
    expected = ["images/B001.jpg", None, "images/B003.jpg", None]
    assert dataset.items["image"].tolist() == expected
    assert (out / "images" / "B003.jpg").read_bytes() == jpeg(1)
    failed = pd.read_csv(out / "images_failed.csv")
    assert failed["item_id"].tolist() == ["B002", "B004"]
    assert failed["reason"].tolist() == ["not a readable image", "missing"]
    assert {path.name for path in out.iterdir()} == {
        "interactions.parquet",
        "items.parquet",
        "images",
        "images_failed.csv",
        "prepare.json",
    }
    split = split_dataset(dataset)
    assert split.test_item.tolist() == [3, 2]
    assert split.valid_item.tolist() == [2, 3]


def test_a_folder(tmp_path):
    write_release(tmp_path / "release" / "deep" / "arts")
    prepare_release(tmp_path / "release", "arts", tmp_path / "out")
    check(tmp_path / "out")


def test_a_zip_of_zips_is_the_same(tmp_path):
    write_release(tmp_path / "arts")
    write_release(tmp_path / "toys", lines="1 4\n", name="toys_games")
    (tmp_path / "outer").mkdir()
    zipped(tmp_path / "arts", tmp_path / "outer" / "arts.zip", "arts/")
    zipped(tmp_path / "toys", tmp_path / "outer" / "toys_games.zip")
    archive = zipped(tmp_path / "outer", tmp_path / "release.zip", "data/")
    prepare_release(archive, "arts", tmp_path / "out")
    check(tmp_path / "out")
    prepare_release(tmp_path / "arts", "arts", tmp_path / "plain")
    assert load_folder(tmp_path / "plain", "").fingerprint == (
        load_folder(tmp_path / "out", "").fingerprint
    )
    prepare_release(archive, "toys_games", tmp_path / "toys_out")
    assert len(load_folder(tmp_path / "toys_out", "").interactions) == 1


def test_numpy_scalars_in_the_pickles(tmp_path):
    write_release(
        tmp_path / "arts",
        ids={np.int64(number): np.str_(item) for number, item in IDS.items()},
        titles={np.str_(item): np.str_(title) for item, title in TITLES.items()},
    )
    prepare_release(tmp_path / "arts", "arts", tmp_path / "out")
    check(tmp_path / "out")


class Touch:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("which", ["ids", "titles"])
def test_a_hostile_pickle_is_refused(tmp_path, which):
    trace = tmp_path / "trace"
    hostile = pickle.dumps({1: "B001", 2: Touch(trace)})
    write_release(tmp_path / "arts", **{which: hostile})
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    for source in (tmp_path / "arts", archive):
        with pytest.raises(InputError, match=r"but names 'posix\.system'$"):
            prepare_release(source, "arts", tmp_path / "out")
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def _with_member(archive: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(archive, "a") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        file.writestr(member, content)
    return archive


@pytest.mark.parametrize("nested", [False, True])
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
def test_an_archive_that_leaves_the_folder_is_refused(tmp_path, nested, member, mode):
    write_release(tmp_path / "arts")
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    _with_member(archive, member, b"/etc/passwd", mode)
    if nested:
        (tmp_path / "outer").mkdir()
        archive.rename(tmp_path / "outer" / "arts.zip")
        archive = zipped(tmp_path / "outer", tmp_path / "release.zip")
    inside = "arts.zip" if nested else "release.zip"
    rule = f"'{inside}' must have only members inside the folder, but has"
    with pytest.raises(InputError, match=f"^{re.escape(rule)}.*{re.escape(repr(member))}$"):
        prepare_release(archive, "arts", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.jpg"))
    assert not (tmp_path / "out").exists()


def test_an_archive_that_expands_too_far_is_refused(tmp_path):
    write_release(tmp_path / "arts")
    (tmp_path / "arts" / "arts_images" / "B004.jpg").write_bytes(bytes(3_000_000))
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    assert archive.stat().st_size < 50_000
    message = r"must expand to at most 2,000,000 bytes, but has more at 'arts_images/B004\.jpg'$"
    with pytest.raises(InputError, match=message):
        prepare_release(archive, "arts", tmp_path / "out", max_bytes=2_000_000)

    # The header may lie: the smaller size it claims is not what counts.
    raw = bytearray(archive.read_bytes())
    while (at := raw.find((3_000_000).to_bytes(4, "little"))) >= 0:
        raw[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(raw)
    with pytest.raises(InputError, match=r"must expand to at most|must be a whole zip archive"):
        prepare_release(archive, "arts", tmp_path / "out", max_bytes=2_000_000)

    (tmp_path / "outer").mkdir()
    zipped(tmp_path / "arts", tmp_path / "outer" / "arts.zip")
    outer = zipped(tmp_path / "outer", tmp_path / "outer.zip")
    with pytest.raises(InputError, match=message):
        prepare_release(outer, "arts", tmp_path / "out", max_bytes=2_000_000)


@pytest.mark.parametrize("item_id", ["../../B001", "/etc/hosts", "a\\b", "..", "", "x" * 300])
def test_an_item_id_that_is_a_path_is_refused(tmp_path, item_id):
    write_release(tmp_path / "arts", ids={**IDS, 4: item_id})
    message = "an item id of arts_item2id_final.pickle must be a plain file name, but is "
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")


def test_an_image_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    write_release(tmp_path / "arts")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(5))
    (tmp_path / "arts" / "arts_images" / "B004.jpg").symlink_to(secret)
    with pytest.raises(InputError, match=r"'B004\.jpg' is a link that leaves it$"):
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": "1 1\n1\n"}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 one\n"}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 2 3\n"}, "but has 1 lines of 3 numbers"),
        ({"lines": ""}, "arts_final.txt must have lines of a user and an item"),
        ({"lines": "1 0\n"}, "but has the number 0"),
        ({"lines": "1 99999999999999999999\n"}, "arts_final.txt must have lines"),
        ({"lines": "1 7\n"}, "must have items of arts_item2id_final.pickle, but has the number 7"),
        ({"ids": {"B001": 1}}, "must have item numbers from 1, but has 'B001'"),
        ({"ids": {**IDS, 5: "B001"}}, "must have every item id once, but has 'B001' again"),
    ],
)
def test_wrong_contents(tmp_path, changes, message):
    write_release(tmp_path / "arts", **changes)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_what_is_no_release(tmp_path):
    with pytest.raises(InputError, match=r"^the release must be a folder or a zip, but"):
        prepare_release(tmp_path / "none", "arts", tmp_path / "out")
    (tmp_path / "text.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"^'text\.zip' must be a whole zip archive"):
        prepare_release(tmp_path / "text.zip", "arts", tmp_path / "out")
    write_release(tmp_path / "arts")
    with pytest.raises(InputError, match=r"^the release must have one toys_final\.txt, but"):
        prepare_release(tmp_path / "arts", "toys", tmp_path / "out")
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"^'release\.zip' must be a whole zip archive"):
        prepare_release(archive, "arts", tmp_path / "out")
    (tmp_path / "arts" / "arts_texts_final.pickle").unlink()
    with pytest.raises(InputError, match=r"must have arts_texts_final\.pickle"):
        prepare_release(tmp_path / "arts", "arts", tmp_path / "out")


def test_a_damaged_member_is_told(tmp_path):
    write_release(tmp_path / "arts")
    archive = zipped(tmp_path / "arts", tmp_path / "release.zip")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        at = opened.getinfo("arts_final.txt").header_offset
    content[at + 50] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match="must be a whole zip archive"):
        prepare_release(archive, "arts", tmp_path / "out")
    shutil.rmtree(tmp_path / "arts")
