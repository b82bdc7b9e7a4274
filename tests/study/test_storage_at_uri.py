"""A study whose storage is a URI goes on from another machine, which has nothing but the URI."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState

from perpeft_ray.store.folder import StudyFolder
from tests.study.fakes import states
from tests.study.quick_study import rows_in, run_quick_study
from tests.study.test_kills import TIMES, processes_of_trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/results"
    return (tmp_path / "store").as_uri()


def test_killed_on_two_machines_and_ended_on_a_third(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = tmp_path / "unbroken"
    assert run_quick_study(unbroken).returncode == 0
    expected = rows_in(unbroken)

    def on(machine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        place = {"RUNS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / machine)}
        return run_quick_study(storage, *arguments, **place)

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
    assert "continuing: " in last.stderr
    assert f"results in {storage}/ablation_peft" in last.stderr

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    folder = StudyFolder.open(f"{storage}/ablation_peft")
    found = rows_in(folder.path.parent, folder.path.name)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES))
    ended_states = states(folder.path)
    assert ended_states[TrialState.RUNNING] == ended_states[TrialState.WAITING] == 0
    assert {"study.log", "study.json", "tensorboard"} <= {
        path.name for path in folder.path.iterdir()
    }
    assert not (folder.path / "owner.json").exists()
    ends = Counter(file.name.rpartition("-")[0] for file in (tmp_path / "runs").glob("ended-*"))
    assert set(ends.values()) == {1}  # nothing that was finished ran again
