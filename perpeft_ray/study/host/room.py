"""Room for trials on Ray: what a trial asks for, an end to waiting for what does not come, and the
room that killed trials have left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors
from ray.util.state.common import ActorState
from ray.util.state.exception import RayStateApiException

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import StudyStoppedError

LOOK_EVERY_S = 1.0
UNUSED_S = 15.0
"""Ray Train starts its workers as soon as it has their room: unused for so long, it is lost."""


def resources_of_worker(config: StudyConfig) -> dict[str, float]:
    """What a Ray Train worker, or a trial without workers, holds."""
    amounts = {"CPU": float(config.cpus_per_worker), "GPU": config.gpus}
    return {name: amount for name, amount in amounts.items() if amount}


def wait_for_room(config: StudyConfig, workers: int) -> None:
    """Return when Ray could place a trial; nothing is held then.

    The request is one that an autoscaling cluster grows for. Raises StudyStoppedError after
    `start_timeout_s`, with what is missing.
    """
    bundles = [resources_of_worker(config)] * max(workers, 1)
    group = placement_group(bundles)
    try:
        if not group.wait(config.start_timeout_s):
            raise StudyStoppedError(_nothing_placed([bundles], config.start_timeout_s))
    finally:
        remove_placement_group(group)


class Patience:
    """Ends a study of which nothing runs, since Ray has no room for its next trial.

    Ray itself would wait for ever: a node may have left, or another job may hold the rest. A trial
    of the study that runs will give its room back, so while one does there is nothing to end.
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
        """What this job asks for and has not got; nothing while it has a trial's room."""
        mine = list(_groups_of_this_job().values())
        placed = [group for group in mine if group["state"] == "CREATED"]
        if any(_holds_processors(group) for group in placed):
            return []
        states = ("PENDING", "PREPARED", "RESCHEDULING")
        return [list(group["bundles"].values()) for group in mine if group["state"] in states]


class LostRoom:
    """Gives back the room of trials whose process was killed before all of their workers ran.

    Of Ray 2.60's parts none does: a placement group outlives the actor that made it until the whole
    job ends, and Ray Train's cleaner learns of one only after its workers have started. The next
    trial, and the study with it, would wait for ever.
    """

    def __init__(self) -> None:
        self._suspected = False
        self._looked_at = 0.0
        self._unused_since: dict[str, float] = {}

    def suspect(self) -> None:
        """A trial with Ray Train workers has failed; from now on there may be lost room."""
        self._suspected = True

    def look(self) -> None:
        """Call often; trials with and without workers must not run side by side."""
        now = time.monotonic()
        if not self._suspected or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        unused = self._unused()
        self._unused_since = {key: self._unused_since.get(key, now) for key in unused}
        for key, since in self._unused_since.items():
            if now - since > UNUSED_S:
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))

    def _unused(self) -> list[str]:
        """Ids of this job's groups that hold processors with no actor in them."""
        holding = [
            key
            for key, group in _groups_of_this_job().items()
            if group["state"] == "CREATED" and _holds_processors(group)
        ]
        if not holding:
            return []
        living = _living_actors()
        if living is None:
            return []  # to be asked again
        used = {actor.placement_group_id for actor in living}
        return [key for key in holding if key not in used]


def _living_actors() -> list[ActorState] | None:
    """This job's; None where the State API does not answer."""
    context = ray.get_runtime_context()
    filters: list[tuple[str, str, str | bool | float]] = [
        ("job_id", "=", context.get_job_id()),
        ("state", "!=", "DEAD"),
    ]
    try:
        return list_actors(context.gcs_address, filters=filters, limit=10_000, detail=True)
    except (RayStateApiException, ConnectionError):
        return None


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
        "jobs, add nodes or raise `start_timeout_s`; the same command goes on with the study"
    )


def _too_small(asked: list[dict[str, float]]) -> str:
    """Where what the nodes have in all is enough, but not as they have it: each bundle is on one
    node. The bundles are alike, as a trial's workers are."""
    bundle = asked[0]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    in_all = Counter[str]()
    for node in nodes:
        in_all.update(node)
    if any(in_all[name] < amount * len(asked) for name, amount in bundle.items()):
        return ""
    # A third of a GPU three times is one GPU.
    fit = sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items())
        for node in nodes
    )
    if fit >= len(asked):
        return ""
    if fit == 0:
        return f", but no node has {_amounts(bundle)}"
    return f", but node by node they hold {fit} of the {len(asked)} workers"


def _amounts(resources: Mapping[str, float], names: set[str] | None = None) -> str:
    shown = sorted(names or resources)
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in shown)
