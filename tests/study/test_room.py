"""Room on Ray: what is missing is named, and what fits is counted."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import ray

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.study import room
from perpeft_ray.study.room import wait_for_room


@pytest.mark.usefixtures("ray_runtime")
def test_what_a_cluster_has_no_room_for_is_named() -> None:
    config = StudyConfig(workers=500, cpus_per_worker=2, start_timeout_s=1.0)
    there = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU") != there:  # an earlier test's actors may still end
        time.sleep(0.1)
    began = time.monotonic()
    with pytest.raises(StudyStoppedError) as error:
        wait_for_room(config)
    assert time.monotonic() - began < 30
    text = str(error.value)
    assert text.startswith("Ray has had no room for a trial for 1 s: it needs 500 x (2 CPU); the")
    assert f"the nodes have {there:g} CPU, of which {there:g} CPU are free" in text
    assert "`start_timeout_s`" in text
    wait_for_room(replace(config, workers=1))


SMALL = [{"CPU": 1.0, "GPU": 1.0}] * 2
LARGE = [{"CPU": 3.0}] * 2


@pytest.mark.parametrize(
    ("nodes", "workers", "worker", "words"),
    [
        (SMALL, 3, {"CPU": 1.0}, "needs 3 x (1 CPU); the nodes have 2 CPU, of which 2 CPU are"),
        (SMALL, 3, {"CPU": 1.0, "GPU": 1.0}, "the nodes have 2 CPU, 2 GPU, of which 2 CPU, 2 GPU"),
        (SMALL, 1, {"CPU": 2.0}, "of which 2 CPU are free, but no node has 2 CPU."),
        (SMALL, 1, {"CPU": 1.0, "GPU": 2.0}, "2 GPU are free, but no node has 1 CPU, 2 GPU."),
        (LARGE, 3, {"CPU": 2.0}, "are free, but node by node they hold 2 of the 3 workers."),
    ],
)
def test_what_nodes_have_in_all_but_not_each_is_named(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    workers: int,
    worker: dict[str, float],
    words: str,
) -> None:
    in_all = {name: sum(node[name] for node in nodes) for name in nodes[0]}
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": worker}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: in_all)
    monkeypatch.setattr(ray, "available_resources", lambda: in_all)
    assert words in room._nothing_placed([worker] * workers, 3.0)
