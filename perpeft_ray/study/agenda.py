"""Chooses Tune's next trial: the search's, then those that follow from its results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from ray.tune.result import DONE
from ray.tune.search import Searcher

from perpeft_ray.config import Method
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.search import Search
from perpeft_ray.study.trainable import OBJECTIVE

Ready = Callable[[Collection[Method]], list[TrialSpec]]
"""From the methods whose search has not ended to the later trials that are ready."""


class Agenda(Searcher):
    """Hands trials to Tune, and records those that end.

    One Tune run per study starts the trials' processes once, and leaves no CPU idle while one phase
    waits for the other's last trial.

    `folder`: its finished trials need not run. `ready`: see `Ready`. `searches`: of the methods
    with one; their trials come first.
    """

    def __init__(
        self,
        folder: StudyFolder,
        ready: Ready,
        searches: Mapping[Method, Search] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._folder = folder
        self._ended = folder.finished()
        self._ready = ready
        self._searches = searches
        self._running: dict[str, TrialSpec] = {}
        self._queue: list[TrialSpec] | None = None

    def is_empty(self) -> bool:
        """Whether there is nothing to run; call it before the first trial."""
        if any(search.left for search in self._searches.values()):
            return False
        return all(spec.key in self._ended for spec in self._ready(set()))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next trial for Tune; None to ask again later, FINISHED when all is done."""
        spec = self._next(trial_id)
        if spec is None:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = spec
        return spec.to_tune()

    def stops(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Pass a validation to the search, and say whether to stop its trial."""
        spec = self._running[trial_id]
        # Tune repeats the last result when the function returns.
        if not spec.is_searched or OBJECTIVE not in result or result.get(DONE):
            return False
        search = self._searches[spec.config.method]
        return search.report(trial_id, result["record"]["epoch"], result[OBJECTIVE])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a trial, which may make others ready."""
        spec = self._running.pop(trial_id)
        self._ended.add(spec.key)
        self._queue = None
        if not spec.is_searched:
            return
        search = self._searches[spec.config.method]
        row = self._folder.searched().get(spec.config.config_hash)
        if error:
            search.tell(trial_id, "FAIL")
        elif row is not None and row.status == "COMPLETE":  # written by the trial itself
            search.tell(trial_id, "COMPLETE", row.score, row.size)
        else:
            search.tell(trial_id, "PRUNED")

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a study is resumed from its rows, not from Tune's files."""

    def _next(self, trial_id: str) -> TrialSpec | None:
        for search in self._searches.values():
            if search.left:
                return search.ask(trial_id)
        if self._queue is None:
            running = self._running.values()
            searching = {spec.config.method for spec in running if spec.is_searched}
            known = self._ended | {spec.key for spec in running}
            self._queue = [spec for spec in self._ready(searching) if spec.key not in known]
        return self._queue.pop(0) if self._queue else None
