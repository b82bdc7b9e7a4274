"""The paper's data sets: its Table 1, and the category and subsample of each.

Users, items, average length and density as printed in Table 1 of arXiv 2602.09445; file names as
the Amazon Reviews 2023 are published (amazon-reviews-2023.github.io).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperDataset:
    """A row of Table 1."""

    title: str
    category: str
    """Name of the raw files, `<category>.jsonl.gz` and `meta_<category>.jsonl.gz`."""
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
