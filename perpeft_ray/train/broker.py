"""Hands trials to long-lived workers and returns their reports.

A *slot* is one group of workers, which takes trials one after another. The broker runs as one Ray
actor (`train/ray_train.py`), but nothing in it needs Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from perpeft_ray.config import TrialConfig
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome

MAX_LOSSES = 2
"""How often a trial may lose its workers in one epoch, killed or with their node."""


@dataclass(frozen=True)
class Task:
    """A trial to train."""

    trial_id: str
    config: TrialConfig
    test: bool
    checkpoints: Path | str
    """The trial's own folder, a path or URI."""
    fresh_process: bool = False
    """Whether the workers' processes end with it."""


@dataclass(frozen=True)
class Failure:
    """Why a trial ended without an outcome."""

    error: Exception


News = EpochRecord | TrialOutcome | Failure


@dataclass(eq=False)
class _Trial:
    task: Task
    news: list[News] = field(default_factory=list)
    reported: int = 0
    """The last reported epoch."""
    losses: int = 0
    """Since then."""
    dropped: bool = False


@dataclass(eq=False)
class _Slot:
    serial: int = 0
    """Serial number of the current or last task."""
    trial: _Trial | None = None


class Broker:
    """Hands tasks to slots, and their reports to the submitters."""

    def __init__(self) -> None:
        self._waiting: deque[_Trial] = deque()
        self._trials: dict[str, _Trial] = {}
        self._slots: dict[int, _Slot] = {}
        self._begun: dict[str, datetime] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def submit(self, task: Task) -> None:
        """Queue a trial."""
        trial = _Trial(task)
        self._trials[task.trial_id] = trial
        self._waiting.append(trial)
        await self._tell()

    async def begun(self, trial_id: str) -> datetime:
        """When workers took a trial first; waits for it."""
        await self._until(lambda: trial_id in self._begun)
        return self._begun[trial_id]

    async def news(self, trial_id: str) -> list[News]:
        """A trial's reports since the last call; waits for the first one.

        Each epoch is returned once. The last report is a `TrialOutcome` or a `Failure`.
        """
        trial = self._trials[trial_id]
        await self._until(lambda: bool(trial.news))
        found, trial.news = trial.news, []
        return found

    async def drop(self, trial_id: str) -> None:
        """Give a trial up: its workers stop after their epoch."""
        trial = self._trials.pop(trial_id, None)
        if trial is not None:
            trial.dropped = True
            if trial in self._waiting:
                self._waiting.remove(trial)

    async def take(self, slot: int, after: int) -> tuple[int, Task] | None:
        """The next task of a slot's workers and its serial number; waits for one. None: the end.

        Every worker of the slot calls it with the number of its last task, 0 at first; restarted
        workers get the current task again.
        """
        of_slot = self._slots.setdefault(slot, _Slot())

        def ready() -> bool:
            if of_slot.trial is None and self._waiting and not self._closed:
                of_slot.trial = self._waiting.popleft()
                of_slot.serial += 1
            return self._closed or (of_slot.trial is not None and of_slot.serial > after)

        await self._until(ready)
        if self._closed or of_slot.trial is None:
            return None
        task = of_slot.trial.task
        if task.trial_id not in self._begun:
            self._begun[task.trial_id] = datetime.now(UTC)
            await self._tell()
        return of_slot.serial, task

    async def report(self, slot: int, serial: int, record: EpochRecord) -> bool:
        """Receive an epoch of a slot's task; returns whether its workers must stop."""
        trial = self._in_hand(slot, serial)
        if trial is None or trial.dropped or self._closed:
            return True
        if record.epoch > trial.reported:
            trial.reported, trial.losses = record.epoch, 0
            trial.news.append(record)
            await self._tell()
        return False

    async def end(self, slot: int, serial: int, result: TrialOutcome | Failure | None) -> None:
        """A slot's workers have finished their task; None: they were stopped."""
        trial = self._in_hand(slot, serial)
        if trial is not None:
            self._slots[slot].trial = None
            if result is not None:
                trial.news.append(result)
            await self._tell()

    async def lost(self, slot: int, how: str, *, for_want_of_memory: bool) -> None:
        """A slot has lost workers and restarts its current task, unless that was lost too often or
        needs more memory than there is."""
        of_slot = self._slots.get(slot)
        trial = of_slot.trial if of_slot else None
        if of_slot is None or trial is None:
            return
        trial.losses += 1
        if for_want_of_memory:
            error: Exception = MemoryError(how)
        elif trial.losses > MAX_LOSSES:
            text = f"workers were lost {trial.losses} times in epoch {trial.reported + 1}"
            error = RuntimeError(f"{text}; killed, perhaps for want of memory, or gone ({how})")
        elif not trial.dropped:
            return
        else:
            error = RuntimeError(how)  # nobody waits for its report
        of_slot.trial = None
        trial.news.append(Failure(error))
        await self._tell()

    async def close(self) -> None:
        """Give out no more tasks, and stop the current ones after their epoch."""
        self._closed = True
        await self._tell()

    def _in_hand(self, slot: int, serial: int) -> _Trial | None:
        of_slot = self._slots.get(slot)
        return of_slot.trial if of_slot and of_slot.serial == serial else None

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(ready)
