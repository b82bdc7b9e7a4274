"""The command of a study killed by SIGKILL, or out of disk, and given again: nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState

from perpeft_ray.train.ray_train import _END_S
from tests.study.fakes import states
from tests.study.quick_study import rows_in, run_quick_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SCRIPT = Path(__file__).with_name("quick_study.py")
TIMES = ["started_at", "finished_at"]
TRIALS = 19
"""Of the whole study."""


def processes_of_trials(storage: Path) -> set[int]:
    """Of trials that began and whose process is still there."""
    began = {int(file.name.split("-")[3]) for file in (storage / "runs").glob("began-*")}
    return {pid for pid in began if _is_trial(pid)}


def _is_trial(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_killed_in_search_in_ablation_and_before_a_row_is_written(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_quick_study(unbroken).returncode == 0
    expected = rows_in(unbroken)
    assert len(expected) == TRIALS
    assert "PRUNED" in set(expected.status)  # what ASHA remembers matters

    done = 0
    for die in ("search:3", "unwritten:5", "ablation:2"):
        ended = run_quick_study(broken, "--die", die)
        assert ended.returncode == -signal.SIGKILL, (die, ended.stdout, ended.stderr)
        if done:
            assert f"continuing: {done} of {TRIALS} trials are done" in ended.stderr
        done = len(rows_in(broken))
        deadline = time.monotonic() + 120
        while processes_of_trials(broken):  # Ray's processes do not outlive the script
            assert time.monotonic() < deadline, processes_of_trials(broken)
            time.sleep(0.5)
        assert len(rows_in(broken)) == done  # nor has one written a row meanwhile
    last = run_quick_study(broken)
    assert last.returncode == 0, last.stderr
    assert f"continuing: {done} of {TRIALS} trials are done" in last.stderr
    assert f"[{TRIALS}/{TRIALS}]" in last.stderr

    pd.testing.assert_frame_equal(rows_in(broken).drop(columns=TIMES), expected.drop(columns=TIMES))
    finished = states(broken / "ablation_peft")
    assert finished[TrialState.RUNNING] == finished[TrialState.WAITING] == 0
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        assert finished[state] == states(unbroken / "ablation_peft")[state]
    ends = Counter(re.sub(r"-\w+$", "", file.name) for file in (broken / "runs").glob("ended-*"))
    assert set(ends.values()) == {1}  # nothing that was finished ran again

    again = run_quick_study(broken)
    assert again.returncode == 0
    assert f"continuing: {TRIALS} of {TRIALS} trials are done" in again.stderr
    assert "COMPLETE" not in again.stderr


@pytest.mark.parametrize("after", ["results in", "[2/"])  # workers start; workers train
def test_sigterm_stops_the_study_in_one_line(tmp_path: Path, after: str) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if after in line:
                break
        process.terminate()
        began = time.monotonic()
        *finished, last = process.stderr.read().splitlines()
    assert time.monotonic() - began < _END_S  # does not wait for the workers' end
    assert process.returncode == 128 + signal.SIGTERM
    assert all(re.match(rf"\[\d+/{TRIALS}\] |\d+/{TRIALS} trials, ", line) for line in finished)
    assert last == "interrupted; rerun the same command to resume"
    assert not (tmp_path / "ablation_peft" / "owner.json").exists()


def test_a_second_command_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--die", "search:1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        owner = tmp_path / "ablation_peft" / "owner.json"
        while not owner.exists():
            assert first.poll() is None
            time.sleep(0.1)
        second = run_quick_study(tmp_path)
        assert second.returncode == 2
        assert re.fullmatch(
            rf"error: `study` must be run by one process at a time, but process {first.pid} on "
            r"\S+ has run it since \S+\n",
            second.stderr.replace(f": {tmp_path}/ablation_peft", ""),
        )
        assert first.wait(timeout=300) == -signal.SIGKILL
    other = run_quick_study(tmp_path, "--train.batch-size", "7")
    assert other.returncode == 2
    assert "`train.batch_size` must be 64 as in the study that" in other.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_stops_the_study_until_there_is_room(small_disk: Path) -> None:
    ended = run_quick_study(small_disk)
    assert ended.returncode == 1, ended.stdout
    assert re.search(
        r"^error: no room on the disk \(\d\.\d MB are left in \S+\); make room, then "
        r"rerun the same command to resume\n\Z",
        ended.stderr,
        re.MULTILINE,
    )
    before = rows_in(small_disk)
    assert 0 < len(before) < TRIALS
    assert "FAIL" not in set(before.status)
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    again = run_quick_study(small_disk)
    assert again.returncode == 0, again.stderr
    assert f"continuing: {len(before)} of {TRIALS} trials are done" in again.stderr
    after = rows_in(small_disk)
    assert len(after) == TRIALS
    assert states(small_disk / "ablation_peft")[TrialState.RUNNING] == 0
    kept = after[after.trial_id.isin(before.trial_id)].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_dtype=False)


@pytest.mark.cluster
def test_a_cluster_that_loses_its_nodes_is_told_and_another_node_lets_it_go_on(
    tmp_path: Path,
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        two = run_quick_study(tmp_path, "--cpus-per-worker", "2", RAY_ADDRESS=cluster.address)
        assert two.returncode == 1
        assert "it needs 2 CPU; the nodes have 1 CPU, of which 1 CPU are free" in two.stderr

        command = [sys.executable, str(SCRIPT), str(tmp_path), "--study", "other"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(f"[2/{TRIALS}]"):
                    break
            cluster.remove_node(node, allow_graceful=False)
            began = time.monotonic()
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        assert re.search(r"no room for a trial for 20 s: it needs 1 CPU; the nodes have 0", errors)
        assert time.monotonic() - began < 200  # 20 s after Ray has seen that the node is gone

        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        last = run_quick_study(tmp_path, "--study", "other", RAY_ADDRESS=cluster.address)
        assert last.returncode == 0, last.stderr
        trials = rows_in(tmp_path, "other")
        assert len(trials) == TRIALS
        assert set(trials.status) == {"COMPLETE", "PRUNED"}
    finally:
        cluster.shutdown()


def test_a_real_study_that_was_killed_has_the_metrics_of_the_unbroken_one(tmp_path: Path) -> None:
    line = (
        "--peft.variant iisan --methods global perpeft --search.trials 3 --search.groups 4 8 "
        "--search.max-concurrent 1 --search.grace-epochs 1 --search.learning-rates 5e-3 "
        "--train.epochs 1 --train.personal-epochs 3 --train.validate-every 1"
    )
    script = SCRIPT.parents[2] / "studies" / "ablation_peft.py"
    command = [sys.executable, str(script), *line.split()]

    def study(storage: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--storage", storage], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    with study("unbroken") as process:
        _, printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    for ended in ("[1/5]", "[4/5]"):  # in the search, and in the ablation
        with study("broken") as process:
            assert process.stderr is not None
            for text in process.stderr:
                if text.startswith(ended):
                    break
            time.sleep(2)  # in the midst of the next trial
            process.kill()
    with study("broken") as process:
        _, printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert re.search(r"continuing: [45] of 5 trials are done", printed)

    measured = ["seconds", "memory", "_at"]
    expected, found = rows_in(tmp_path / "unbroken"), rows_in(tmp_path / "broken")
    settled = [
        name
        for name in expected.columns
        if name.startswith(("valid_", "test_")) or not any(word in name for word in measured)
    ]
    assert len(expected) == 5
    pd.testing.assert_frame_equal(found[settled], expected[settled])
    users = [tmp_path / name / "ablation_peft" / "users" for name in ("unbroken", "broken")]
    one, other = (
        pd.read_parquet(folder).sort_values(["trial_id", "user_id"], ignore_index=True)
        for folder in users
    )
    pd.testing.assert_frame_equal(one, other)
    assert states(tmp_path / "broken" / "ablation_peft")[TrialState.RUNNING] == 0


@pytest.mark.cluster
def test_two_trials_share_a_gpu_by_halves(tmp_path: Path) -> None:
    """Ray's accounting of a GPU that is only declared; nothing computes on it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        options = ("--gpus-per-worker", "0.5", "--search.max-concurrent", "2")
        halves = run_quick_study(tmp_path, *options, RAY_ADDRESS=cluster.address)
        assert halves.returncode == 0, halves.stderr
        began = {file.name.split("-")[3] for file in (tmp_path / "runs").glob("began-*")}
        assert len(began) == 2  # processes, side by side
        trials = rows_in(tmp_path).sort_values("started_at")
        assert (trials.started_at.shift(-1) < trials.finished_at).any()
        options = ("--gpus-per-worker", "2", "--study", "other")
        more = run_quick_study(tmp_path, *options, RAY_ADDRESS=cluster.address)
        assert more.returncode == 1
        assert "it needs 1 CPU, 2 GPU; the nodes have 2 CPU, 1 GPU" in more.stderr
    finally:
        cluster.shutdown()
