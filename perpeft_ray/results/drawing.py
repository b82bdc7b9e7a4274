"""How all figures look: sizes, and colours and markers that are told apart without colour too."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perpeft_ray.config import VARIANTS

PANEL = (3.4, 2.8)
"""Width and height of a panel in inches, with 9 point text: two to a printed page's width."""
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
"""Source: Okabe and Ito, Color Universal Design (2008)."""
_TOL_MUTED = ("#882255", "#999933", "#332288", "#44AA99", "#AA4499")
"""Source: Paul Tol, Colour Schemes (2021)."""
VARIANT_COLOURS: dict[str | None, str] = {
    None: "#555555",
    **dict(zip(VARIANTS, _OKABE_ITO + _TOL_MUTED, strict=True)),
}
VARIANT_MARKERS: dict[str | None, str] = {
    None: "D",
    **dict(zip(VARIANTS, "os^vP*X<>phd", strict=True)),
}
GREY = "#767676"

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "savefig.dpi": 200,
    }
)


@dataclass(frozen=True)
class StudyFigure:
    """A figure's file name, title, and what it says in words for those who do not see it."""

    name: str
    title: str
    caption: str
    figure: Figure


def panels(columns: int, rows: int = 1, *, wrap: int = 3) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` × `columns` panels; one row of more than `wrap` goes on below."""
    if rows == 1 and columns > wrap:
        rows, columns = -(-columns // wrap), wrap
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]
