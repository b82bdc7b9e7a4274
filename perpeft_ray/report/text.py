"""Tables of text in Markdown, LaTeX and for a terminal, how their cells are written, and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

_CAPTION_WIDTH = 60
"""Least width of a printed table for a caption as long, which a narrow table would break up."""


class TextTable:
    """A titled table of text: the first column to the left, the others to the right.

    `columns`: equally long columns by header; `best`: which cells of a column are bold; `rules`:
    rows with a line above them on a terminal.
    """

    def __init__(
        self,
        title: str,
        columns: Mapping[str, Iterable[str]] | pd.DataFrame,
        caption: str,
        best: Mapping[str, Iterable[bool]] | None = None,
        rules: Sequence[int] = (),
    ) -> None:
        self.title, self.caption, self.rules = title, caption, rules
        self.texts = pd.DataFrame({name: list(texts) for name, texts in columns.items()}, dtype=str)
        self.best = pd.DataFrame(False, self.texts.index, self.texts.columns)
        for name, bold in (best or {}).items():
            self.best[name] = list(bold)

    def rows(self) -> Iterator[list[tuple[str, bool]]]:
        """The cells of each row: the text, and whether it is bold."""
        for texts, bold in zip(self.texts.to_numpy(), self.best.to_numpy(), strict=True):
            yield list(zip(texts, bold, strict=True))

    def markdown(self) -> str:
        """The table in GitHub's Markdown; ends with a newline."""
        table = self._marked("**{}**").to_markdown(
            index=False, disable_numparse=True, colalign=self._sides("left", "right")
        )
        return f"### {self.title}\n\n{table}\n\n{self.caption}\n"

    def latex(self) -> str:
        """A `table` float that needs the package `booktabs`; ends with a newline."""
        table = self._marked(r"\textbf{{{}}}", _tex).style.hide(axis="index")
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
            min_width=min(len(self.caption), _CAPTION_WIDTH),
        )
        for name, side in zip(self.texts, self._sides("left", "right"), strict=True):
            table.add_column(Text(name), justify=side, no_wrap=True)
        for number, row in enumerate(self.rows()):
            if number in self.rules:
                table.add_section()
            texts = (f"{BEST}{text}" if best and not bold else text for text, best in row)
            styles = ("bold green" if best else "" for _, best in row)
            table.add_row(*map(Text, texts, styles))
        return table

    def _marked(self, best: str, escape: Callable[[str], str] = str) -> pd.DataFrame:
        texts = self.texts.map(escape)
        return texts.mask(self.best, texts.map(best.format)).rename(columns=escape)

    def _sides(self, first: Any, others: Any) -> list[Any]:
        return [first] + [others] * (len(self.texts.columns) - 1)


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
    """`+4.82 [4.70, 4.94]` from values in [0, 1]; only the value without an interval."""
    return [
        f"{100 * value:{form}}" + ("" if pd.isna(low) else f" [{100 * low:.2f}, {100 * high:.2f}]")
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
