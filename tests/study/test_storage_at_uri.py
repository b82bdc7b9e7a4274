"""A study whose storage is a URI goes on from another machine, which has nothing but the URI."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState

from perpeft_ray.results.folder import StudyFolder
from tests.study.test_kills import TIMES, processes_of_trials, rows, run, states

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine, with nothing in it."""
    server = shutil.which("moto_server")
    if server is None:
        pytest.skip("moto_server is not there: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    command = [server, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    bucket = urllib.request.Request(f"{url}/perpeft", method="PUT")
                    urllib.request.urlopen(bucket).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield "s3://perpeft/results"
        finally:
            process.terminate()


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return (tmp_path / "store").as_uri()


def test_killed_on_two_machines_and_ended_on_a_third(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = tmp_path / "unbroken"
    assert run(unbroken).returncode == 0
    expected = rows(unbroken)

    def on(machine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        place = {"RUNS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / machine)}
        return run(storage, *arguments, **place)

    for machine, die in (("first", "search:3"), ("second", "ablation:1")):
        ended = on(machine, "--die", die)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        deadline = time.monotonic() + 120
        while processes_of_trials(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        shutil.rmtree(tmp_path / machine)  # the machine is gone
    last = on("third")
    assert last.returncode == 0, last.stderr
    assert "continuing: " in last.stdout
    assert f"results in {storage}/ablation_peft" in last.stdout

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    folder = StudyFolder.open(f"{storage}/ablation_peft")
    found = rows(folder.path.parent, folder.path.name)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES))
    ended_states = states(folder.path.parent, folder.path.name)
    assert ended_states[TrialState.RUNNING] == ended_states[TrialState.WAITING] == 0
    assert {"study.log", "study.json", "tensorboard"} <= set(os.listdir(folder.path))
    assert not (folder.path / "owner.json").exists()
    ends = Counter(file.name.rpartition("-")[0] for file in (tmp_path / "runs").glob("ended-*"))
    assert set(ends.values()) == {1}  # nothing that was finished ran again
