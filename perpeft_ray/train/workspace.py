"""The shared data of a study's trials: dataset, split and catalogue store, prepared once.

A `Workspace` is a handful of paths, which any process can receive; `open_split` and
`open_catalogue` memory-map the files.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perpeft_ray.config import DataSettings
from perpeft_ray.data.catalogue import Catalogue, build_catalogue
from perpeft_ray.data.folders import new_folder
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.item_arrays import ItemMap, in_this_process
from perpeft_ray.data.places import subfolder
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.data.split import Histories, Split, split_dataset
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.errors import InputError
from perpeft_ray.train.fingerprints import Fingerprints, fingerprints

_SPLIT_FORMAT = 3
"""Part of the split folder's name: change it with the files in it."""


@dataclass(frozen=True)
class Workspace:
    """Locations and identity of the data that a study's trials share."""

    encoder: str
    split: Path
    """Folder of the split's arrays."""
    catalogue: Path
    """Folder of the catalogue store."""
    features: Path
    """Folder for cached features of frozen towers; one subfolder per kind."""
    unfinished: Path
    """Folder for stage-1 results that this machine is working on."""
    stages: Path | str
    """Folder for stage-1 results (path or URI), one file per key."""
    trials: Path | str
    """Folder for trained trials (path or URI), one file per key."""
    fingerprint: str
    """Hash of dataset, preprocessing and encoder: part of every stage-1 key."""
    num_users: int
    num_items: int
    fingerprints: Fingerprints | None = None
    """Fingerprints of data and encoder, to name what changed; None without a data set."""

    def with_nothing_trained(self, folder: Path) -> Workspace:
        """The same data, with another local folder for trained results."""
        stages = folder / "stage1"
        return replace(self, unfinished=stages, stages=stages, trials=folder / "trials")


def prepare(uri: str, encoder: str, cache: Path, *, data: DataSettings | None = None) -> Workspace:
    """`prepare_dataset` in this process, for a dataset by its name."""
    dataset = open_dataset(uri, cache.resolve(), data, again=False)
    return prepare_dataset(dataset, encoder, cache, data=data)


def prepare_dataset(
    dataset: Dataset,
    encoder: str,
    cache: Path,
    item_map: ItemMap = in_this_process,
    *,
    data: DataSettings | None = None,
    kept: Path | str | None = None,
) -> Workspace:
    """Build, or find under `cache`, the shared data of trials on a dataset with an encoder.

    `item_map` decides where images are decoded and titles tokenised; `data`, by default
    `DataSettings()`, which part of the dataset is used and how it is split. `kept` (path or URI, by
    default `cache`) holds trained stages and trials.

    Raises InputError for a dataset or encoder that cannot be used.
    """
    cache = cache.resolve()
    kept = cache if kept is None else kept
    preprocessor = FoundationPreprocessor(encoder)
    data = data or DataSettings()
    split = split_dataset(dataset, data)
    how = f"time-{data.test_share:g}" if data.split == "time" else data.split
    split_folder = cache / "split" / f"{_SPLIT_FORMAT}-{how}-{dataset.fingerprint[:32]}"
    if not split_folder.is_dir():
        with new_folder(split_folder) as temporary:
            write_split(split, temporary)
    catalogue = build_catalogue(dataset, preprocessor, cache, item_map)
    parts = fingerprints(dataset, encoder)
    key = "\n".join([dataset.fingerprint, how, catalogue.fingerprint, parts.encoder])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Workspace(
        encoder=encoder,
        split=split_folder,
        catalogue=catalogue.folder,
        features=cache / "features" / f"{catalogue.fingerprint[:16]}-{parts.encoder}",
        unfinished=cache / "stage1",
        stages=subfolder(kept, "stage1"),
        trials=subfolder(kept, "trials"),
        fingerprint=fingerprint,
        num_users=split.num_users,
        num_items=split.num_items,
        fingerprints=parts,
    )


def prepare_here(workspace: Workspace, uri: str, data: DataSettings | None = None) -> None:
    """Prepare what another machine has prepared, if this one does not see it.

    `uri` and `data`: the dataset's, as for `prepare`. Raises InputError if this machine has other
    data or another encoder of that name.
    """
    if workspace.split.is_dir() and workspace.catalogue.is_dir():
        return
    cache = workspace.split.parents[1]
    here = prepare(uri, workspace.encoder, cache, data=data)
    if here.fingerprint != workspace.fingerprint:
        raise InputError(
            f"`dataset` and `encoder` must be the same on every node, but {uri} and "
            f"{workspace.encoder} are {here.fingerprint} on {platform.node()}, not "
            f"{workspace.fingerprint}"
        )


@lru_cache(maxsize=2)
def open_split(workspace: Workspace) -> Split:
    """The split of a prepared dataset; read once per process."""

    def read(name: str) -> np.ndarray:
        return np.load(workspace.split / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]  # NumPy says Any

    def ids(name: str) -> np.ndarray:
        with pq.ParquetFile(workspace.split / f"{name}.parquet") as parquet:
            return parquet.read()["id"].to_numpy(zero_copy_only=False).astype(object)  # type: ignore[no-any-return]  # pyarrow is untyped

    return Split(
        user_ids=ids("user_ids"),
        item_ids=ids("item_ids"),
        train=Histories(offsets=read("train_offsets"), items=read("train_items")),
        validation=Histories(offsets=read("valid_offsets"), items=read("valid_items")),
        test_item=read("test_item"),
    )


@lru_cache(maxsize=2)
def open_catalogue(workspace: Workspace) -> Catalogue:
    """The catalogue store of a prepared dataset; opened once per process."""
    return Catalogue.open(workspace.catalogue)


def write_split(split: Split, folder: Path) -> None:
    """Write what `open_split` reads."""
    arrays: dict[str, np.ndarray] = {
        "train_offsets": split.train.offsets,
        "train_items": split.train.items,
        "valid_offsets": split.validation.offsets,
        "valid_items": split.validation.items,
        "test_item": split.test_item,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    # Not as NumPy's own strings, which have one width for all and drop trailing NULs.
    for name, ids in (("user_ids", split.user_ids), ("item_ids", split.item_ids)):
        pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), folder / f"{name}.parquet")
