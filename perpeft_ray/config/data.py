"""Which part of a dataset a study uses, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitKind = Literal["leave_one_out", "time"]


@dataclass(frozen=True)
class DataSettings:
    """The part of the dataset that is used, and how it is split."""

    split: SplitKind = "leave_one_out"
    """leave_one_out (the paper's): each user's last item is test, the one before it validation.
    time: train on everything before one point in time, the same for all users."""
    test_share: float = 0.1
    """For the time split: the latest share of all interactions is test; the same share before it
    is validation."""
    min_interactions: int = 1
    """Drop users with fewer interactions."""
    sample_users: int | None = None
    """Use only this many users, drawn at random, for a first look; None: all."""
    sample_seed: int = 0
    """Seed of that draw."""
