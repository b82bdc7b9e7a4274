"""A node is lost in mid-epoch: the trial continues elsewhere, with the unbroken result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cluster
@pytest.mark.timeout(560)
def test_a_trial_outlives_a_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.study.lost_node", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
