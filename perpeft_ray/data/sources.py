"""Data sources: what may stand after `--dataset`."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from perpeft_ray.data.folders import new_folder
from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.errors import InputError

_FORMS = {"toyshop": "toyshop[:SEED]", "parquet": "parquet:PATH"}
_RAW = {
    "amazon2023": "amazon2023 --raw DIR --category NAME --out PATH",
    "release": "release FOLDER_OR_ZIP --name NAME --out PATH",
}
"""Raw data, which a command of its own makes into a folder: that takes hours and has options."""


def open_dataset(uri: str, cache: Path) -> Dataset:
    """The dataset that a URI names: `toyshop[:SEED]` (seed 0) or `parquet:PATH`.

    `toyshop` is generated once a seed, under `cache`. Raises `InputError` for any other form (for
    `amazon2023:…` and `release:…` it names the command that prepares them) and for a folder that
    `load_folder` rejects.
    """
    source, colon, rest = uri.partition(":")
    if source == "toyshop":
        return load_folder(_toyshop(uri, rest if colon else "0", cache), uri)
    if source == "parquet":
        if not rest:
            raise InputError(f"`dataset` must name a folder as parquet:PATH, but is {uri!r}")
        return load_folder(Path(rest), uri)
    if source in _RAW:
        raise InputError(
            f"`dataset` must be prepared data, but is {uri!r}; "
            f"run `perpeft prepare {_RAW[source]}` once, then use parquet:PATH"
        )
    raise InputError(
        f"`dataset` must be {' or '.join(_FORMS.values())}, but is {uri!r}{_hint(uri, source)}"
    )


def _toyshop(uri: str, seed: str, cache: Path) -> Path:
    if not (seed.isascii() and seed.isdigit()):
        raise InputError(f"`dataset` toyshop:SEED must have a whole number, but is {uri!r}")
    from perpeft_ray.data import toyshop

    # The generator's own source is its version: a changed generator never finds an old folder.
    source = hashlib.sha256()
    for file in sorted(Path(toyshop.__file__).parent.glob("toyshop*.py")):
        source.update(file.read_bytes())
    folder = cache / f"toyshop-{int(seed)}-{source.hexdigest()[:8]}"
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            toyshop.write_toyshop(temporary, int(seed))
    return folder


def _hint(uri: str, source: str) -> str:
    if uri and Path(uri).is_dir():
        return f"; did you mean 'parquet:{uri}'?"
    close = difflib.get_close_matches(source, _FORMS, n=1)
    return f"; did you mean {_FORMS[close[0]]}?" if close else ""
