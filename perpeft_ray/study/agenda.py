"""Which trial Tune runs next: the search's, then those that its results call for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ray.tune.search import Searcher

from perpeft_ray.config import StudyConfig
from perpeft_ray.study.plan import Key, TrialSpec, search_trial
from perpeft_ray.study.search.suggest import Suggestions

Ready = Callable[[Collection[Key], bool], list[TrialSpec]]
"""(keys of trials that have ended, whether the search goes on) -> the trials that can be run."""


class Agenda(Searcher):
    """Hands out trials to Tune, and takes note of those that end.

    One Tune run for a whole study starts the trials' processes once, and leaves no processor idle
    where one phase waits for the other's last trial.

    `finished`: keys of trials that need not run. `ready`: see `Ready`. `suggestions` gives the
    `to_search` trials that come first.
    """

    def __init__(
        self,
        study: StudyConfig,
        finished: Collection[Key],
        ready: Ready,
        suggestions: Suggestions | None = None,
        to_search: int = 0,
    ) -> None:
        super().__init__()
        self._study = study
        self._ended = set(finished)
        self._ready = ready
        self._suggestions = suggestions
        self._to_search = to_search
        self._running: dict[str, TrialSpec] = {}
        self._queue: list[TrialSpec] | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Tune takes FINISHED too
        """The next trial for Tune; None to be asked again, FINISHED when all has been done."""
        spec = self._next(trial_id)
        if spec is None:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = spec
        return spec.to_tune()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass results of the search on."""
        if self._suggestions is not None and self._running[trial_id].is_searched:
            self._suggestions.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note that a trial has ended; others may be ready now."""
        spec = self._running.pop(trial_id)
        self._ended.add(spec.key)
        self._queue = None
        if self._suggestions is not None and spec.is_searched:
            self._suggestions.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a study goes on from its rows, not from Tune's files."""

    def _next(self, trial_id: str) -> TrialSpec | None:
        if self._suggestions is not None and self._to_search > 0:
            self._to_search -= 1
            return search_trial(self._study, self._suggestions.suggest_setting(trial_id))
        if self._queue is None:
            searching = any(spec.is_searched for spec in self._running.values())
            running = {spec.key for spec in self._running.values()}
            ready = self._ready(self._ended, searching)
            self._queue = [spec for spec in ready if spec.key not in self._ended | running]
        return self._queue.pop(0) if self._queue else None
