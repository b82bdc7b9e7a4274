"""Where checkpoints lie: a local folder or a URI. Without torch, for those who only tidy up."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath

from pyarrow import fs


def resolve(folder: Path | str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or URI (`s3://…`, `file:///…`, `fsspec+…://…`), and the path
    in it. Raises ValueError or OSError where pyarrow does not know it or cannot reach it."""
    return fs.FileSystem.from_uri(
        str(folder.absolute()) if isinstance(folder, Path) else folder.rstrip("/")
    )


def subfolder(folder: Path | str, name: str) -> Path | str:
    """A folder in a folder, of the same kind."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def subfolders(folder: Path | str) -> list[str]:
    """The names of the folders in a folder; none where it is not there."""
    files, path = resolve(folder)
    infos = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [PurePosixPath(i.path).name for i in infos if i.type == fs.FileType.Directory]


def remove_checkpoints(folder: Path | str) -> None:
    """Remove a folder of checkpoints with all that is in it; nothing where it is not there."""
    files, path = resolve(folder)
    with suppress(FileNotFoundError):
        files.delete_dir(path)
