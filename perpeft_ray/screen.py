"""Whether output goes to a screen, which gets colours and a status line."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from rich.console import Console

_NO_SCREEN = ("", "dumb", "unknown")
"""Values of `TERM`."""


def note(text: str) -> None:
    """Print a line about progress to standard error."""
    print(text, file=sys.stderr)


def counted(number: float, noun: str) -> str:
    """`1 item`, `2,000 items`, `0.5 GPUs`; for nouns with a regular plural."""
    return f"{number:,.12g} {noun}" + ("" if number == 1 else "s")


def is_screen(stream: TextIO) -> bool:
    """Whether a stream is a terminal with a viewer and control sequences.

    A notebook's `!command` (`JPY_PARENT_PID` is Jupyter's) and CI jobs (`TERM=dumb`, or a terminal
    without width) have a terminal but no viewer. `NO_COLOR` asks for plain lines.
    """
    if not stream.isatty() or os.environ.get("TERM", "") in _NO_SCREEN:
        return False
    if os.environ.get("NO_COLOR") or "JPY_PARENT_PID" in os.environ:
        return False
    return os.get_terminal_size(stream.fileno()).columns > 0


def console(stream: TextIO | None = None, *, width_elsewhere: int = 200, **options: Any) -> Console:
    """rich's console on a stream, standard output by default; plain text unless it is a screen.

    Without a screen it has `width_elsewhere` columns, unless `COLUMNS` is set.
    """
    stream = stream or sys.stdout
    screen = is_screen(stream)
    if not screen:
        options = {"color_system": None, **options}
        if "COLUMNS" not in os.environ:
            options = {"width": width_elsewhere, **options}
    return Console(file=stream, force_terminal=screen, **options)
