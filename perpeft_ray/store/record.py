"""The stored record of a trial, and what a study reads again to resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from perpeft_ray.config import TrialConfig
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome

Status = Literal["COMPLETE", "PRUNED", "FAIL"]
Phase = Literal["search", "ablation", "settings"]
"""`search` never reads test. `ablation` compares methods at their best settings, `settings` given
settings, such as the values of a sensitivity curve."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, one row of the result table."""

    study: str
    trial_id: str
    phase: Phase
    status: Status
    error: str | None
    """One line; None unless the status is FAIL."""
    config: TrialConfig
    outcome: TrialOutcome | None
    """None unless the status is COMPLETE."""
    epochs: Sequence[EpochRecord]
    """Reported epochs, also of an unfinished trial."""
    started_at: datetime
    """With time zone (UTC)."""
    finished_at: datetime


@dataclass(frozen=True)
class Searched:
    """The stored result of a finished trial of the search."""

    config: TrialConfig
    status: Status
    """COMPLETE or PRUNED."""
    score: float | None
    """Validation NDCG@20; None unless COMPLETE."""
    size: int | None
    """Trainable parameters; None unless COMPLETE."""
    validated: Sequence[tuple[int, float]]
    """Its validated epochs of stage 3: (epoch of the whole trial, best validation NDCG@20)."""
