"""Turns a full disk into the end of the study, since it is no trial's fault."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perpeft_ray.errors import StudyStoppedError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def telling_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise StudyStoppedError if the block ends because a disk is full.

    `folder`: where the study writes, for the message.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        raise StudyStoppedError(
            f"no room on the disk ({free / 1e6:.1f} MB are left in {folder}); make room, then "
            "rerun the same command to resume"
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that a disk or quota is full."""
    text = os.strerror(errno.ENOSPC)  # the form it has in libraries not written in Python
    return any(
        (isinstance(one, OSError) and one.errno in _FULL) or text in str(one)
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            # Ray's exceptions keep another process's error as `cause`.
            left += [one.__cause__, one.__context__, getattr(one, "cause", None)]
            yield one
