"""What is said of room that Ray has in all, but not on one node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("quick_study.py")
SMALL_NODES = [(0, 0), (1, 1), (1, 1)]
"""CPUs and GPUs of the head and two nodes; the GPUs are only declared."""
CASES = [
    ("--workers 3", SMALL_NODES, "it needs 3 x (1 CPU); the nodes have 2 CPU, of which 2 CPU"),
    (
        "--workers 3 --gpus-per-worker 1",
        SMALL_NODES,
        "it needs 3 x (1 CPU, 1 GPU); the nodes have 2 CPU, 2 GPU, of which 2 CPU, 2 GPU are free.",
    ),
    (
        "--workers 1 --cpus-per-worker 2",
        SMALL_NODES,
        "it needs 2 CPU; the nodes have 2 CPU, of which 2 CPU are free, but no node has 2 CPU.",
    ),
    (
        "--workers 1 --gpus-per-worker 2",
        SMALL_NODES,
        "of which 2 CPU, 2 GPU are free, but no node has 1 CPU, 2 GPU.",
    ),
    (
        "--workers 3 --cpus-per-worker 2",
        [(0, 0), (3, 0), (3, 0)],
        "it needs 3 x (2 CPU); the nodes have 6 CPU, of which 6 CPU are free, but node by node "
        "they hold 2 of the 3 workers.",
    ),
]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    for nodes in (SMALL_NODES, [(0, 0), (3, 0), (3, 0)]):
        (cpus, gpus), *others = nodes
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "num_gpus": gpus})
        try:
            for cpus, gpus in others:
                cluster.add_node(num_cpus=cpus, num_gpus=gpus)
            cluster.wait_for_nodes()
            for number, (options, where, words) in enumerate(CASES):
                if where == nodes:
                    said = _ended(cluster.address, tmp_path / str(number), options)
                    assert words in said, options
        finally:
            cluster.shutdown()


def _ended(address: str, storage: Path, options: str) -> str:
    """What the study says, which must end within 30 s of its first line."""
    command = [sys.executable, str(SCRIPT), str(storage), "--start-timeout-s", "3"]
    with subprocess.Popen(
        [*command, *options.split()],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": address},
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("study ablation_peft")
        began = time.monotonic()
        _, errors = process.communicate(timeout=300)
    assert time.monotonic() - began < 30
    assert process.returncode == 1, errors
    return errors
