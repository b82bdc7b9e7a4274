"""`perpeft prepare amazon2023|release|parquet`: raw data into a folder for `parquet:PATH`."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from perpeft_ray.data.prepare.amazon2023 import Selection, prepare_amazon2023
from perpeft_ray.data.prepare.download import Limits
from perpeft_ray.data.prepare.images import FAILURES_FILE
from perpeft_ray.data.prepare.paper import PAPER_DATASETS
from perpeft_ray.errors import InputError


def prepare(arguments: Sequence[str]) -> None:
    """Run `perpeft prepare` with these arguments; the same command goes on where it was stopped.

    Prints help and exits for `--help`. Raises InputError, in one line, for bad options and input.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            command = tyro.cli(_Command, args=arguments, prog="perpeft prepare")
    except SystemExit as ended:
        if ended.code in (0, None):
            raise
        raise InputError(_first_sentence(errors.getvalue())) from None
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    command.run()
    _print_result(command, time.perf_counter() - started)


@dataclass(frozen=True)
class Amazon2023:
    """A category of the Amazon Reviews 2023, from its published raw files."""

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
    """What DuckDB may hold in memory; the rest lies on disk beside the new folder."""

    def run(self) -> None:
        """Make the folder."""
        prepare_amazon2023(
            self.raw,
            self.category,
            self.out,
            self.selection,
            images=self.images,
            limits=self.limits,
            memory_gb=self.memory_gb,
        )


_Command = Annotated[Amazon2023, tyro.conf.subcommand("amazon2023")]


def _print_result(command: Amazon2023, seconds: float) -> None:
    from perpeft_ray.data.interactions import load_folder
    from perpeft_ray.data.prepare.report import findings, report_on, table_1

    report = report_on(command.out)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for line in findings(report):
        console.print(line)
    name = command.category
    console.print(table_1(report, name, PAPER_DATASETS.get(name)))
    failures = command.out / FAILURES_FILE
    if failures.is_file():
        with failures.open(encoding="utf-8") as file:
            failed = sum(1 for _ in file) - 1
        console.print(f"{failed:,} images failed, listed in {failures}")
    dataset = load_folder(command.out, f"parquet:{command.out}")
    console.print(f"{dataset.uri} in {seconds:.0f} s, fingerprint {dataset.fingerprint}")


def _first_sentence(box: str) -> str:
    """The message of tyro's error box as one line, without its frame, title and advice."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    message = itertools.takewhile(lambda line: line and not line.startswith("─"), lines)
    return " ".join(message)
