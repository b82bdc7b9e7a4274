"""Exceptions that a user can act on; each message is one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(ValueError):
    """Bad input: the message is one line with the input, the rule and the value.

    Command-line programs print it to standard error and exit with status 2. It is raised before
    anything is written.
    """


class StudyStoppedError(RuntimeError):
    """A study with valid settings has to stop: the machine lacks something.

    The message is one line that names what is missing. Finished work is kept; rerun the same
    command to resume. Command-line programs print it and exit with status 1.
    """


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
