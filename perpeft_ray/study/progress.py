"""Live progress of a study: one status line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from types import TracebackType
from typing import TextIO

from rich.status import Status as Spinner

from perpeft_ray.config import SEARCHABLE, VARIED, TrialConfig
from perpeft_ray.screen import console as console_on
from perpeft_ray.store.record import TrialRecord
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.train.outcome import EpochRecord


class Progress:
    """Shows a study's progress on standard error, since standard output has the results.

    A terminal gets one status line, and a separate line per failed trial; elsewhere plain lines,
    one per finished trial and at least one every `every` seconds.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._began = self._last = time.monotonic()
        self._planned: int | None = None
        self._shown: Collection[str] = VARIED
        self._done = self._before = 0
        self._preparing = ""
        self._starting = False  # workers, before the first trial
        self._epochs: dict[str, tuple[int, int]] = {}  # of running trials: epochs done, in all
        self._first_trial: float | None = None
        self._best: float | None = None
        self._spinner: Spinner | None = None
        self._console = console_on(self._stream, highlight=False, soft_wrap=True, markup=False)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._spinner = self._console.status(self._status(), refresh_per_second=2)
            self._spinner.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spinner is not None:
            self._spinner.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text)
        self._stream.flush()

    def prepared(self, items: int, total: int) -> None:
        """Show how many of the catalogue's items are prepared."""
        self._preparing = f": {items:,} of {total:,} items prepared"
        self.tick()

    def plan(self, trials: int, done: int, shown: Collection[str] = VARIED) -> None:
        """Set the number of trials of the study, and how many an earlier run has done.

        `shown`: the settings in a trial's line, as fields of `TrialConfig`. Prints a line if the
        study resumes.
        """
        self._shown = shown
        self.extend(trials, done)
        if done:
            self.say(f"continuing: {done} of {trials} trials are done")

    def extend(self, trials: int, done: int) -> None:
        """Add trials to the plan, some of which an earlier run has done, and start workers."""
        self._starting = True
        self._planned = (self._planned or 0) + trials
        self._done += done
        self._before += done

    def start(self, spec: TrialSpec) -> None:
        """Workers have begun a trial."""
        self._starting = False
        if self._first_trial is None:
            self._first_trial = time.monotonic()
        self._epochs[spec.trial_id] = (0, spec.config.stage1_epochs + spec.config.stage3_epochs)

    def epoch(self, spec: TrialSpec, record: EpochRecord) -> None:
        """A trial finished an epoch; updates the study's best validation NDCG@20."""
        self._epochs[spec.trial_id] = (record.epoch, self._epochs[spec.trial_id][1])
        value = record.best_valid_ndcg_at_20
        if value is not None:
            self._best = value if self._best is None else max(value, self._best)

    def finish(self, record: TrialRecord) -> None:
        """A trial ended: print its line, on a terminal only if it failed."""
        self._epochs.pop(record.trial_id, None)
        self._done += 1
        if self._spinner is not None and record.status != "FAIL":
            return
        score = record.epochs[-1].best_valid_ndcg_at_20 if record.epochs else None
        outcome = record.error or ("" if score is None else f"validation NDCG@20 {100 * score:.2f}")
        seconds = (record.finished_at - record.started_at).total_seconds()
        self.say(
            f"[{self._done}/{self._planned}] {record.status:<8} {record.trial_id}  "
            f"{_settings(record.config, self._shown)}  {seconds:.1f} s  {outcome}"
        )

    def tick(self) -> None:
        """Update the status line if it is due."""
        if self._spinner is not None:
            self._spinner.update(self._status())
        elif time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.say(self._status())

    def _status(self) -> str:
        elapsed = time.monotonic() - self._began
        if self._planned is None:
            return f"getting ready{self._preparing}, {_clock(elapsed)} elapsed"
        best = "-" if self._best is None else f"{100 * self._best:.2f}"
        epochs = ", ".join(f"{done}/{of}" for done, of in self._epochs.values())
        running = f"{len(self._epochs)} running" + (f" (epochs {epochs})" if epochs else "")
        running = "starting workers" if self._starting else running
        left = self._seconds_left()
        return (
            f"{self._done}/{self._planned} trials, {running}, "
            f"best validation NDCG@20 {best}, {_clock(elapsed)} elapsed, "
            f"{'-' if left is None else _clock(left)} left"
        )

    def _seconds_left(self) -> float | None:
        """Estimate from the trials so far; None before the first epoch."""
        ran = self._done - self._before + sum(done / of for done, of in self._epochs.values())
        if not ran or self._first_trial is None or self._planned is None:
            return None
        each = (time.monotonic() - self._first_trial) / ran
        return each * max(self._planned - self._before - ran, 0.0)


def _settings(config: TrialConfig, shown: Collection[str]) -> str:
    """A trial's searched settings that apply."""
    given = {
        setting.symbol: getattr(config, setting.name)
        for setting in SEARCHABLE
        if setting.name in shown and setting.applies(config.method, config.variant)
    }
    return " ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
