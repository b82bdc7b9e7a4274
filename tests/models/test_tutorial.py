"""The tutorial's blocks, run as a reader would, with less training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import perpeft_ray

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "studies" / "TUTORIAL.md"
SHORTER = (
    " --train.epochs 1 --train.personal-epochs 1 --train.lr 3e-3 --search.trials 1"
    " --peft.rank 4 --grouping.groups 3 --loss.conditioning-weight 0.5"
)
COMMANDS = """set -eo pipefail
perpeft() { "$PYTHON" -c 'from perpeft_ray.cli import main; main()' "$@"; }
"""


def _blocks() -> list[tuple[str, str]]:
    """(language, code) in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


def _run(language: str, code: str, folder: Path) -> str:
    """What a block prints; the test fails with its errors where it does."""
    if language == "bash":
        shorter = code.rstrip("\n") + SHORTER if "perpeft study" in code else code
        command = ["bash", "-c", COMMANDS + shorter]
    else:
        command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_blocks_are_of_languages_that_are_run() -> None:
    languages = [language for language, _ in _blocks()]
    assert len(languages) >= 10
    assert set(languages) == {"python", "bash"}
    # No block escapes the pattern: every fence is the start or the end of one.
    assert TUTORIAL.read_text().count("```") == 2 * len(languages)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    printed = [_run(language, code, tmp_path) for language, code in _blocks()]
    everything = "\n".join(printed)
    assert "exported to my_model" in everything
    assert "new_lamp" not in printed[-1].splitlines()[-1]  # it stands in the history
    model = perpeft_ray.load(tmp_path / "my_model")
    assert model.config.trial.method == "perpeft"
    assert model.config.has_encoder
    everyone = pd.read_parquet(tmp_path / "for_everyone")
    assert everyone.user_id.nunique() == model.config.users
    assert everyone.groupby("user_id").size().eq(10).all()
