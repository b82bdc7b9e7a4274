"""A node's report for `perpeft doctor`, as a function that any node can run.

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
    """The questions to a node."""

    meeting: str
    """Folder in the storage (path or URI) where the asking process wrote."""
    sign: str
    """Content that the asking process wrote to the file SIGN."""
    name: str
    """The file that this node must write there."""
    files: dict[str, int]
    """Sizes of the catalogue's files in bytes, by absolute path."""
    encoder: str
    libraries: tuple[str, ...]
    """Distributions whose versions to report."""


class NodeReport(TypedDict):
    """A node's answers; complaints are None if there are none."""

    versions: dict[str, str]
    storage: str | None
    catalogue: str | None
    encoder: str | None
    fingerprint: str | None
    """Fingerprint of the encoder on this node."""


def report_node(question: NodeQuery) -> NodeReport:
    """Report on the node where this runs. Does not raise, whatever the node's set-up."""
    fingerprint, complaint = _encoder(question["encoder"])
    return {
        "versions": library_versions(question["libraries"]),
        "storage": _storage(question["meeting"], question["sign"], question["name"]),
        "catalogue": _catalogue(question["files"]),
        "encoder": complaint,
        "fingerprint": fingerprint,
    }


def visible_gpus() -> int:
    """GPUs that torch can use in this process; 0 without torch or CUDA."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Local versions of Python, this package and distributions, or MISSING."""
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


def _encoder(name: str) -> tuple[str | None, str | None]:
    try:
        from perpeft_ray.encoder.preprocess import FoundationPreprocessor
        from perpeft_ray.encoder.source import encoder_fingerprint

        FoundationPreprocessor(name)
        return encoder_fingerprint(name), None
    except (ImportError, OSError, ValueError) as error:
        return None, str(error).partition("\n")[0]
