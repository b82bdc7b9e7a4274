"""A trial on Ray Train workers, without Tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from perpeft_ray.train.broker import Failure, Task
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome


def train(broker: Any, task: Task, report: Callable[[EpochRecord], None]) -> TrialOutcome:
    """Have a task trained; raises what ended it."""
    ray.get(broker.submit.remote(task))
    while True:
        for news in ray.get(broker.news.remote(task.trial_id)):
            if isinstance(news, Failure):
                raise news.error
            if not isinstance(news, EpochRecord):
                return news
            report(news)
