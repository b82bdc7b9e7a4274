"""A table of words, and its Markdown, LaTeX and terminal forms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import rich.box
from rich.table import Table
from rich.text import Text

MISSING = "–"
BEST = "▸"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

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
    """Rows that a line is drawn above."""

    def markdown(self) -> str:
        """As GitHub shows it; ends with a newline."""
        lines = [f"### {self.title}", ""]
        lines.append(_piped(self.header))
        lines.append(_piped(["---"] + ["---:"] * (len(self.header) - 1)))
        lines += [_piped(f"**{c.text}**" if c.best else c.text for c in row) for row in self.rows]
        return "\n".join([*lines, "", self.caption, ""])

    def latex(self) -> str:
        """A `table` float that needs the package `booktabs`; ends with a newline."""
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(self.title)}. {_tex(self.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_tex, self.header)) + r" \\",
            r"\midrule",
        ]
        for number, row in enumerate(self.rows):
            if number in self.rules:
                lines.append(r"\midrule")
            cells = (rf"\textbf{{{_tex(c.text)}}}" if c.best else _tex(c.text) for c in row)
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def terminal(self, *, bold: bool = True) -> Table:
        """For `rich.print`; without `bold`, the best are marked by ▸, as in a log."""
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


@dataclass(frozen=True)
class StudyTable:
    """A table's file name, its numbers (the Parquet and CSV files) and its printed forms."""

    name: str
    numbers: pd.DataFrame
    printed: tuple[TextTable, ...]


def mean_and_std(mean: float, std: float) -> str:
    """`4.82 ± 0.04` from values in [0, 1]; without the deviation where it is null."""
    return f"{100 * mean:.2f}" + ("" if pd.isna(std) else f" ± {100 * std:.2f}")


_TEX = {"±": r"$\pm$", "×": r"$\times$", "–": "--", "λ": r"$\lambda$", "\\": r"\textbackslash{}"}


def _tex(text: str) -> str:
    return re.sub(
        r"[&%$#_{}±×–λ\\]",
        lambda match: _TEX.get(match[0], "\\" + match[0]),
        text,
    )


def _piped(words: Iterable[str]) -> str:
    return "| " + " | ".join(words) + " |"
