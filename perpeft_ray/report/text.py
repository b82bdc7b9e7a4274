"""Tables of text in Markdown, LaTeX and for a terminal, how their cells are written, and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import rich.box
from rich.table import Table
from rich.text import Text

from perpeft_ray.store.files import whole_file

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

    @classmethod
    def of(
        cls,
        title: str,
        columns: Mapping[str, Iterable[str]],
        caption: str,
        best: Mapping[str, Iterable[bool]] | None = None,
    ) -> TextTable:
        """A table from equally long columns by header; `best`: which cells of a column are bold."""
        cells = {name: [Cell(text) for text in texts] for name, texts in columns.items()}
        for name, bold in (best or {}).items():
            cells[name] = [Cell(c.text, bool(b)) for c, b in zip(cells[name], bold, strict=True)]
        return cls(title, tuple(cells), tuple(zip(*cells.values(), strict=True)), caption)

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


def write_page(path: Path, room: str, template: str, **values: Any) -> None:
    """Write an HTML page from a Jinja template of a package, whole or not at all."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(room, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def shown(values: Iterable[Any], form: str = "") -> list[str]:
    """Values in a format of Python's; null ones as a dash."""
    return [MISSING if pd.isna(value) else format(value, form) for value in values]


def with_error(means: Iterable[float], errors: Iterable[float]) -> list[str]:
    """`4.82 ± 0.04` from values in [0, 1]; without a null error, a dash for a null mean."""
    ends = ("" if pd.isna(error) else f" ± {100 * error:.2f}" for error in errors)
    return [
        MISSING if pd.isna(mean) else f"{100 * mean:.2f}{end}"
        for mean, end in zip(means, ends, strict=True)
    ]


def with_interval(
    values: Iterable[float], lows: Iterable[float], highs: Iterable[float], form: str = "+.2f"
) -> list[str]:
    """`+4.82 [4.70, 4.94]` from values in [0, 1]."""
    return [
        f"{100 * value:{form}} [{100 * low:.2f}, {100 * high:.2f}]"
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def p_text(p: float) -> str:
    """A p value as printed: three decimals, or `<.001`."""
    return MISSING if pd.isna(p) else "<.001" if p < 0.001 else f"{p:.3f}"


_TEX = {"±": r"$\pm$", "×": r"$\times$", "–": "--", "λ": r"$\lambda$", "\\": r"\textbackslash{}"}


def _tex(text: str) -> str:
    return re.sub(
        r"[&%$#_{}±×–λ\\]",
        lambda match: _TEX.get(match[0], "\\" + match[0]),
        text,
    )
