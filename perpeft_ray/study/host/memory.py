"""A trial that Ray's memory monitor kills is to Tune a trial whose process has died.

Ray tells of such a kill by OutOfMemoryError, which is not a RayActorError. Tune of Ray 2.60 does
not expect it: of a trial that runs, it ends the whole study; of one that starts, it does not keep
the error for the trial's row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

_TOLD_OF_FAILURES = ("_actor_start_failed", "_actor_task_failed")


def take_memory_kills_as_deaths() -> None:
    """Have Tune fail a trial that was killed, and go on; a second call changes nothing.

    Raises AttributeError where Ray has no such methods: what it does instead is then to be read.
    """
    for name in _TOLD_OF_FAILURES:
        told = getattr(RayActorManager, name)
        if not hasattr(told, "__wrapped__"):
            setattr(RayActorManager, name, _with_deaths(told))


def _with_deaths(told: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(told)
    def wrapper(*args: Any, exception: Exception, **named: Any) -> None:
        if isinstance(exception, OutOfMemoryError):
            # The first line has the node and its memory; what follows is general advice.
            exception = RayActorError(error_msg=str(exception).strip().partition("\n")[0])
        told(*args, exception=exception, **named)

    return wrapper
