"""cluster/slurm.sh as Slurm runs it, with an `srun` of our own: two tasks, both on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
TINY = (
    "--peft.variant ia3 --grouping.groups 2 --loss.conditioning-weight 1 --train.lr 0.003 "
    "--search.trials 1 --search.max-concurrent 1 --train.epochs 1 --train.personal-epochs 1 "
    "--methods without_mm perpeft --workers 2"
)
SRUN = """#!/usr/bin/env bash
# The options of srun up to the command; a task for each node, ended together when srun is.
while [[ "$1" == --* ]]; do shift; done
pids=()
for task in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_PROCID=$task "$@" & pids+=($!)
done
echo "${pids[@]}" > "$PIDS"
trap 'kill "${pids[@]}"; wait' TERM
wait
"""


def run_slurm(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The script as `sbatch --nodes=2 --cpus-per-task=1` would start it on the first node."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    (tools / "perpeft").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from perpeft_ray.cli import main; main()" "$@"\n'
    )
    (tools / "perpeft").chmod(0o755)
    (folder / "clone").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        ["bash", str(ROOT / "cluster" / "slurm.sh"), *arguments],
        cwd="/",
        env=own
        | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{own['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PIDS": str(folder / "pids"),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_SUBMIT_DIR": str(folder / "clone"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "2000",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )


def test_a_study_on_two_nodes_that_leaves_no_process(tmp_path):
    ended = run_slurm(tmp_path, "--storage", str(tmp_path / "results"), *TINY.split())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 nodes, 2 CPUs" in ended.stdout
    trials = pd.read_parquet(tmp_path / "results" / "ablation_peft" / "trials")
    assert set(trials.status) == {"COMPLETE"}
    # A worker on each node: each has one CPU.
    assert set(trials.world_size) == {2}
    for pid in (tmp_path / "pids").read_text().split():
        assert not psutil.pid_exists(int(pid))


def test_what_is_missing_ends_the_job(tmp_path):
    ended = run_slurm(tmp_path, "--storage", str(tmp_path / "results"), "--workers", "-1")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "`workers` must be a whole number of at least 1, but is -1" in ended.stderr
    assert not (tmp_path / "results").exists()
