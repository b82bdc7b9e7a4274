"""Works around Ray 2.60: makes Tune treat an out-of-memory kill as the trial's death.

Ray's memory monitor raises OutOfMemoryError, which is not a RayActorError and which Tune does not
expect. In a running trial it ends the whole study; in a starting one Tune loses the error for the
trial's row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

_TOLD_OF_FAILURES = ("_actor_start_failed", "_actor_task_failed")


def take_memory_kills_as_deaths() -> None:
    """Make Tune fail a killed trial and continue; a second call changes nothing.

    Raises AttributeError if Ray no longer has these methods.
    """
    for name in _TOLD_OF_FAILURES:
        told = getattr(RayActorManager, name)
        if not hasattr(told, "__wrapped__"):
            setattr(RayActorManager, name, _with_deaths(told))


def _with_deaths(told: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(told)
    def wrapper(*args: Any, exception: Exception, **named: Any) -> None:
        if isinstance(exception, OutOfMemoryError):
            # The first line has the node and its memory; the rest is general advice.
            exception = RayActorError(error_msg=str(exception).strip().partition("\n")[0])
        told(*args, exception=exception, **named)

    return wrapper
