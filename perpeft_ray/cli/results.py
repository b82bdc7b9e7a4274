"""`perpeft tables` and `perpeft report`: a study's results again, from its Parquet files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from perpeft_ray.errors import InputError

if TYPE_CHECKING:
    from perpeft_ray.results.text import TextTable


def tables(arguments: Sequence[str]) -> None:
    """`perpeft tables STUDY` or `perpeft tables --paper`."""
    if list(arguments) == ["--paper"]:
        print_paper_tables()
    else:
        print_tables(_folder("tables", arguments))


def report(arguments: Sequence[str]) -> None:
    """`perpeft report STUDY`."""
    write_report(_folder("report", arguments))


def print_tables(place: Path | str) -> None:
    """Write and print the tables of a study from its Parquet files."""
    from perpeft_ray.results.folder import StudyFolder
    from perpeft_ray.results.tables import write_tables

    folder = StudyFolder.open(place)
    _print([text for table in write_tables(folder) for text in table.printed])
    folder.keep()


def print_paper_tables() -> None:
    """Print Tables 2 and 3 of the paper, with PerPEFT's wins counted."""
    from perpeft_ray.results.reference import paper_text_tables

    _print(paper_text_tables())


def write_report(place: Path | str) -> None:
    """Write a study's tables, figures and page, and print where the page is."""
    from perpeft_ray.results import report
    from perpeft_ray.results.folder import StudyFolder

    folder = StudyFolder.open(place)
    page = report.write_report(folder)
    folder.keep()
    print(f"report: {folder.told(page)}")


def _folder(command: str, arguments: Sequence[str]) -> str:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError(
            f"`perpeft {command}` must have one study's folder or URI: perpeft {command} STUDY"
        )
    return arguments[0]


def _print(tables: Sequence[TextTable]) -> None:
    # Where the output is no terminal, a table is as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table.terminal())
