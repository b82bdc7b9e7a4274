"""`perpeft doctor` on two nodes: healthy ones, and one that is set up otherwise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perpeft_ray.study.node_report import visible_gpus

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PERPEFT = (sys.executable, "-c", "from perpeft_ray.cli import main; main()")
TRIALS = "--workers 2 --search.max-concurrent 1"
NODES_S = 300.0


def doctor(nodes: Any, storage: Path, arguments: str = TRIALS) -> Any:
    # Wide, so that no word of the table is broken.
    return nodes.run(
        *(*PERPEFT, "doctor", "--storage", str(storage), *arguments.split()),
        RAY_ADDRESS=nodes.address,
        COLUMNS="2000",
    )


def wait_for_nodes(nodes: Any, count: int) -> None:
    """Until the head knows of so many nodes that live."""
    script = (
        "import json, ray; ray.init(log_to_driver=False, logging_level=50); "
        "print(json.dumps(sum(node['Alive'] for node in ray.nodes())))"
    )
    deadline = time.monotonic() + NODES_S
    while time.monotonic() < deadline:
        asked = nodes.run(sys.executable, "-c", script, timeout=NODES_S, RAY_ADDRESS=nodes.address)
        # Ray cannot be joined in the moment in which a node on the same machine comes or goes.
        if asked.returncode == 0 and json.loads(asked.stdout.splitlines()[-1]) == count:
            return
        time.sleep(1)
    pytest.fail(
        f"not {count} nodes after {NODES_S:g} s: {asked.stdout}{asked.stderr}{nodes.logs()}"
    )


def row(output: str, check: str) -> str:
    (line,) = (line for line in output.splitlines() if line.strip().startswith(check))
    return line


def test_two_healthy_nodes(nodes, small_shop, tmp_path):
    second = nodes.start_worker(cpus=1)
    wait_for_nodes(nodes, 2)
    data = f"--dataset parquet:{small_shop} --encoder toyshop-clip"
    ended = doctor(nodes, tmp_path / "results", f"{TRIALS} {data}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 of 2 answer" in row(ended.stdout, "nodes")
    assert "2 nodes, 3 CPUs, 0 GPUs: 3 places for a worker" in row(ended.stdout, "resources")
    assert "written and read on every node" in row(ended.stdout, "storage")
    assert "a request without a token is refused" in row(ended.stdout, "authentication")
    assert "is the same on every node" in row(ended.stdout, "catalogue")
    assert not (tmp_path / "results").exists()
    nodes.stop(second)
    wait_for_nodes(nodes, 1)


@pytest.fixture
def own_mount():
    """A command's prefix that gives it an empty file system of its own in the place of a folder."""
    make = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    tried = subprocess.run([*make, "/mnt", "true"], check=False, capture_output=True)
    if tried.returncode != 0:
        pytest.skip("this machine lets nobody mount: " + tried.stderr.decode().strip())
    return lambda folder: (*make, str(folder))


def test_a_node_with_another_storage_another_torch_and_no_gpu(nodes, own_mount, tmp_path):
    storage, packages = tmp_path / "results", tmp_path / "packages"
    storage.mkdir()
    (packages / "torch-2.1.0.dist-info").mkdir(parents=True)
    (packages / "torch-2.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n"
    )
    # It also says that it has a GPU, which torch does not see.
    second = nodes.start_worker(
        cpus=1, gpus=1, prefix=own_mount(storage), environment={"PYTHONPATH": str(packages)}
    )
    wait_for_nodes(nodes, 2)
    ended = doctor(nodes, storage, f"{TRIALS} --gpus-per-worker 0.5")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "has torch 2.1.0, not" in row(ended.stdout, "versions")
    found = row(ended.stdout, "storage")
    assert "cannot read it: No such file or directory: mount one file system" in found
    resources = row(ended.stdout, "resources")
    assert "2 workers need 2 places: add nodes with 1 place of 1 CPU and 0.5 GPUs" in resources
    if visible_gpus() == 0:
        assert "torch sees none on " in row(ended.stdout, "GPUs")
    assert "2 of 2 answer" in row(ended.stdout, "nodes")
    assert list(storage.iterdir()) == []
    nodes.stop(second)
    wait_for_nodes(nodes, 1)


def test_a_wrong_token_is_told_and_nothing_hangs(nodes, tmp_path):
    ended = nodes.run(
        *(*PERPEFT, "doctor", "--storage", str(tmp_path)),
        RAY_ADDRESS=nodes.address,
        RAY_AUTH_TOKEN="not-the-token",
        COLUMNS="2000",
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "not reached" in row(ended.stdout, "Ray")
    assert "the same RAY_AUTH_MODE and token as there" in row(ended.stdout, "Ray")
