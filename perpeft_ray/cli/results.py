"""`perpeft tables` and `perpeft report`: a study's results again, from its Parquet files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from perpeft_ray.errors import InputError

if TYPE_CHECKING:
    from perpeft_ray.results.text import TextTable


@dataclass(frozen=True)
class Tables:
    """`perpeft tables STUDY` or `perpeft tables --paper`."""

    study: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="STUDY", help_behavior_hint=""),
    ] = None
    """Folder of the study, or its URI: <storage>/<study>."""
    paper: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print Tables 2 and 3 of the paper instead, with PerPEFT's wins counted."""

    def run(self) -> None:
        """Print the tables."""
        if self.paper == (self.study is not None):
            raise InputError("either a study or --paper must be given: perpeft tables STUDY")
        if self.study is None:
            print_paper_tables()
        else:
            print_tables(self.study)


@dataclass(frozen=True)
class Report:
    """`perpeft report STUDY`."""

    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""

    def run(self) -> None:
        """Write the report."""
        write_report(self.study)


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


def _print(tables: Sequence[TextTable]) -> None:
    # Where the output is no terminal, a table is as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table.terminal())
