"""`perpeft prepare amazon2023|release|parquet|table`: makes folders for `parquet:PATH`."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from perpeft_ray.config.rules import positive
from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.images import FAILURES_FILE, Limits, read_failures
from perpeft_ray.data.prepare.normalise import prepare_parquet
from perpeft_ray.data.prepare.release import MAX_BYTES, prepare_release
from perpeft_ray.data.prepare.report import findings, report_on, table_1
from perpeft_ray.data.prepare.table import TableSource, prepare_table
from perpeft_ray.data.split import MIN_INTERACTIONS
from perpeft_ray.screen import console as console_on
from perpeft_ray.screen import counted, note


@dataclass(frozen=True)
class Amazon2023:
    """`perpeft prepare amazon2023`."""

    raw: Path
    """Folder with CATEGORY.jsonl[.gz] and meta_CATEGORY.jsonl[.gz]."""
    category: str
    """sports_outdoors, toys_games, beauty_care or arts as in the paper, or a raw file's name."""
    out: Path
    """The new folder."""
    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    images: bool = True
    """Download the items' images."""
    limits: Annotated[Limits, tyro.conf.arg(name="images")] = field(default_factory=Limits)
    memory_gb: float = 1.0
    """Memory limit of DuckDB; the rest goes to disk beside the new folder."""

    def run(self) -> None:
        """Make the folder and print what is in it."""
        with _printing(self.out, self.memory_gb, paper=self.category):
            prepare_amazon2023(
                self.raw,
                self.category,
                self.out,
                self.selection,
                images=self.images,
                limits=self.limits,
                memory_gb=self.memory_gb,
            )


@dataclass(frozen=True)
class Release:
    """`perpeft prepare release SOURCE`."""

    source: tyro.conf.Positional[Path]
    """The archive (a zip of zips), or a folder with the data set's files."""
    name: str
    """The data set's name in the release: sports_outdoors, toys_games, beauty_care or arts."""
    out: Path
    """The new folder."""
    max_bytes: int = MAX_BYTES
    """Largest expanded size of the archive in bytes."""

    def run(self) -> None:
        """Make the folder and print what is in it."""
        with _printing(self.out, paper=self.name):
            prepare_release(self.source, self.name, self.out, max_bytes=self.max_bytes)


@dataclass(frozen=True)
class Parquet:
    """`perpeft prepare parquet SOURCE`."""

    source: tyro.conf.Positional[Path]
    """Folder with interactions.parquet, items.parquet and images."""
    out: Path
    """The new folder."""
    memory_gb: float = 1.0
    """Memory limit of DuckDB; the rest goes to disk beside the new folder."""

    def run(self) -> None:
        """Make the folder and print what is in it."""
        with _printing(self.out, self.memory_gb) as notes:
            notes += prepare_parquet(self.source, self.out, memory_gb=self.memory_gb).lines()


@dataclass(frozen=True)
class Table:
    """`perpeft prepare table`."""

    source: Annotated[TableSource, tyro.conf.arg(name="")]
    out: Path
    """The new folder."""
    memory_gb: float = 0.7
    """Memory limit of DuckDB; the rest goes to disk beside the new folder."""

    def run(self) -> None:
        """Make the folder and print what is in it."""
        with _printing(self.out, self.memory_gb) as notes:
            notes += prepare_table(self.source, self.out, memory_gb=self.memory_gb).lines()


@contextlib.contextmanager
def _printing(out: Path, memory_gb: float = 1.0, paper: str | None = None) -> Iterator[list[str]]:
    """Show the log of a preparation, then print the content of `out` and what was noted.

    `paper` names the data set beside whose figures in the paper it is printed.
    """
    positive("memory_gb", memory_gb)
    started, notes = time.perf_counter(), list[str]()
    # Our own modules' log, without urllib3's retries.
    logger, handler = logging.getLogger("perpeft_ray"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
    report = report_on(out, memory_gb=memory_gb)
    lines = [*findings(report), *notes]
    failures = read_failures(out)
    if failures:
        passing = sum(failure.passing for failure in failures)
        again = f"; rerun the same command to fetch {passing:,} of them again" if passing else ""
        lines.append(
            f"{counted(len(failures), 'image')} failed, listed in {out / FAILURES_FILE}{again}"
        )
    console = console_on()
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if paper is not None:
        console.print(table_1(report, paper))
    uri = f"parquet:{out}"
    print(uri)
    seconds = time.perf_counter() - started
    step = f"next: perpeft study --dataset {shlex.quote(uri)}"
    if report.users - report.short_users < 2:
        step = (
            f"missing: two users with at least {MIN_INTERACTIONS} interactions each, "
            "to train, validate and test"
        )
    elif report.items < 2:
        step = "missing: a second item"
    note(f"{seconds:.0f} s; {step}")
