"""Places for files: a local folder, or a URI that pyarrow (`s3://…`, `gs://…`) or fsspec knows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from pyarrow import fs

from perpeft_ray.errors import InputError

_OBJECT_STORES = {"s3", "gcs", "abfs"}
"""pyarrow's `type_name` of them."""


def is_uri(place: Path | str) -> bool:
    """Whether a place is a URI, and not a local path."""
    return isinstance(place, str) and "://" in place


def resolve(folder: Path | str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI (`s3://…`, `file:///…`, `fsspec+…://…`), and the path
    in it. Raises ValueError or OSError where pyarrow does not know it or cannot reach it."""
    return fs.FileSystem.from_uri(  # type: ignore[no-any-return]  # pyarrow is untyped
        str(folder.absolute()) if isinstance(folder, Path) else folder.rstrip("/")
    )


def subfolder(folder: Path | str, *names: str) -> Path | str:
    """A folder, or a file, in a folder, of the same kind."""
    if isinstance(folder, Path):
        return folder.joinpath(*names)
    return "/".join([folder.rstrip("/"), *names])


def subfolders(folder: Path | str) -> list[str]:
    """The names of the folders in a folder; none where it is not there."""
    files, path = resolve(folder)
    infos = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [PurePosixPath(i.path).name for i in infos if i.type == fs.FileType.Directory]


def remove_folder(folder: Path | str) -> None:
    """Remove a folder with all that is in it; nothing where it is not there."""
    files, path = resolve(folder)
    with suppress(FileNotFoundError):
        files.delete_dir(path)


def remove_file(file: Path | str) -> None:
    """Remove a file; nothing where it is not there."""
    files, path = resolve(file)
    with suppress(FileNotFoundError):
        files.delete_file(path)


def read_file(file: Path | str) -> bytes | None:
    """What a file holds; None where it is not there."""
    files, path = resolve(file)
    try:
        with files.open_input_stream(path) as stream:
            return stream.read()  # type: ignore[no-any-return]  # pyarrow is untyped
    except FileNotFoundError:
        return None


def write_file(file: Path | str, content: bytes) -> None:
    """Write a file, which appears whole or not at all. Parents are made."""
    write_whole(*resolve(file), content)


def write_whole(files: fs.FileSystem, path: str, content: bytes) -> None:
    """As `write_file`, where the file system is known.

    The temporary name begins with a dot, which those who read folders pass over. An object store
    needs none, nor folders: an object is there once its stream is closed.
    """
    if files.type_name in _OBJECT_STORES:
        _write(files, path, content)
        return
    folder, _, name = path.rpartition("/")
    files.create_dir(folder)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    _write(files, temporary, content)
    files.move(temporary, path)


def _write(files: fs.FileSystem, path: str, content: bytes) -> None:
    with files.open_output_stream(path) as stream:
        stream.write(content)


@contextmanager
def reached(place: Path | str) -> Iterator[None]:
    """Raise InputError, in one line, where the block cannot read or write at this `storage`."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:  # ImportError: of fsspec's, not installed
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"`storage` must be a place that can be read and written, but {place}: {first}"
        ) from error
