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
    """Whether a place is a URI rather than a local path."""
    return isinstance(place, str) and "://" in place


def resolve(folder: Path | str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI (`s3://…`, `file:///…`, `fsspec+…://…`), and the path
    in it. Raises ValueError or OSError if pyarrow does not know it or cannot reach it."""
    return fs.FileSystem.from_uri(  # type: ignore[no-any-return]  # pyarrow is untyped
        str(folder.absolute()) if isinstance(folder, Path) else folder.rstrip("/")
    )


def subfolder(folder: Path | str, *names: str) -> Path | str:
    """A folder or file inside a folder, in the same form (path or URI)."""
    if isinstance(folder, Path):
        return folder.joinpath(*names)
    return "/".join([folder.rstrip("/"), *names])


def subfolders(folder: Path | str) -> list[str]:
    """The names of the folders in a folder; none if it does not exist."""
    files, path = resolve(folder)
    infos = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [PurePosixPath(i.path).name for i in infos if i.type == fs.FileType.Directory]


def remove_folder(folder: Path | str) -> None:
    """Remove a folder with its content, if it exists."""
    files, path = resolve(folder)
    with suppress(FileNotFoundError):
        files.delete_dir(path)


def remove_file(file: Path | str) -> None:
    """Remove a file, if it exists."""
    files, path = resolve(file)
    with suppress(FileNotFoundError):
        files.delete_file(path)


def read_file(file: Path | str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    files, path = resolve(file)
    try:
        with files.open_input_stream(path) as stream:
            return stream.read()  # type: ignore[no-any-return]  # pyarrow is untyped
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_file(file: Path | str, content: bytes) -> None:
    """Write a file, which appears whole or not at all. Creates parents."""
    write_whole(*resolve(file), content)


def write_whole(files: fs.FileSystem, path: str, content: bytes) -> None:
    """As `write_file`, on a given file system.

    The temporary name begins with a dot, which readers of folders skip. An object store needs
    neither it nor folders: an object appears when its stream is closed.
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
    """Turn errors of reading or writing at this `storage` into an InputError of one line."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:  # or a missing fsspec backend
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"`storage` must be a place that can be read and written, but {place}: {first}"
        ) from error
