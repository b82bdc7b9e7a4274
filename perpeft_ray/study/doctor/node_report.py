"""What `perpeft doctor` asks of every node, as a function that any node can run.

It travels by value and imports what it asks about only inside, so that a node answers even where
this package, or a library, is missing or of another version.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TypedDict

MISSING = "missing"
"""In the place of a version that a node does not have."""
SIGN = "here"
"""The file in the meeting folder that the asking process wrote."""


class Question(TypedDict):
    """What a node is asked."""

    meeting: str
    """Folder in the storage, by path or URI, where the asking process wrote."""
    sign: str
    """What the asking process wrote there to the file SIGN."""
    name: str
    """The file that this node is to write there."""
    files: dict[str, int]
    """Bytes of files of the catalogue, by absolute path."""
    encoder: str
    libraries: tuple[str, ...]
    """Distributions whose versions are asked for."""


class NodeReport(TypedDict):
    """What a node answers; a complaint is None where there is none."""

    versions: dict[str, str]
    storage: str | None
    catalogue: str | None
    encoder: str | None
    fingerprint: str | None
    """Of the encoder as this node sees it."""


def report_node(question: Question) -> NodeReport:
    """Answer on the node where this runs. Raises nothing that a node's set-up can cause."""
    fingerprint, complaint = _encoder(question["encoder"])
    return {
        "versions": library_versions(question["libraries"]),
        "storage": _storage(question["meeting"], question["sign"], question["name"]),
        "catalogue": _catalogue(question["files"]),
        "encoder": complaint,
        "fingerprint": fingerprint,
    }


def visible_gpus() -> int:
    """GPUs that torch can use in this process; 0 where torch is missing or has no CUDA."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Versions here of Python, this package and distributions; MISSING where not installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = MISSING
    # Not the installed distribution: under `ray job submit` the uploaded copy is what runs.
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
