"""`perpeft tables`, `report` and `power`: a study's results from its Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from perpeft_ray.config.rules import positive
from perpeft_ray.errors import InputError
from perpeft_ray.screen import console as console_on

if TYPE_CHECKING:
    from perpeft_ray.api.study import OpenedStudy
    from perpeft_ray.report.tables import StudyResults
    from perpeft_ray.report.text import StudyTable, TextTable
    from perpeft_ray.store.folder import StudyFolder


@dataclass(frozen=True)
class Tables:
    """`perpeft tables STUDY` or `perpeft tables --paper`."""

    study: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="STUDY", help_behavior_hint=""),
    ] = None
    """Folder of the study, or its URI: <storage>/<study>."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print every table: HR, comparisons, best settings, learning rates and costs too."""
    k: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Lengths K of recommended lists in the table of metrics; default: the study's metrics.k."""
    paper: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print Tables 2 and 3 of the paper instead, with PerPEFT's wins counted."""

    def run(self) -> None:
        """Print the tables."""
        if self.paper == (self.study is not None):
            raise InputError("either a study or --paper must be given: perpeft tables STUDY")
        if self.study is None:
            from perpeft_ray.report.reference import paper_text_tables

            for table in paper_text_tables():
                _console().print(table.terminal())
            return
        from perpeft_ray.api.study import open_study
        from perpeft_ray.report.tables import write_tables

        results = open_study(self.study, self.k).results()
        tables = write_tables(results)
        results.folder.keep("tables")
        _print_answer(results, tables, every_table=self.all)


@dataclass(frozen=True)
class Report:
    """`perpeft report STUDY`."""

    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""

    def run(self) -> None:
        """Write the report."""
        from perpeft_ray.api.study import open_study

        study = open_study(self.study)
        print(f"Report: {_shown(study.folder, study.report())}")


@dataclass(frozen=True)
class Power:
    """`perpeft power STUDY`."""

    study: tyro.conf.Positional[str]
    """Folder of the study, or its URI: <storage>/<study>."""
    effect: float = 0.1
    """The effect to plan for: a gain in NDCG@20 over `global`, 0.1 for 10 %."""

    def run(self) -> None:
        """Print the estimate."""
        from perpeft_ray.api.study import open_study
        from perpeft_ray.report.power import power_table

        positive("effect", self.effect)
        results = open_study(self.study).results()
        own = [c for c in results.compared if (c.method_a, c.method_b) == ("perpeft", "global")]
        if not own:
            raise InputError(
                f"{self.study} must have complete trials of perpeft and global, but has none"
            )
        _console().print(power_table(own, self.effect).terminal())


def show_results(study: OpenedStudy) -> None:
    """Write a study's tables, figures and page, and print the first table and the verdict."""
    from perpeft_ray.report.page import empty_groups, write_report

    results = study.results()
    page, tables = write_report(results)
    results.folder.keep("tables", "figures", "report.html")
    _print_answer(results, tables)
    for warning in empty_groups(results):
        print(f"Warning: {warning}")
    print(f"Report: {_shown(results.folder, page)}")


def _shown(folder: StudyFolder, path: Path) -> str:
    """The shortest path of a file in the study's folder, or its URI."""
    here = Path.cwd()
    if not folder.uri and path.is_relative_to(here):
        return str(path.relative_to(here))
    return folder.shown_path(path).removesuffix("/.")


def _print_answer(
    results: StudyResults, tables: dict[str, StudyTable], *, every_table: bool = False
) -> None:
    from perpeft_ray.report.tables import answer_lines, printed_tables

    console = _console()
    shown: list[TextTable] = printed_tables(tables)
    if every_table:
        shown = [text for table in tables.values() for text in table.printed]
    for table in shown:
        console.print(table.terminal(bold=console.is_terminal))
    if not results.compares:
        return
    for line in answer_lines(results, _shown(results.folder, results.folder.path)):
        console.print(line, soft_wrap=" export " in line)  # a command to copy stays whole


def _console() -> Console:
    """A console as wide as the terminal, else 100 characters."""
    return console_on(width_elsewhere=100, highlight=False, markup=False, emoji=False)
