"""The progress of a study as it is shown on a terminal and elsewhere."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perpeft_ray import screen
from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.progress import Progress
from perpeft_ray.train.outcome import EpochRecord
from tests.study.fakes import search_trials

SPEC, OTHER, *_ = search_trials(StudyConfig(train=TrainSettings(lr=0.005)))


def epoch(number: int, best: float | None = None) -> EpochRecord:
    return EpochRecord(1, number, 0.5, 1.0, None, best, False)


def ended(
    spec: TrialSpec, status: Any, epochs: list[EpochRecord], error: str | None = None
) -> TrialRecord:
    """A trial that began two seconds ago."""
    began = datetime.now(UTC) - timedelta(seconds=2)
    return spec.record("study", status, epochs, began, error=error)


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Progress(out, every=0.0) as progress:
        progress.plan(4, done=0, shown=("rank", "groups", "learning_rate"))
        progress.tick()
        progress.start(SPEC)
        progress.epoch(SPEC, epoch(1))
        progress.epoch(SPEC, epoch(2, 0.25))
        progress.tick()
        progress.finish(ended(SPEC, "COMPLETE", [epoch(1), epoch(2, 0.25)]))
        progress.start(SPEC)
        progress.finish(ended(SPEC, "FAIL", [], "ValueError: [no] markup"))
        time.sleep(0.01)
        progress.tick()
    starting, status, complete, failed, last = out.getvalue().splitlines()
    assert starting.startswith("0/4 trials, starting workers, best validation NDCG@20 -, ")
    assert status.startswith("0/4 trials, 1 running (epochs 2/24), best validation NDCG@20 25.00, ")
    assert status.endswith(" left")
    assert complete == (
        f"[1/4] COMPLETE {SPEC.trial_id}  G=6 r=4 lr=0.005  2.0 s  validation NDCG@20 25.00"
    )
    assert failed.endswith("2.0 s  ValueError: [no] markup")
    assert last.startswith("2/4 trials, 0 running, ")


def test_a_terminal_has_one_status_and_a_line_for_a_failed_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screen, "is_screen", lambda stream: True)
    out = io.StringIO()
    with Progress(out) as progress:
        progress.plan(4, done=0)
        progress.start(SPEC)
        progress.epoch(SPEC, epoch(2, 0.25))
        progress.tick()
        progress.finish(ended(SPEC, "COMPLETE", [epoch(2, 0.25)]))
        progress.start(OTHER)
        progress.finish(ended(OTHER, "FAIL", [], "ValueError: no"))
        progress.tick()
    assert SPEC.trial_id not in out.getvalue()
    assert f"FAIL     {OTHER.trial_id}" in out.getvalue()
    assert "2/4 trials, 0 running, best validation NDCG@20 25.00" in out.getvalue()


def test_time_left_counts_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    progress = Progress(out, every=0.0)
    now += 50  # getting ready
    progress.plan(14, done=10)
    progress.start(SPEC)
    now += 60
    progress.finish(ended(SPEC, "COMPLETE", []))
    progress.start(SPEC)
    now += 30
    progress.epoch(SPEC, epoch(12, 0.1))
    progress.tick()
    # One trial and a half in 90 s; two and a half are left.
    assert out.getvalue().splitlines()[-1] == (
        "11/14 trials, 1 running (epochs 12/24), best validation NDCG@20 10.00, "
        "2:20 elapsed, 2:30 left"
    )


def test_the_number_of_prepared_items_is_shown() -> None:
    out = io.StringIO()
    with Progress(out, every=0.0) as progress:
        progress.prepared(25_600, 1_000_001)
    assert out.getvalue().startswith("getting ready: 25,600 of 1,000,001 items prepared, ")
