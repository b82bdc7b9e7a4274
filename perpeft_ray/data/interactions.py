"""The folder format: interactions.parquet, items.parquet, images/; read once and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from perpeft_ray.config import DataSettings
from perpeft_ray.data.folders import file_hash
from perpeft_ray.data.tables import INTERACTION_COLUMNS, Kind, ParquetTable, open_table
from perpeft_ray.errors import InputError
from perpeft_ray.screen import counted

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
_ITEM_COLUMNS: Mapping[str, Kind] = {"item_id": "id", "title": "text", "image": "text"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Checked interactions and items of a folder (`load_folder`)."""

    uri: str
    """The dataset's name on the command line."""
    root: Path
    """The folder; image paths are relative to it."""
    interactions: pd.DataFrame
    """user_id str, item_id str, timestamp int64 in the file's own unit; in file order, which breaks
    ties."""
    items: pd.DataFrame
    """item_id str (unique), title str or None, image str or None; item index = row + 1."""
    fingerprint: str
    """Content hash of both tables and the image files, 32 hexadecimal digits."""
    items_fingerprint: str
    """Content hash of the items table and the image files, 32 hexadecimal digits."""
    tables_fingerprint: str = ""
    """Content hash of both tables without the image files, 32 hexadecimal digits."""
    images_fingerprint: str = ""
    """Content hash of the distinct image files, whatever their names, 32 hexadecimal digits."""


def load_folder(path: Path, uri: str, data: DataSettings | None = None) -> Dataset:
    """Read and check a dataset folder; `uri` is its name in messages and in the result.

    A table is a file or a folder of parts. Repeats, ties, items without image, null or empty titles
    and users with few interactions are normal. If `data` drops users (those with fewer than
    `min_interactions` interactions, then those outside the sample), only the other users' items are
    kept, and fingerprints cover only what is kept. Raises `InputError` for a missing folder, file
    or column, ids, times and texts that `ParquetTable` does not read, null ids or times, an empty
    table, a repeated item id, an interaction with an unknown item, a kept image path that leaves
    the folder or names no file, and if no user has `min_interactions`.
    """
    if not path.is_dir():
        raise InputError(f"`{uri}` must name a folder, but {str(path)!r} is not one")
    interactions, items = (table.read() for table in open_tables(f"`{uri}`", path))
    _check_items(uri, interactions["item_id"], items["item_id"])
    interactions, items = _selected(uri, interactions, items, data or DataSettings())
    images = items["image"].to_pylist()
    _check_images(uri, path, [image for image in images if image is not None])

    files = [file_hash(path / image) for image in images if image is not None]
    tables_hash = hashlib.sha256()
    for column in ("item_id", "title", "image"):
        _hash_strings(tables_hash, items[column])
    items_hash = tables_hash.copy()
    items_hash.update(b"".join(files))
    whole_hash = items_hash.copy()
    for digest in (tables_hash, whole_hash):
        _hash_strings(digest, interactions["user_id"])
        _hash_strings(digest, interactions["item_id"])
        digest.update(interactions["timestamp"].to_numpy().astype("<i8").tobytes())
    return Dataset(
        uri=uri,
        root=path,
        interactions=interactions.to_pandas(),
        items=pd.DataFrame(
            {
                "item_id": items["item_id"].to_pandas(),
                # As objects, so that missing text is None: pandas' own str column has NaN.
                "title": pd.Series(items["title"].to_pylist(), dtype=object),
                "image": pd.Series(images, dtype=object),
            }
        ),
        fingerprint=whole_hash.hexdigest()[:32],
        items_fingerprint=items_hash.hexdigest()[:32],
        tables_fingerprint=tables_hash.hexdigest()[:32],
        images_fingerprint=hashlib.sha256(b"".join(sorted(set(files)))).hexdigest()[:32],
    )


