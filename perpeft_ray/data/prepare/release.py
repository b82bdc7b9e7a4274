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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE, check_inside
from perpeft_ray.data.prepare.archives import file_names, members_hash, unpack
from perpeft_ray.data.prepare.images import (
    Copy,
    check_file_name,
    copy_images,
    image_progress,
    write_failures,
)
from perpeft_ray.data.prepare.pickles import Plain, read_plain_pickle
from perpeft_ray.data.prepare.recipe import (
    SCRATCH,
    begun_to_read,
    contents,
    contents_hash,
    preparing,
)
from perpeft_ray.errors import InputError

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
        if source.is_dir():
            files = _Files.found_in(source, name)
        else:
            files = _unpacked(source, name, working / SCRATCH, max_bytes)
        _convert(files, working)


def release_recipe(source: Path, name: str) -> dict[str, Any]:
    """All that determines the folder of `prepare_release`; raises InputError as it does."""
    raw = _raw_files(source, name)
    if source.is_dir():
        images = _Files.found_in(source, name).images
        names = sorted(entry.name for entry in images.iterdir()) if images.is_dir() else []
        identity = {"raw": contents(*raw), "images": contents_hash(images, names)}
    else:
        identity = {"raw": [[str(source.resolve()), members_hash(source)]]}
    return {"source": "release", "name": name, **identity}


def release_files(source: Path, name: str) -> list[Path]:
    """The files that `prepare_release` reads first; unpacks nothing.

    Raises InputError if one is missing or unreadable. Does not look into inner zips.
    """
    files = _raw_files(source, name)
    begun_to_read(files)
    if source.is_file():
        names = file_names(source)
        wanted = _Files(source.parent, name)
        inner = any(name.lower().endswith(".zip") for name in names)
        for file in (wanted.sequences, wanted.numbers, wanted.titles):
            if file.name not in names and not inner:
                raise InputError(f"the release must have {file.name}, but {str(source)!r} has none")
    return files


def _raw_files(source: Path, name: str) -> list[Path]:
    """The archive, or a folder's tables."""
    check_file_name("`name`", name)
    if source.is_dir():
        files = _Files.found_in(source, name)
        return [files.sequences, files.numbers, files.titles]
    if source.is_file():
        return [source]
    raise InputError(f"the release must be a folder or a zip, but {str(source)!r} is none")


@dataclass(frozen=True)
class _Files:
    """Locations of a data set's files."""

    folder: Path
    name: str

    @classmethod
    def found_in(cls, root: Path, name: str) -> _Files:
        found = sorted(root.rglob(f"{glob.escape(name)}_final.txt"))
        if len(found) != 1:
            raise InputError(
                f"the release must have one {name}_final.txt, but {str(root)!r} has {len(found)}"
            )
        files = cls(found[0].parent, name)
        for file in (files.numbers, files.titles):
            if not file.is_file():
                raise InputError(f"the release must have {file.name}, but {str(file)!r} is missing")
        return files

    @property
    def sequences(self) -> Path:
        return self.folder / f"{self.name}_final.txt"

    @property
    def numbers(self) -> Path:
        return self.folder / f"{self.name}_item2id_final.pickle"

    @property
    def titles(self) -> Path:
        return self.folder / f"{self.name}_texts_final.pickle"

    @property
    def images(self) -> Path:
        return self.folder / f"{self.name}_images"

    def wanted(self, member: PurePosixPath) -> str | None:
        """A member's target under `folder`; None if it is not part of this set."""
        if member.name in (self.sequences.name, self.numbers.name, self.titles.name):
            return member.name
        if member.parent.name == self.images.name:
            return f"{self.images.name}/{member.name}"
        return None


def _unpacked(archive: Path, name: str, scratch: Path, max_bytes: int) -> _Files:
    folder = scratch / "release"
    if not folder.is_dir():
        new = scratch / "release.part"
        shutil.rmtree(new, ignore_errors=True)  # left by an interrupted run
        new.mkdir()
        unpack(archive, new, _Files(new, name).wanted, max_bytes)
        new.rename(folder)
    return _Files.found_in(folder, name)


def _convert(files: _Files, working: Path) -> None:
    lines = _lines(files.sequences)  # [N, 2]
    ids = _item_ids(files.numbers)
    unknown = np.setdiff1d(lines[:, 1], list(ids))
    if len(unknown):
        raise InputError(
            f"{files.sequences.name} must have items of {files.numbers.name}, "
            f"but has the number {unknown[0]}"
        )
    titles = {str(item): title for item, title in read_plain_pickle(files.titles).items()}
    copies = []
    for item_id in ids.values():
        image = f"{item_id}.jpg"
        check_inside(f"an item's image must be inside {str(files.images)!r}", files.images, image)
        copies.append(Copy(item_id, files.images / image, working / "images" / image))
    (working / "images").mkdir(exist_ok=True)
    with image_progress(len(copies)) as advance:
        failures = copy_images(copies, working / SCRATCH, advance)
    write_failures(working, failures)
    failed = {failure.item_id for failure in failures}
    items = {
        "item_id": list(ids.values()),
        "title": [_title(titles.get(item_id)) for item_id in ids.values()],
        "image": [None if item in failed else f"images/{item}.jpg" for item in ids.values()],
    }
    text = pa.string()
    pq.write_table(
        pa.table(items, schema=pa.schema([(column, text) for column in items])),
        working / ITEMS_FILE,
    )
    interactions = {
        "user_id": pa.array(lines[:, 0]).cast(text),
        "item_id": pa.array([ids[number] for number in lines[:, 1].tolist()], text),
        "timestamp": pa.array(np.arange(len(lines), dtype=np.int64)),
    }
    pq.write_table(pa.table(interactions), working / INTERACTIONS_FILE)


def _lines(file: Path) -> NDArray[np.int64]:
    """User and item of every line, int64 [N, 2]."""
    rule = f"{file.name} must have lines of a user and an item, numbers from 1"
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # for an empty file
            lines = np.loadtxt(file, dtype=np.int64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{rule}, but {error}") from error
    if not lines.size or lines.shape[1] != 2:
        raise InputError(f"{rule}, but has {lines.shape[0]} lines of {lines.shape[1]} numbers")
    if lines.min() < 1:
        raise InputError(f"{rule}, but has the number {lines.min()}")
    return lines


def _item_ids(file: Path) -> dict[int, str]:
    """Item ids by number."""
    ids: dict[int, str] = {}
    for number, item_id in sorted(_numbered(file).items()):
        check_file_name(f"an item id of {file.name}", str(item_id))
        ids[number] = str(item_id)
    if len(set(ids.values())) < len(ids):
        twice = Counter(ids.values()).most_common(1)[0][0]
        raise InputError(f"{file.name} must have every item id once, but has {twice!r} again")
    return ids


def _numbered(file: Path) -> dict[int, Plain]:
    ids = read_plain_pickle(file)
    wrong = [number for number in ids if not isinstance(number, int) or number < 1]
    if wrong:
        raise InputError(f"{file.name} must have item numbers from 1, but has {wrong[0]!r}")
    return {number: item_id for number, item_id in ids.items() if isinstance(number, int)}


def _title(title: Plain | None) -> str | None:
    if not isinstance(title, str):
        return None
    # A pickled str may hold half a surrogate pair, which UTF-8 cannot encode.
    return " ".join(title.encode("utf-8", "replace").decode().split()) or None
