"""Style of all figures: sizes, and colours and markers that also work without colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perpeft_ray.config import METHODS, VARIANTS

PANEL = (3.6, 2.4)
"""Width and height of a panel in inches. Panels are stacked, so that 9 point text is 13 pixels high
when the figure is shown 400 pixels wide."""
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
"""Source: Okabe and Ito, Color Universal Design (2008)."""
_TOL_MUTED = ("#882255", "#999933", "#332288", "#44AA99", "#AA4499")
"""Source: Paul Tol, Colour Schemes (2021)."""
VARIANT_LOOKS: dict[str | None, dict[str, Any]] = {
    variant: {"color": colour, "marker": marker}
    for variant, colour, marker in zip(
        (None, *VARIANTS), ("#555555", *_OKABE_ITO, *_TOL_MUTED), "Dos^vP*X<>phd", strict=True
    )
}
"""Colour and marker of each variant, as options of matplotlib; None: methods without PEFT."""
BLACK = "#222222"
GREY = "#767676"
METHOD_LOOKS: dict[str, dict[str, Any]] = {
    method: {"color": colour, "marker": marker}
    for method, colour, marker in zip(
        METHODS, (*(GREY,) * 4, *_OKABE_ITO, *_TOL_MUTED[:4]), "+xXv^<>12osPph*", strict=True
    )
}
"""Methods without PEFT are grey and differ by line style."""

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
    """A figure with its file name, title and text alternative."""

    name: str
    title: str
    caption: str
    figure: Figure


def panels(count: int, height: float = PANEL[1]) -> tuple[Figure, list[Axes]]:
    """A figure of stacked panels, each `height` inches high."""
    figure = Figure(figsize=(PANEL[0], height * count + 0.3), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)
    return figure, [row[0] for row in axes]


def legend(figure: Figure, columns: int = 2) -> None:
    """The figure's legend, below its panels; each label occurs once."""
    entries = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = [handle for found, _ in entries for handle in found]
    labels = [label for _, found in entries for label in found]
    once = dict(zip(labels, handles, strict=True))
    rows = -(-len(once) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=columns)
