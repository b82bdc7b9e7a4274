"""A table of text, and its Markdown, LaTeX and terminal forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import rich.box
from rich.table import Table
from rich.text import Text

MISSING = "–"
BEST = "▸"


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    best: bool = False
    """Printed bold."""


@dataclass(frozen=True)
class TextTable:
    """A titled table; every row has as many cells as the header has words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    rules: tuple[int, ...] = ()
    """Rows with a line above them on a terminal."""

    def markdown(self) -> str:
        """The table in GitHub's Markdown; ends with a newline."""
        table = self._frame("**{}**").to_markdown(
            index=False, disable_numparse=True, colalign=self._sides("left", "right")
        )
        return f"### {self.title}\n\n{table}\n\n{self.caption}\n"

    def latex(self) -> str:
        """A `table` float that needs the package `booktabs`; ends with a newline."""
        table = self._frame(r"\textbf{{{}}}", _tex).style.hide(axis="index")
        return table.to_latex(  # type: ignore[no-any-return]  # pandas is untyped here
            caption=f"{_tex(self.title)}. {_tex(self.caption)}",
            column_format="".join(self._sides("l", "r")),
            position_float="centering",
            hrules=True,
        )

    def terminal(self, *, bold: bool = True) -> Table:
        """The table for `rich.print`; without `bold`, ▸ marks the best, as in a log."""
        table = Table(
            title=self.title,
            caption=self.caption if bold else self.caption.replace("bold:", f"{BEST}:"),
            box=rich.box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
        )
        for number, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
        for number, row in enumerate(self.rows):
            if number in self.rules:
                table.add_section()
            texts = (c.text if bold or not c.best else f"{BEST}{c.text}" for c in row)
            styles = ("bold green" if c.best else "" for c in row)
            table.add_row(*map(Text, texts, styles))
        return table

    def _frame(self, best: str, escape: Callable[[str], str] = str) -> pd.DataFrame:
        rows = [
            [best.format(escape(c.text)) if c.best else escape(c.text) for c in row]
            for row in self.rows
        ]
        return pd.DataFrame(rows, columns=[escape(name) for name in self.header])

    def _sides(self, first: str, others: str) -> list[str]:
        return [first] + [others] * (len(self.header) - 1)


@dataclass(frozen=True)
class StudyTable:
    """A table's file name, its numbers (the Parquet and CSV files) and its printed forms."""

    name: str
    numbers: pd.DataFrame
    printed: tuple[TextTable, ...]


def mean_and_std(mean: float, std: float) -> str:
    """`4.82 ± 0.04` from values in [0, 1]; without a null deviation."""
    return f"{100 * mean:.2f}" + ("" if pd.isna(std) else f" ± {100 * std:.2f}")


_TEX = {"±": r"$\pm$", "×": r"$\times$", "–": "--", "λ": r"$\lambda$", "\\": r"\textbackslash{}"}


def _tex(text: str) -> str:
    return re.sub(
        r"[&%$#_{}±×–λ\\]",
        lambda match: _TEX.get(match[0], "\\" + match[0]),
        text,
    )
