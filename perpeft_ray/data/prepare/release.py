"""The authors' published archive: from its files for a data set to the folder format.

A data set NAME of the release has `NAME_final.txt` (lines "user item", numbers from 1, each user's
in time order), `NAME_item2id_final.pickle` (item number -> item id), `NAME_texts_final.pickle`
(item id -> title) and `NAME_images/<item id>.jpg`.
"""

from __future__ import annotations

import glob
import shutil
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perpeft_ray.data.interactions import check_inside
from perpeft_ray.data.prepare.archives import file_names, members_hash, unpack
from perpeft_ray.data.prepare.database import Database
from perpeft_ray.data.prepare.images import check_file_name
from perpeft_ray.data.prepare.normalise import normalise
from perpeft_ray.data.prepare.pickles import Plain, read_plain_pickle
from perpeft_ray.data.prepare.recipe import SCRATCH, contents, contents_hash, preparing
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

MAX_BYTES = 32_000_000_000
"""Default limit of an archive's expanded size."""


def prepare_release(source: Path, name: str, out: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Make the folder `out` from a data set of the release; resumes an interrupted run.

    `source` is the archive (a zip of zips or files) or a folder with a data set's files anywhere in
    it. Users keep their numbers as ids; the timestamp is the line number, since the release has no
    times. Items keep the order of their numbers, also those without interactions. Raises InputError
    for missing or damaged files, pickles with anything but int, str and NumPy scalars, item ids
    that are not file names, and archives that leave the folder or expand beyond `max_bytes`.
    """
    with preparing(out, release_recipe(source, name)) as working:
        if working is None:
            return
        scratch = working / SCRATCH
        folder = source if source.is_dir() else _unpacked(source, name, scratch, max_bytes)
        folder = _found_in(folder, name)
        with Database(scratch, memory_gb=1) as database:
            _load(database, folder, name)
            normalise(database, working, folder / f"{name}_images")


def release_recipe(source: Path, name: str) -> dict[str, Any]:
    """All that determines the folder of `prepare_release`; raises InputError as it does."""
    raw = release_files(source, name)
    if source.is_dir():
        images = _found_in(source, name) / f"{name}_images"
        names = sorted(entry.name for entry in images.iterdir()) if images.is_dir() else []
        identity = {"raw": contents(*raw), "images": contents_hash(images, names)}
    else:
        identity = {"raw": [[str(source.resolve()), members_hash(source)]]}
    return {"source": "release", "name": name, **identity}


def release_files(source: Path, name: str) -> list[Path]:
    """The archive, or a folder's tables, which `prepare_release` reads first; unpacks nothing.

    Raises InputError if one is missing. Does not look into inner zips.
    """
    check_file_name("`name`", name)
    if source.is_dir():
        return _tables(_found_in(source, name), name)
    if not source.is_file():
        raise InputError(f"the release must be a folder or a zip, but {str(source)!r} is neither")
    names = file_names(source)
    if not any(one.lower().endswith(".zip") for one in names):
        for file in _tables(source.parent, name):
            if file.name not in names:
                raise InputError(f"the release must have {file.name}, but {str(source)!r} has none")
    return [source]


def _tables(folder: Path, name: str) -> list[Path]:
    """A data set's sequences, item numbers and titles."""
    endings = ("final.txt", "item2id_final.pickle", "texts_final.pickle")
    return [folder / f"{name}_{ending}" for ending in endings]


def _found_in(root: Path, name: str) -> Path:
    """The folder with a data set's files."""
    found = sorted(root.rglob(f"{glob.escape(name)}_final.txt"))
    if len(found) != 1:
        raise InputError(
            f"the release must have one {name}_final.txt, but {str(root)!r} has {len(found)}"
        )
    for file in _tables(found[0].parent, name):
        if not file.is_file():
            raise InputError(f"the release must have {file.name}, but {str(file)!r} is missing")
    return found[0].parent


def _unpacked(archive: Path, name: str, scratch: Path, max_bytes: int) -> Path:
    folder = scratch / "release"
    if not folder.is_dir():
        new = scratch / "release.part"
        shutil.rmtree(new, ignore_errors=True)  # left by an interrupted run
        new.mkdir()
        tables, images = [file.name for file in _tables(new, name)], f"{name}_images"

        def target(member: PurePosixPath) -> str | None:
            """The path of a file of this data set."""
            if member.name in tables:
                return member.name
            return f"{images}/{member.name}" if member.parent.name == images else None

        unpack(archive, new, target, max_bytes)
        new.rename(folder)
    return folder


def _load(database: Database, folder: Path, name: str) -> None:
    """Make `raw_interactions` and `raw_items`."""
    sequences, numbers, texts = _tables(folder, name)
    lines = _lines(sequences)  # [N, 2]
    ids = _item_ids(numbers)
    unknown = np.setdiff1d(lines[:, 1], list(ids))
    if len(unknown):
        raise InputError(
            f"{sequences.name} must have items of {numbers.name}, but has the number {unknown[0]}"
        )
    titles = {str(item): title for item, title in read_plain_pickle(texts).items()}
    images = [f"{item_id}.jpg" for item_id in ids.values()]
    root = folder / f"{name}_images"
    for image in images:
        check_inside(f"an item's image must be inside {str(root)!r}", root, image)
    interactions = {
        "user_id": pa.array(lines[:, 0]).cast(pa.string()),
        "item_id": pa.array([ids[number] for number in lines[:, 1].tolist()], pa.string()),
        "timestamp": pa.array(np.arange(len(lines), dtype=np.int64)),
    }
    items = {
        "item_id": list(ids.values()),
        "title": pa.array([_title(titles.get(item)) for item in ids.values()], pa.string()),
        "source": images,
        "image": [f"images/{image}" for image in images],
    }
    database.load("raw_interactions", [pa.RecordBatch.from_pydict(interactions)])
    database.load("raw_items", [pa.RecordBatch.from_pydict(items)])


def _lines(file: Path) -> NDArray[np.int64]:
    """User and item of every line, int64 [N, 2]."""
    rule = f"{file.name} must have lines of a user and an item, numbers from 1"
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # for an empty file
            lines = np.loadtxt(file, dtype=np.int64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{rule}, but {error}") from error
    if not lines.size or lines.shape[1] != 2:
        count, width = lines.shape
        raise InputError(f"{rule}, but has {counted(count, 'line')} of {counted(width, 'number')}")
    if lines.min() < 1:
        raise InputError(f"{rule}, but has the number {lines.min()}")
    return lines


def _item_ids(file: Path) -> dict[int, str]:
    """Item ids by number, ascending."""
    found = read_plain_pickle(file)
    wrong = [number for number in found if not isinstance(number, int) or number < 1]
    if wrong:
        raise InputError(f"{file.name} must have item numbers from 1, but has {wrong[0]!r}")
    ids = {int(number): str(item_id) for number, item_id in found.items()}
    for item_id in ids.values():
        check_file_name(f"an item id of {file.name}", item_id)
    twice, times = Counter(ids.values()).most_common(1)[0] if ids else ("", 0)
    if times > 1:
        raise InputError(f"{file.name} must have every item id once, but has {twice!r} again")
    return dict(sorted(ids.items()))


def _title(title: Plain | None) -> str | None:
    if not isinstance(title, str):
        return None
    # A pickled str may hold half a surrogate pair, which UTF-8 cannot encode.
    return " ".join(title.encode("utf-8", "replace").decode().split()) or None
