"""What each node answers to `perpeft doctor`, as a function that any node can run.

It is sent by value and imports libraries only inside, so that a node answers even if this package
or a library is missing or has another version.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TypedDict

MISSING = "missing"
"""Stands for the version of a missing library."""
SIGN = "here"
"""The file that the asking process wrote to the meeting folder."""


class NodeQuery(TypedDict):
    """The questions to a node, and the right answers."""

    meeting: str
    """Folder in the storage (path or URI) where the asking process wrote."""
    sign: str
    """Content that the asking process wrote to the file SIGN."""
    files: dict[str, int]
    """Sizes of the catalogue's files in bytes, by absolute path."""
    encoder: str
    fingerprint: str
    """The encoder's."""
    versions: dict[str, str]
    """As `library_versions` of the asking process."""


NodeReport = dict[str, str | None]
"""What is wrong on a node by check: versions, storage, catalogue, encoder; None: nothing."""


def report_node(query: NodeQuery, name: str) -> NodeReport:
    """Report on the node where this runs. Does not raise, whatever the node's set-up.

    `name`: the file that this node writes to the meeting folder.
    """
    return {
        "versions": _versions(query["versions"]),
        "storage": _storage(query["meeting"], query["sign"], name),
        "catalogue": _catalogue(query["files"]),
        "encoder": _encoder(query["encoder"], query["fingerprint"]),
    }


def visible_gpus() -> int:
    """GPUs that torch can use in this process; 0 without torch or CUDA."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Local versions of Python, distributions and this package, or MISSING."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = MISSING
    # Not the installed distribution: `ray job submit` runs the uploaded copy.
    try:
        from perpeft_ray import __version__
    except ImportError:
        return found | {"perpeft-ray": MISSING}
    return found | {"perpeft-ray": __version__}


def _versions(wanted: dict[str, str]) -> str | None:
    # Local parts do not count: a head without GPUs may have 2.13.0+cpu, workers +cu130.
    found = library_versions(
        tuple(name for name in wanted if name not in ("python", "perpeft-ray"))
    )
    wrong = [
        f"{name} {found[name]}, not {version}"
        for name, version in wanted.items()
        if found[name].partition("+")[0] != version.partition("+")[0]
    ]
    return "has " + " and ".join(wrong) if wrong else None


def _storage(meeting: str, sign: str, name: str) -> str | None:
    try:
        if _read(f"{meeting}/{SIGN}") != sign:
            return "has another file in its place"
    except (ImportError, OSError) as error:
        return f"cannot read it: {_reason(error)}"
    try:
        _write(f"{meeting}/{name}", sign)
    except OSError as error:
        return f"cannot write to it: {_reason(error)}"
    return None


def _read(file: str) -> str:
    if "://" not in file:
        return Path(file).read_text(encoding="utf-8")
    from pyarrow import fs

    files, path = fs.FileSystem.from_uri(file)
    with files.open_input_stream(path) as stream:
        return stream.read().decode()  # type: ignore[no-any-return]  # pyarrow is untyped


def _write(file: str, text: str) -> None:
    if "://" not in file:
        Path(file).write_text(text, encoding="utf-8")
        return
    from pyarrow import fs

    files, path = fs.FileSystem.from_uri(file)
    with files.open_output_stream(path) as stream:
        stream.write(text.encode())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _catalogue(files: dict[str, int]) -> str | None:
    for file, size in files.items():
        try:
            there = Path(file).stat().st_size
        except OSError as error:
            return f"cannot read {file}: {error.strerror}"
        if there != size:
            return f"has another {file} ({there} bytes, not {size})"
    return None


def _encoder(name: str, fingerprint: str) -> str | None:
    try:
        from perpeft_ray.encoder.preprocess import FoundationPreprocessor
        from perpeft_ray.encoder.source import encoder_fingerprint

        FoundationPreprocessor(name)
        if encoder_fingerprint(name) != fingerprint:
            return "has another encoder under this name"
    except (ImportError, OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        return f"cannot load it: {first}"
    return None
