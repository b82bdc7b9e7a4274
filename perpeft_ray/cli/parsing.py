"""A subcommand's arguments into a dataclass; what is wrong is told in one line."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from typing import TypeVar

import tyro

from perpeft_ray.errors import InputError

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], prog: str) -> T:
    """The dataclass that a command line describes.

    Prints help and exits for `--help`. Raises InputError for unknown fields and bad values.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, prog=prog)
    except SystemExit as ended:
        if ended.code in (0, None):
            raise
        raise InputError(first_sentence(errors.getvalue())) from None


def first_sentence(box: str) -> str:
    """The message of tyro's error box as one line, without its frame, title and advice."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    message = itertools.takewhile(lambda line: line and not line.startswith("─"), lines)
    return " ".join(message)
