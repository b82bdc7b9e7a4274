"""Report on a prepared folder: Table 1's figures, and oddities of the data."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from perpeft_ray.data.interactions import INTERACTIONS_FILE, ITEMS_FILE
from perpeft_ray.data.prepare.database import CLEAN_TITLE, Database, quoted
from perpeft_ray.data.split import MIN_INTERACTIONS
from perpeft_ray.screen import counted


@dataclass(frozen=True)
class PaperDataset:
    """A row of the paper's Table 1 (arXiv 2602.09445), its category and subsample."""

    title: str
    category: str
    """Name of the raw files, `<category>.jsonl.gz` and `meta_<category>.jsonl.gz`, as published
    (amazon-reviews-2023.github.io)."""
    users: int
    items: int
    average_length: float
    density: float
    user_fraction: float
    """Share of the category's users in the paper; 1 if it names no sample."""


PAPER_DATASETS = {
    "sports_outdoors": PaperDataset(
        "Sports & Outdoors", "Sports_and_Outdoors", 25363, 15701, 7.5991, 0.0005, 0.2
    ),
    "toys_games": PaperDataset("Toys & Games", "Toys_and_Games", 19026, 14718, 8.5330, 0.0006, 0.2),
    "beauty_care": PaperDataset(
        "Beauty & Personal Care", "Beauty_and_Personal_Care", 45490, 31151, 9.5379, 0.0003, 1.0
    ),
    "arts": PaperDataset(
        "Arts, Crafts & Sewing", "Arts_Crafts_and_Sewing", 24511, 18884, 9.4328, 0.0005, 0.4
    ),
}
"""Keyed by the name in the authors' release and on our command line."""


@dataclass(frozen=True)
class Report:
    """Counts of a folder's interactions and items."""

    users: int
    items: int
    interactions: int
    repeats: int
    """Interactions with an item that the user had before."""
    ties: int
    """Interactions at the same time as another of the user."""
    short_users: int
    """Users with fewer than three interactions: they only train."""
    without_title: int
    """Items whose title is null or blank."""
    without_image: int
    """Items whose image is null."""

    @property
    def average_length(self) -> float:
        """Interactions per user."""
        return self.interactions / self.users

    @property
    def density(self) -> float:
        """Interactions over users × items."""
        return self.interactions / (self.users * self.items)


def report_on(folder: Path, *, memory_gb: float = 1.0) -> Report:
    """Count the content of a prepared folder, within a memory limit."""
    with (
        tempfile.TemporaryDirectory(prefix=".report-", dir=folder.absolute().parent) as scratch,
        Database(Path(scratch), memory_gb) as database,
    ):
        rows, items = (
            f"read_parquet({quoted(database.plain_path(folder / name))})"
            for name in (INTERACTIONS_FILE, ITEMS_FILE)
        )

        pairs, moments = (
            database.row(f"SELECT count(*) FROM (SELECT DISTINCT user_id, {column} FROM {rows})")[0]
            for column in ("item_id", "timestamp")
        )
        interactions, users, short_users = database.row(
            "SELECT sum(length)::BIGINT, count(*), "
            f"count(*) FILTER (length < {MIN_INTERACTIONS}) FROM "
            f"(SELECT count(*) AS length FROM {rows} GROUP BY user_id)"
        )
        number, titles, images = database.row(
            f"SELECT count(*), count({CLEAN_TITLE}), count(image) FROM {items}"
        )
    return Report(
        users=users,
        items=number,
        interactions=interactions,
        repeats=interactions - pairs,
        ties=interactions - moments,
        short_users=short_users,
        without_title=number - titles,
        without_image=number - images,
    )


def table_1(report: Report, name: str) -> Table:
    """Users, items, average length and density of a data set, beside the paper's Table 1."""
    table = Table(title=f"Table 1: {name}")
    table.add_column("")
    for column in ("users", "items", "average length", "density"):
        table.add_column(column, justify="right")
    table.add_row("here", *_row(report.users, report.items, report.average_length, report.density))
    if paper := PAPER_DATASETS.get(name):
        figures = _row(paper.users, paper.items, paper.average_length, paper.density)
        table.add_row("paper", *figures)
    return table


def findings(report: Report) -> list[str]:
    """Oddities of the data, one line each; every line appears, also with a count of 0."""
    return [
        f"{counted(report.interactions, 'interaction')} of {counted(report.users, 'user')} "
        f"with {counted(report.items, 'item')}",
        f"{counted(report.repeats, 'repeat')} of an item by a user",
        f"{counted(report.ties, 'tie')} in a user's times",
        f"{counted(report.short_users, 'user')} with fewer than {MIN_INTERACTIONS} interactions",
        f"{counted(report.without_title, 'item')} without title",
        f"{counted(report.without_image, 'item')} without image",
    ]


def _row(users: int, items: int, length: float, density: float) -> tuple[str, ...]:
    return f"{users:,}", f"{items:,}", f"{length:.4f}", f"{density:.4f}"
