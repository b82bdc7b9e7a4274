"""Which part of a dataset a study uses, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitKind = Literal["leave_one_out", "time"]


@dataclass(frozen=True)
class DataSettings:
    """What is taken of the dataset, before any split, and how it is split."""

    split: SplitKind = "leave_one_out"
    """leave_one_out: the last item of each user is test, the one before it validation (the
    paper's). time: train on what came before a point in time that is the same for all users."""
    test_share: float = 0.1
    """Of the time split: the share of all interactions, the latest, that is test; the same share
    before it is validation."""
    min_interactions: int = 1
    """Leave out users with fewer interactions."""
    sample_users: int | None = None
    """Take so many users, drawn at random, for a first look; None: all."""
    sample_seed: int = 0
    """Seed of that draw."""
