"""What is in a prepared folder: Table 1's figures, and what is odd in the data."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.prepare.paper import PaperDataset
from perpeft_ray.data.split import MIN_INTERACTIONS


@dataclass(frozen=True)
class Report:
    """Counts of a folder's interactions and items."""

    users: int
    items: int
    interactions: int
    repeats: int
    """Interactions with an item that the user already had."""
    ties: int
    """Interactions at a time at which the user already had one."""
    short_users: int
    """Users with fewer than three interactions: they only train."""
    without_title: int
    """Items whose title is null or blank."""
    without_image: int
    """Items whose image is null."""

    @property
    def average_length(self) -> float:
        """Interactions a user."""
        return self.interactions / self.users

    @property
    def density(self) -> float:
        """Interactions over users × items."""
        return self.interactions / (self.users * self.items)


def report_on(dataset: Dataset) -> Report:
    """Count what is in a dataset."""
    interactions, items = dataset.interactions, dataset.items
    lengths = interactions["user_id"].value_counts()
    return Report(
        users=len(lengths),
        items=len(items),
        interactions=len(interactions),
        repeats=int(interactions.duplicated(["user_id", "item_id"]).sum()),
        ties=int(interactions.duplicated(["user_id", "timestamp"]).sum()),
        short_users=int((lengths < MIN_INTERACTIONS).sum()),
        without_title=int((items["title"].fillna("").str.strip() == "").sum()),
        without_image=int(items["image"].isna().sum()),
    )


def table_1(report: Report, name: str, paper: PaperDataset | None) -> Table:
    """Users, items, average length and density as in the paper's Table 1, beside the paper's."""
    table = Table(title=f"Table 1: {name}")
    table.add_column("")
    for column in ("users", "items", "average length", "density"):
        table.add_column(column, justify="right")
    table.add_row("here", *_row(report.users, report.items, report.average_length, report.density))
    if paper is not None:
        figures = _row(paper.users, paper.items, paper.average_length, paper.density)
        table.add_row("paper", *figures)
    return table


def findings(report: Report) -> list[str]:
    """What is odd in the data, a line each; every line is there, also where its count is 0."""
    return [
        f"{report.interactions:,} interactions of {report.users:,} users "
        f"with {report.items:,} items",
        f"{report.repeats:,} repeats of an item by a user",
        f"{report.ties:,} ties in a user's times",
        f"{report.short_users:,} users with fewer than {MIN_INTERACTIONS} interactions",
        f"{report.without_title:,} items without title",
        f"{report.without_image:,} items without image",
    ]


def _row(users: int, items: int, length: float, density: float) -> tuple[str, ...]:
    return f"{users:,}", f"{items:,}", f"{length:.4f}", f"{density:.4f}"
