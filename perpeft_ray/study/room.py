"""Room for trials on Ray: what a trial needs, whether Ray has it, and a limit to waiting for it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from perpeft_ray.config import StudyConfig
from perpeft_ray.encoder.sizes import encoder_parameters
from perpeft_ray.errors import InputError, StudyStoppedError

LOOK_EVERY_S = 1.0
_LARGE_ENCODER, _SHARE = 50_000_000, 0.25
"""Parameters from which an encoder gets a whole GPU; the share of a smaller one."""


def with_gpus(study: StudyConfig) -> StudyConfig:
    """The study with the default GPUs per worker for this process's Ray.

    Several small encoders share one GPU; a larger one gets its own.
    """
    if study.gpus_per_worker is not None:
        return study
    gpus = 0.0
    if ray.cluster_resources().get("GPU", 0) > 0:  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        gpus = 1.0 if encoder_parameters(study.encoder) >= _LARGE_ENCODER else _SHARE
    return dataclasses.replace(study, gpus_per_worker=gpus)


def resources_of_worker(study: StudyConfig) -> dict[str, float]:
    """Ray resources of each of a trial's workers, without zeros."""
    amounts = {"CPU": float(study.cpus_per_worker), "GPU": study.gpus}
    return {name: amount for name, amount in amounts.items() if amount}


def workers_that_fit(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers with these resources fit on a node with those."""
    # Three times a third of a GPU is one GPU.
    return min(math.floor(node.get(kind, 0.0) / each + 1e-9) for kind, each in worker.items())


def trials_that_fit(study: StudyConfig) -> int:
    """How many trials Ray has room for, at least one."""
    trial = {name: study.workers * amount for name, amount in resources_of_worker(study).items()}
    return max(1, workers_that_fit(ray.cluster_resources(), trial))  # type: ignore[no-untyped-call]  # Ray leaves it untyped


def check_resources(study: StudyConfig) -> None:
    """Raise InputError for resources that Ray lacks, for which it would wait for ever."""
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    for kind, amount in resources_of_worker(study).items():
        needed, there = study.workers * amount, cluster.get(kind, 0)
        if needed > there:
            raise InputError(
                f"`workers` x `{kind.lower()}s_per_worker` must be at most the {kind}s that Ray "
                f"has ({there:g}), but is {needed:g}"
            )


def wait_for_room(config: StudyConfig) -> None:
    """Return once Ray could place a trial, without holding its room.

    The request makes an autoscaling cluster grow. Raises StudyStoppedError with what is missing
    after `start_timeout_s`.
    """
    bundles = [resources_of_worker(config)] * config.workers
    group = placement_group(bundles)
    try:
        if not group.wait(config.start_timeout_s):
            raise StudyStoppedError(_nothing_placed(bundles, config.start_timeout_s))
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
        waiting = _waiting()
        if not waiting:
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since > self._timeout_s:
            raise StudyStoppedError(_nothing_placed(min(waiting, key=len), self._timeout_s))


def _waiting() -> list[list[dict[str, float]]]:
    """This job's unmet requests; empty while it holds a trial's room."""
    job = ray.get_runtime_context().get_job_id()  # the end of its placement groups' ids
    table: dict[str, dict[str, Any]] = placement_group_table()
    mine = [
        (group["state"], list(group["bundles"].values()))
        for name, group in table.items()
        if name.endswith(job)
    ]
    placed = [bundle for state, bundles in mine if state == "CREATED" for bundle in bundles]
    if any({"CPU", "GPU"} & set(bundle) for bundle in placed):
        return []
    unmet = ("PENDING", "PREPARED", "RESCHEDULING")
    return [bundles for state, bundles in mine if state in unmet]


def _nothing_placed(asked: list[dict[str, float]], seconds: float) -> str:
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
    in_all = {name: sum(node.get(name, 0.0) for node in nodes) for name in bundle}
    fit = sum(workers_that_fit(node, bundle) for node in nodes)
    if workers_that_fit(in_all, bundle) < len(asked) or fit >= len(asked):
        return ""
    if fit == 0:
        return f", but no node has {_amounts(bundle)}"
    return f", but node by node they hold {fit} of the {len(asked)} workers"


def _amounts(resources: Mapping[str, float], names: set[str] | None = None) -> str:
    shown = sorted(names or resources)
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in shown)
