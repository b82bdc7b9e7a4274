"""Room for trials on Ray: a trial's resources, and a limit to waiting for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.study.plan import resources_of_worker, workers_that_fit

LOOK_EVERY_S = 1.0


def wait_for_room(config: StudyConfig, workers: int) -> None:
    """Return once Ray could place a trial, without holding its room.

    The request makes an autoscaling cluster grow. Raises StudyStoppedError with what is missing
    after `start_timeout_s`.
    """
    bundles = [resources_of_worker(config)] * workers
    group = placement_group(bundles)
    try:
        if not group.wait(config.start_timeout_s):
            raise StudyStoppedError(_nothing_placed([bundles], config.start_timeout_s))
    finally:
        remove_placement_group(group)


class Patience:
    """Ends a study of which nothing runs because Ray has no room for its next trial.

    Ray itself would wait for ever: a node may have left, or another job may hold the rest. A
    running trial will give its room back, so the study does not end while one runs.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._looked_at = 0.0
        self._stuck_since: float | None = None

    def look(self) -> None:
        """Call often; raises StudyStoppedError, with what is missing."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        waiting = self._waiting()
        if not waiting:
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since > self._timeout_s:
            raise StudyStoppedError(_nothing_placed(waiting, self._timeout_s))

    def _waiting(self) -> list[list[dict[str, float]]]:
        """This job's unmet requests; empty while it holds a trial's room."""
        mine = list(_groups_of_this_job().values())
        placed = [group for group in mine if group["state"] == "CREATED"]
        if any(_holds_processors(group) for group in placed):
            return []
        states = ("PENDING", "PREPARED", "RESCHEDULING")
        return [list(group["bundles"].values()) for group in mine if group["state"] in states]


def _groups_of_this_job() -> dict[str, dict[str, Any]]:
    job = ray.get_runtime_context().get_job_id()  # the end of its placement groups' ids
    return {key: group for key, group in placement_group_table().items() if key.endswith(job)}


def _holds_processors(group: Mapping[str, Any]) -> bool:
    return any({"CPU", "GPU"} & set(bundle) for bundle in group["bundles"].values())


def _nothing_placed(waiting: list[list[dict[str, float]]], seconds: float) -> str:
    asked = min(waiting, key=len)
    each = Counter(_amounts(bundle) for bundle in asked)
    wants = " + ".join(f"{n} x ({text})" if n > 1 else text for text, n in each.items())
    names = {name for bundle in asked for name in bundle}
    return (
        f"Ray has had no room for a trial for {seconds:g} s: it needs {wants}; the nodes have "
        f"{_amounts(ray.cluster_resources(), names)}, of which "  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        f"{_amounts(ray.available_resources(), names)} are free{_too_small(asked)}. Wait for other "  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        "jobs, add nodes or raise `start_timeout_s`; then rerun the same command to resume"
    )


def _too_small(asked: list[dict[str, float]]) -> str:
    """The end of an error if the nodes' total is enough but does not fit node by node: each bundle
    needs one node. The bundles are equal, like a trial's workers."""
    bundle = asked[0]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    in_all = Counter[str]()
    for node in nodes:
        in_all.update(node)
    if any(in_all[name] < amount * len(asked) for name, amount in bundle.items()):
        return ""
    fit = sum(workers_that_fit(node, bundle) for node in nodes)
    if fit >= len(asked):
        return ""
    if fit == 0:
        return f", but no node has {_amounts(bundle)}"
    return f", but node by node they hold {fit} of the {len(asked)} workers"


def _amounts(resources: Mapping[str, float], names: set[str] | None = None) -> str:
    shown = sorted(names or resources)
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in shown)
