"""Parses a command line into a dataclass and ends commands; errors take one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

from perpeft_ray.errors import InputError, StudyStoppedError, is_full_disk

T = TypeVar("T")

_INTERRUPTED = "interrupted; rerun the same command to resume"
_OF_PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""Errors of the place that the user gave; others, a lost file or disk, keep their traceback."""
_TEMPORARY = re.compile(r"\.([^/]+)\.(?:[0-9a-f]{32}|lock|unfinished)$")
"""The name of a file or folder that is being written, which the user has called `\\1`."""


def run(command: Callable[[], None]) -> None:
    """Run a command and exit: 0 done, 2 bad input (one line on standard error), 1 anything else.

    SIGTERM ends it as Ctrl-C does, with exit status 143.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray's while it starts
    try:
        with contextlib.ExitStack() as at_end:
            at_end.callback(sys.stdout.flush)
            command()
    except InputError as error:
        _end(2, f"error: {error}")
    except StudyStoppedError as stopped:
        _end(1, f"error: {stopped}")
    except KeyboardInterrupt:
        _end(1, _INTERRUPTED)
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        _end(143, _INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if is_full_disk(error):
            _end(1, "error: no room on the disk; make room, then rerun the same command to resume")
        if not isinstance(error, OSError) or error.errno not in _OF_PLACES:
            raise
        place = _TEMPORARY.sub(r"\1", str(error.filename2 or error.filename))
        rule = "must be a place that can be read and written"
        _end(2, f"error: {place} {rule}, but: {error.strerror}")


def _end(status: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(status)


def parse(
    kind: type[T],
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    default: T | None = None,
) -> T:
    """Parse a command line, by default the process's own, into a dataclass.

    Prints help and exits for `--help`. Raises InputError for unknown options and bad values.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: tuple[T, list[str]] = tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=(tyro.conf.PositionalMetavarFromFieldName,),
            )
    except SystemExit as ended:
        if ended.code in (0, None):
            raise
        raise InputError(_message(errors.getvalue())) from None
    command, unknown = parsed
    if unknown:
        raise InputError(_unknown(unknown[0], type(command)))
    return command


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of an error that suggests the nearest name; empty if none is near."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _unknown(argument: str, kind: type) -> str:
    if not argument.startswith("-"):
        return f"unexpected value {argument!r}: options are written as --field value"
    field = argument.lstrip("-").partition("=")[0].replace("-", "_")
    return f"unknown field `{field}`{nearest(field, list(_fields(kind)))}"


def _fields(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of a dataclass's options, as renamed by `tyro.conf.arg`."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        given = [getattr(extra, "name", None) for extra in getattr(hint, "__metadata__", ())]
        name = next((name for name in given if name is not None), field.name)
        inner = getattr(hint, "__origin__", hint)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _fields(inner, f"{prefix}{name}." if name else prefix)
        else:
            yield prefix + name


def _message(box: str) -> str:
    """The message of tyro's error box as one line, which names a wrong value's option and kind.

    tyro 1.0 has the parts of a message only in a private function (`on_parse_error`).
    """
    _, inside, *_ = re.split(r"^(?:[╭╰+].*|[│|]?\s*[─-]{9}.*)$", box, flags=re.MULTILINE)
    lines = (line.strip("│ ") for line in inside.strip().splitlines())
    message = " ".join(itertools.takewhile(bool, lines))
    message = re.sub(r"^Error parsing \S+: (?=`)", "", message)  # a rule of ours names the field
    values = re.findall(r"'(.*?)'", message)
    if found := re.match(r"Missing value for argument '(\S+)'", message):
        return f"`{found[1]}` must be followed by a value"
    if message.startswith("invalid choice") and len(values) > 2:
        value, option, *choices = values
        rule = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        return f"`{option}` must be {rule}, but is {value!r}{nearest(value, choices)}"
    option = re.match(r"Error parsing (?:\S+/)?(--\S+): ", message)
    kind = option and re.search(rf"{option[1]} (.*?)[ │|]*$", box, flags=re.MULTILINE)
    if option and kind and values:
        return f"`{option[1]}` must be {_words(kind[1])}, but is {' '.join(values)!r}"
    return message


def _words(kind: str) -> str:
    """Words for a kind of value: `whole numbers` for tyro's `[INT [INT ...]]`."""
    kind = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"\1s", kind)
    kind = re.sub(r"\b(\w+) \1\b", r"two \1s", kind)
    kind = re.sub(r"\b(INT|FLOAT)\b", r"a \1", kind)
    for theirs, ours in {"INT": "whole number", "FLOAT": "number", "|": " or "}.items():
        kind = kind.replace(theirs, ours)
    return re.sub(r"[][{}]", "", kind)
