"""Files that appear whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block ends.

    The temporary name begins with a dot: pandas and pyarrow skip such files when they read a
    folder, so one left by a killed process is never part of a table. Creates parents.

    The name is random, since several processes may write the same file. In a working folder, where
    one works at a time, `perpeft_ray.data` writes to a fixed name, which a rerun overwrites.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.touch()  # so that Python's own error names a place that cannot be written
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
