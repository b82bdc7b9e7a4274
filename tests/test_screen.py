"""Control sequences go to screens alone."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from perpeft_ray.screen import console, is_screen


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns."""
    for name in ("NO_COLOR", "JPY_PARENT_PID", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    _resize(theirs, 80)
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


def _resize(terminal: int, columns: int) -> None:
    rows = 24 if columns else 0
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_a_terminal_is_a_screen(terminal):
    assert is_screen(terminal)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TERM", "dumb"), ("TERM", ""), ("NO_COLOR", "1"), ("JPY_PARENT_PID", "17")],
)
def test_a_terminal_that_asks_for_plain_lines_is_none(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not is_screen(terminal)


def test_a_terminal_without_a_width_is_none(terminal):
    _resize(terminal.fileno(), 0)
    assert not is_screen(terminal)


def test_a_pipe_gets_no_control_sequences(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    console(stream).print("[bold red]text")
    assert stream.getvalue() == "text\n"
