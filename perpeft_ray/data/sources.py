"""Data sources: the forms of `--dataset`."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perpeft_ray.config import DataSettings
from perpeft_ray.data.folders import new_folder, remove_unfinished
from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.errors import InputError

_FORMS = {
    "toyshop": "toyshop[:SEED]",
    "parquet": "parquet:PATH",
    "release": "release:PATH#NAME",
    "amazon2023": "amazon2023:RAW_DIR#CATEGORY",
}


def open_dataset(
    uri: str, cache: Path, data: DataSettings | None = None, *, again: bool = True
) -> Dataset:
    """The dataset that a URI names.

    - `toyshop[:SEED]` (seed 0): generated.
    - `parquet:PATH`: a folder of the data format.
    - `release:PATH#NAME`: `prepare_release` on a folder or archive; NAME defaults to the last part
      of PATH without its ending.
    - `amazon2023:RAW_DIR#CATEGORY`: `prepare_amazon2023` with its defaults, images downloaded.

    `data` says which users are kept (`load_folder`). Generated and prepared data are cached under
    `cache`, keyed by their sources, image bytes included. `again` fetches once more the images of
    `amazon2023` that failed for a passing reason; otherwise a prepared dataset stays as it is.
    Raises `InputError` for any other form, and for what the function that makes or reads it
    rejects.
    """
    source, path, name = _parts(uri)
    match source:
        case "toyshop":
            folder = _toyshop(uri, path, cache)
        case "parquet" if path:
            folder = Path(path)
        case "release" if path:
            folder = _release(Path(path), name or Path(path).stem, cache)
        case "amazon2023" if path and name:
            folder = _amazon2023(Path(path), name, cache, again=again)
        case _:
            raise InputError(_wrong_form(uri, source))
    return load_folder(folder, uri, data)


def _wrong_form(uri: str, source: str) -> str:
    if source in _FORMS:
        return f"`dataset` must be {_FORMS[source]}, but is {uri!r}"
    hint = ""
    if uri and Path(uri).is_dir():
        hint = f"; did you mean 'parquet:{uri}'?"
    elif close := difflib.get_close_matches(source, _FORMS, n=1):
        hint = f"; did you mean {_FORMS[close[0]]}?"
    *others, last = _FORMS.values()
    return f"`dataset` must be {', '.join(others)} or {last}, but is {uri!r}{hint}"


def absolute_dataset(uri: str) -> str:
    """A dataset's URI with its path made absolute, so that it means the same in any folder.

    Keeps links, except where the path goes up with `..`. Does not check that the path exists.
    Returns `toyshop` and unknown forms unchanged.
    """
    source, path, name = _parts(uri)
    if source not in ("parquet", "release", "amazon2023") or not path:
        return uri
    place = Path(path)
    place = place.resolve() if ".." in place.parts else place.absolute()
    return f"{source}:{place}" + (f"#{name}" if name else "")


def cached_folder(uri: str, cache: Path) -> Path | None:
    """The folder of the data format that a dataset has on this machine; None without one.

    Prepares nothing, so of data that are prepared from raw files there is None.
    """
    source, path, _ = _parts(uri)
    if source not in ("toyshop", "parquet"):
        return None
    folder = Path(path) if source == "parquet" else _toyshop_folder(uri, path, cache)
    return folder if folder.is_dir() else None


def raw_files(uri: str) -> list[Path]:
    """The raw files that `open_dataset` would prepare; none if there is nothing to prepare.

    Far cheaper than preparing. Raises `InputError` if a file is missing or unreadable.
    """
    source, path, name = _parts(uri)
    match source:
        case "release" if path:
            from perpeft_ray.data.prepare.release import release_files

            return release_files(Path(path), name or Path(path).stem)
        case "amazon2023" if path and name:
            from perpeft_ray.data.prepare.amazon2023 import amazon2023_files

            return amazon2023_files(Path(path), name)
    return []


def _release(path: Path, name: str, cache: Path) -> Path:
    from perpeft_ray.data.prepare.release import prepare_release, release_recipe

    folder = _prepared(cache, name, release_recipe(path, name))
    prepare_release(path, name, folder)
    return folder


def _amazon2023(raw: Path, category: str, cache: Path, *, again: bool) -> Path:
    from perpeft_ray.data.prepare.amazon2023 import (
        Selection,
        amazon2023_recipe,
        prepare_amazon2023,
    )

    selection = Selection()
    recipe = amazon2023_recipe(raw, category, selection, images=True)
    folder = _prepared(cache, category, recipe)
    prepare_amazon2023(raw, category, folder, selection, again=again)
    return folder


def _prepared(cache: Path, name: str, recipe: Mapping[str, Any]) -> Path:
    """The folder of a recipe; removes unfinished folders of other recipes of this name."""
    from perpeft_ray.data.prepare.recipe import recipe_key

    folder = cache / "prepared" / f"{name}-{recipe_key(recipe)}"
    unfinished = re.compile(rf"\.({re.escape(name)}-[0-9a-f]{{8}})\.unfinished")
    for entry in folder.parent.iterdir() if folder.parent.is_dir() else ():
        found = unfinished.fullmatch(entry.name)
        if found and found[1] != folder.name:
            remove_unfinished(folder.with_name(found[1]))
    return folder


def _toyshop(uri: str, seed: str, cache: Path) -> Path:
    from perpeft_ray.data import toyshop

    folder = _toyshop_folder(uri, seed, cache)
    if not folder.is_dir():
        with new_folder(folder) as new:
            toyshop.write_toyshop(new, int(seed))
    return folder


def _toyshop_folder(uri: str, seed: str, cache: Path) -> Path:
    if not (seed.isascii() and seed.isdigit()):
        raise InputError(f"`dataset` toyshop:SEED must have a whole number, but is {uri!r}")
    from perpeft_ray.data import toyshop

    # The generator's source is its version: a changed generator never finds an old folder.
    source = hashlib.sha256()
    for file in sorted(Path(toyshop.__file__).parent.glob("toyshop*.py")):
        source.update(file.read_bytes())
    return cache / f"toyshop-{int(seed)}-{source.hexdigest()[:8]}"


def _parts(uri: str) -> tuple[str, str, str]:
    """SOURCE, PATH and NAME of `SOURCE:PATH#NAME`, or SOURCE, SEED and nothing.

    A path may contain `#`, a name has no `/`.
    """
    source, colon, rest = uri.partition(":")
    if source == "toyshop":
        return source, rest if colon else "0", ""
    path, mark, name = rest.rpartition("#")
    if source == "parquet" or not mark or "/" in name or Path(rest).exists():
        return source, rest, ""
    return source, path, name