def open_tables(
    where: str, folder: Path, *, optional: tuple[str, ...] = ()
) -> tuple[ParquetTable, ParquetTable]:
    """Open the interactions and items of a data folder without reading them.

    `where` begins messages. `optional` columns of the items may be missing.
    """
    for name in (INTERACTIONS_FILE, ITEMS_FILE):
        if not (folder / name).exists():
            raise InputError(
                f"{where} must have the file {name}, but {str(folder / name)!r} is missing"
            )
    return (
        open_table(f"{where} {INTERACTIONS_FILE}", folder / INTERACTIONS_FILE, INTERACTION_COLUMNS),
        open_table(f"{where} {ITEMS_FILE}", folder / ITEMS_FILE, _ITEM_COLUMNS, optional=optional),
    )


def check_inside(rule: str, root: Path, path: str) -> None:
    """Raise InputError, starting with the rule, if a relative path leaves the folder `root`."""
    if Path(path).is_absolute():
        raise InputError(f"{rule}, but {path!r} is absolute")
    if ".." in Path(path).parts:
        raise InputError(f"{rule}, but {path!r} goes up with '..'")
    if not path or "\0" in path:
        raise InputError(f"{rule}, but {path!r} is no file")
    if not os.path.realpath(root / path).startswith(os.path.realpath(root) + os.sep):
        raise InputError(f"{rule}, but {path!r} is a link that leaves it")


def _selected(
    uri: str, interactions: pa.Table, items: pa.Table, data: DataSettings
) -> tuple[pa.Table, pa.Table]:
    """The interactions of the users that `data` keeps, and their items; both in file order."""
    if data.min_interactions <= 1 and data.sample_users is None:
        return interactions, items
    counts = pc.value_counts(interactions["user_id"])  # in order of first appearance
    most = pc.max(counts.field("counts")).as_py()
    users = counts.field("values").filter(
        pc.greater_equal(counts.field("counts"), data.min_interactions)
    )
    if not len(users):
        raise InputError(
            f"`data.min_interactions` must leave a user of `{uri}`, but is "
            f"{data.min_interactions} and the longest history has {most}"
        )
    if data.sample_users is not None and data.sample_users < len(users):
        rng = np.random.default_rng(data.sample_seed)
        users = users.take(rng.choice(len(users), data.sample_users, replace=False))
    interactions = interactions.filter(pc.is_in(interactions["user_id"], value_set=users))
    kept = pc.is_in(items["item_id"], value_set=pc.unique(interactions["item_id"]))
    return interactions, items.filter(kept)


def _check_items(uri: str, used: pa.ChunkedArray, items: pa.ChunkedArray) -> None:
    counts = pc.value_counts(items)
    most = pc.max(counts.field("counts")).as_py()
    if most > 1:
        item = counts.field("values")[pc.index(counts.field("counts"), most).as_py()].as_py()
        raise InputError(
            f"`{uri}` {ITEMS_FILE} column `item_id` must not repeat a value, "
            f"but {item!r} occurs {most} times"
        )
    unknown = pc.filter(used, pc.invert(pc.is_in(used, value_set=items)))
    if len(unknown):
        raise InputError(
            f"`{uri}` {INTERACTIONS_FILE} column `item_id` must name items of {ITEMS_FILE}, "
            f"but has others in {counted(len(unknown), 'row')} "
            f"(the first is {unknown[0].as_py()!r})"
        )


def _check_images(uri: str, root: Path, images: list[str]) -> None:
    rule = f"`{uri}` {ITEMS_FILE} column `image` must name files inside the folder"
    for image in images:
        check_inside(rule, root, image)
        if not (root / image).is_file():
            raise InputError(f"{rule}, but {image!r} is no file")


def _hash_strings(digest: hashlib._Hash, column: pa.ChunkedArray) -> None:
    """Lengths in bytes (-1: null), then the bytes: a stream unique per column."""
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy().astype("<i8")
    digest.update(np.int64(len(lengths)).astype("<i8").tobytes())
    digest.update(lengths.tobytes())
    digest.update("".join(text for text in column.to_pylist() if text is not None).encode())
